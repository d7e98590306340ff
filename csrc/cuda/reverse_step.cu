// One row of a sampler plan, every term of it (DESIGN 5).
#include "../step.h"
#include "pack.cuh"
#include "share.cuh"

namespace fastdiff {
namespace cuda {
namespace {

// What a block keeps of its sample's row: the columns, kBound the sample's own where it has one, and the next row's c_in.
enum { kNextCIn = kRowColumns, kKept };

// Bits of `terms` beside the columns: the row can be taken; it writes to the history, draws noise, scales x0 or m.
constexpr uint32_t kTaken = 1u << 31, kWrites = 1u << 30, kDraws = 1u << 29, kShrinks = 1u << 28, kGains = 1u << 27;

// What a call makes of a row's terms: those it has no use for, those that it adds, those that draw, those it lacks the
// tensors of.
struct Call {
  uint32_t useless, added, drawn, lacking;
};

Call make_call(const ReverseStepParams& p) {
  const auto where = [](bool condition, uint32_t terms) { return condition ? terms : 0u; };
  const uint32_t known = where(p.mask && !p.known_noise, terms_of(kKN)), drawn = where(!p.noise, terms_of(kStd)) | known;
  return {where(!p.guided, terms_of(kW)) | where(!p.mask, terms_of(kKN)),
          where(p.shrink, kShrinks) | where(p.gain, kGains), drawn,
          where(!p.model_output, kReadsModel) | where(!p.model_output || !p.learned, kReadsVariance) |
              where(!p.extra, kReadsExtra) | where(!p.history, kReadsHistory | kWrites) | where(!p.rng, drawn)};
}

struct ReverseStep {
  ReverseStepParams p;
  Walk walk;
  Share share;
  Call call;
  uint32_t scattered;     // kVectors: kDraws where the memory's order is not that of drawing, else 0
  Strides state, model, input, mask;
  Strides order;          // of drawing's exchange
  int64_t slot;           // bytes of one, in the history
};

struct Current {
  Shared<float> at;
  uint32_t terms;
};

FD_DEVICE const float* row_address(const ReverseStepParams& p, int64_t r) {
  return static_cast<const float*>(p.rows) + r * kRowColumns;
}

// What the lane keeps of row r, of which it has read its column.
FD_DEVICE float kept_of(const ReverseStepParams& p, int64_t b, int64_t r, int lane, float column) {
  if (lane == kBound && p.bound) return load(p.bound + b);
  if (lane == kNextCIn) return r + 1 < p.R ? load(row_address(p, r + 1) + kCIn) : 1.0f;
  return column;
}

// Reads the sample's row; a warp calls this, and `kept` and `terms` are shared.
FD_DEVICE void keep_row(const ReverseStep& a, int64_t b, Shared<float> kept, Shared<uint32_t> terms) {
  const ReverseStepParams& p = a.p;
  const int lane = threadIdx.x;
  const int64_t r = load(p.row + b * p.row_stride);
  const bool exists = r >= 0 && r < p.R;
  const float column = exists && lane < kRowColumns ? load(row_address(p, r) + lane) : 0.0f;
  const bool writes = __ballot_sync(0xffffffffu, lane == kWrite && column >= 0);
  uint32_t asked = __ballot_sync(0xffffffffu, column != 0) | (writes ? kWrites : 0);
  asked = (asked & ~a.call.useless) | a.call.added;
  if (asked & a.call.drawn) asked |= kDraws;
  const bool taken = exists && !(asked & a.call.lacking);
  if (lane < kKept) kept[lane] = taken ? kept_of(p, b, r, lane, column) : nanf("");
  if (lane == 0) *terms = taken ? asked | kTaken : 0;
}

// The block's row. The whole block calls this.
FD_DEVICE Current read_row(const ReverseStep& a, int64_t b) {
  FD_SHARED(float, kept, kKept);
  FD_SHARED(uint32_t, terms, 1);
  if (threadIdx.x < kWarp) keep_row(a, b, kept, terms);
  __syncthreads();
  return {kept, *terms};
}

// A thread's M quads of N elements.
template <class T, int kAccess, int N, int M>
struct Step {
  typedef Pack<N * M> Values;

  const ReverseStep& a;
  const Current& now;
  Quad quads[M];
  int64_t at[M];          // bytes to each in a state tensor: not kElements
  bool here[M];           // which exist; the addresses of the others can be read from, with kVectors

  FD_MEMBER bool has(uint32_t terms) const { return now.terms & terms; }

  FD_MEMBER void place(const Start& start) {
    FD_UNROLL
    for (int k = 0; k < M; ++k) {
      Quad& q = quads[k] = quad_of<kAccess, N>(a.walk, a.share, a.state, start, k);
      const int64_t offset = kAccess == kTiles ? tile_offset<N>(q.tile, a.state) : q.first;
      here[k] = kAccess == kTiles ? q.tile.template has<N>(q.tile.runs) : q.count != 0;
      at[k] = (start.b * a.state.sample + offset) * sizeof(T);
      if (kAccess != kElements) at[k] = settled(at[k]);
    }
  }

  // Whether there is something to store of quad k: with kVectors, who has no first one has left by then.
  FD_MEMBER bool stores(int k) const { return (kAccess == kVectors && k == 0) || here[k]; }

  // load(quad k, its elements) of each.
  template <class Load>
  FD_MEMBER Values each(Load load) const {
    Values values;
    FD_UNROLL
    for (int k = 0; k < M; ++k) {
      float v[N];
      load(k, v);
      FD_UNROLL
      for (int j = 0; j < N; ++j) values.at[k * N + j] = v[j];
    }
    return values;
  }

  // store(quad k, its elements) of each.
  template <class Store>
  FD_MEMBER void put(const Values& values, Store store) const {
    FD_UNROLL
    for (int k = 0; k < M; ++k) {
      float v[N];
      FD_UNROLL
      for (int j = 0; j < N; ++j) v[j] = values.at[k * N + j];
      store(k, v);
    }
  }

  // A state tensor, as the kernel reaches it.
  template <class Void>
  FD_MEMBER auto in_state(Void* data) const { return reached<T>(data, a.p.state_dtype); }

  FD_MEMBER Values load_state(const void* data) const {
    const char* const bytes = static_cast<const char*>(data);
    return each([&](int k, float (&v)[N]) {
      if (kAccess == kElements) load_quad<kAccess>(in_state(data), a.state, quads[k], v);
      else if (kAccess == kVectors || here[k]) in_state(bytes + at[k]).with([&](auto* p) { load_floats(p, v); });
      else fill_zeros(v);
    });
  }

  FD_MEMBER void store_state(void* data, const Values& values) const {
    char* const bytes = static_cast<char*>(data);
    put(values, [&](int k, const float (&v)[N]) {
      if (kAccess == kElements) store_quad<kAccess>(in_state(data), a.state, quads[k], v);
      else if (stores(k)) in_state(bytes + at[k]).with([&](auto* p) { store_floats(p, v); });
    });
  }

  FD_MEMBER void* history(int slot) const { return static_cast<char*>(a.p.history) + slot * a.slot; }

  // Whether the output's two halves lie side by side, and are loaded as a pair.
  FD_MEMBER bool has_pairs() const { return kAccess == kTiles && a.p.learned && has_runs(a.model); }

  FD_MEMBER void load_both(const Tile& tile, int64_t b, float (&m)[N], float (&v)[N]) const {
    with_size<Other<N>>(a.p.model_dtype, [&](auto type) {
      load_pair<typename decltype(type)::Is>(tile, a.p.model_output, a.p.model_dtype, b * a.model.sample, m, v);
    });
  }

  // A thread's values that there are no registers for until they are used again.
  FD_MEMBER static Shared<float> aside() {
    FD_SHARED(float, aside, N * M * kBlock);
    return aside;
  }

  FD_MEMBER void put_aside(const Values& values) const {
    const Shared<float> to = aside() + afresh(threadIdx.x);
    FD_UNROLL
    for (int j = 0; j < N * M; ++j) to[j * kBlock] = values.at[j];
  }

  FD_MEMBER Values take_back() const {
    const Shared<float> from = aside() + afresh(threadIdx.x);
    return packed<N * M>([&](int j) { return float(from[j * kBlock]); });
  }

  // The network's output, from first_channel on, of the sample or of its conditional half. Its dtype is asked for once
  // but by elements, which are found in many instructions.
  FD_MEMBER Values load_model(bool conditional, int64_t first_channel) const {
    const auto model = reached<Other<N>>(a.p.model_output, a.p.model_dtype, first_channel * a.model.channel);
    const int64_t b = quads[0].b + (conditional ? a.walk.B : 0);
    if constexpr (kAccess == kElements) return each([&](int k, float (&v)[N]) { load_quad_of(b, model, k, v); });
    Values values;
    model.with([&](auto* p) {
      const auto* const first = p + b * a.model.sample + quads[0].first;
      values = each([&](int k, float (&v)[N]) {
        if (kAccess == kVectors) load_floats(first + (k ? quads[k].first - quads[0].first : 0), v);
        else load_quad_of(b, typed(p), k, v);
      });
    });
    return values;
  }

  template <class Source>
  FD_MEMBER void load_quad_of(int64_t b, const Source& source, int k, float (&v)[N]) const {
    Quad q = quads[k];
    q.b = b;
    load_quad<kAccess>(source, a.model, q, v);
  }

  // The network's output, guided and scaled; of pairs the raw variance as well.
  FD_MEMBER Values read_model(Values& v) const {
    Values m;
    if (has_pairs()) m = read_pairs(v);
    else if (has(kReadsModel)) m = load_model(false, 0);
    else m = filled<N * M>(0.0f);
    if (has(terms_of(kW) | kGains)) {
      if (has(terms_of(kW)) && has(kReadsModel) && !has_pairs()) m = guide(m, load_model(true, 0), now, now.terms, 1.0f);
      if (has(kGains)) m = m * load(a.p.gain + quads[0].b);
    }
    return m;
  }

  // Both halves are read where one is asked for.
  FD_MEMBER Values read_pairs(Values& v) const {
    const bool guided = has(kReadsModel) && has(terms_of(kW)), first = has(kReadsModel) || !a.p.guided;
    if (!has(kReadsModel | kReadsVariance)) return filled<N * M>(0.0f);
    Values m;
    FD_UNROLL
    for (int k = 0; k < M; ++k) {
      const Tile& tile = quads[k].tile;
      const int64_t b = quads[k].b;
      Pack<N> uncond{}, cond, variance;
      if (first) load_both(tile, b, uncond.at, variance.at);
      if (guided || (a.p.guided && has(kReadsVariance))) load_both(tile, b + a.walk.B, cond.at, variance.at);
      if (guided) uncond = guide(uncond, cond, now, now.terms, 1.0f);
      FD_UNROLL
      for (int j = 0; j < N; ++j) m.at[k * N + j] = uncond.at[j], v.at[k * N + j] = variance.at[j];
    }
    return m;
  }

  FD_MEMBER Values read_x0(const Values& x, const Values& m) const {
    Values x0 = clipped_x0(x, m, now, now.terms, float(now.at[kBound]), 1.0f);
    if (has(terms_of(kG0) | kShrinks)) {
      if (has(kShrinks)) x0 = x0 * load(a.p.shrink + quads[0].b);
      if (has(terms_of(kG0))) {
        const Values extra = load_state(a.p.extra);
        x0 = add_term(x0, now, now.terms, kG0, extra);
        if (has(terms_of(kGX, kGV))) put_aside(extra);
      }
    }
    return x0;
  }

  FD_MEMBER Values draw(uint32_t stream) const {
    return each([&](int k, float (&v)[N]) {
      if (kAccess != kVectors || !a.scattered)
        return draw_quad<kAccess>(a.p.rng, a.p.sample_ids, stream, quads[k], v);
      const int64_t tile = (quads[0].first / N - threadIdx.x) / a.share.threads + k;
      draw_quad<kTiles>(a.p.rng, a.p.sample_ids, stream, place_tile<N>(a.walk, a.order, quads[0].b, tile), v);
    });
  }

  // What is given, or 0 where the row has no use for it.
  FD_MEMBER Values given(const void* data, int column) const {
    return has(column_bit(column)) ? load_state(data) : filled<N * M>(0.0f);
  }

  // y = mask * y + (1 - mask)(k_0 known + k_n known_noise).
  FD_MEMBER void blend_known(const Values& drawn, Values& y) const {
    const Values mask = each([&](int k, float (&v)[N]) {
      Quad q = quads[k];
      if (kAccess == kVectors && !a.mask.channel) q.first -= divide(q.first, q.S) * q.S;
      load_quad<kAccess>(in_state(a.p.mask), a.mask, q, v);
    });
    Values known{};
    if (has(terms_of(kK0))) known = load_state(a.p.known);
    y = blend(y, mask, known, drawn, now, now.terms);
  }

  FD_MEMBER Values read_history(Values y) const {
    FD_UNROLL
    for (int slot = 0; slot < 3; ++slot)
      if (has(column_bit(kC1 + slot))) y = add_term(y, now, now.terms, kC1 + slot, load_state(history(slot)));
    return y;
  }

  // x' without what `advance` adds; v: the raw variance of pairs. Each tensor is read where it is used, and every value
  // is set on every way: registers are few.
  FD_MEMBER Values mean(Values& v) const {
    const Values x = has(kReadsX) ? load_state(a.p.x) : filled<N * M>(0.0f);
    const Values m = read_model(v);
    const Values x0 = read_x0(x, m);
    Values y = first_terms(x, x0, now, now.terms);
    if (has(terms_of(kCM) | kReadsHistory | kWrites)) {
      y = read_history(add_term(y, now, now.terms, kCM, m));
      if (has(kWrites)) store_state(history(int(now.at[kWrite])), pushed(x, x0, m, now, now.terms));
    }
    return y;
  }

  // y + (g_x + g_v s^2) extra + std s z where s is not 1 or there is an extra.
  FD_MEMBER Values add_deviating(Values y, Values v, const Values& z) const {
    const uint32_t terms = now.terms;
    if (has(kReadsVariance) && !has_pairs()) v = load_model(a.p.guided, a.walk.C);
    const Values s = deviates(terms) ? deviation(v, now, terms) : filled<N * M>(1.0f);
    if (has(terms_of(kGX, kGV))) {
      const Values extra = has(terms_of(kG0)) ? take_back() : load_state(a.p.extra);
      y = add_term(y, now, terms, kGX, extra);
      y = add_term(y, now, terms, kGV, s * s * extra);
    }
    return add_term(y, now, terms, kStd, s * z);
  }

  // What noise of a stream makes of y.
  FD_MEMBER void add_noise(uint32_t stream, const Values& z, const Values& v, Values& y) const {
    if (stream == kKnown) blend_known(z, y);
    else if (has(terms_of(kGX, kGV, kL0, kL1))) y = add_deviating(y, v, z);
    else y = add_term(y, now, now.terms, kStd, z);
  }

  // x'.
  FD_MEMBER Values advance() const {
    Values v = filled<N * M>(0.0f), y = mean(v);
    if (kAccess != kTiles && !has(kDraws)) {
      add_noise(kStep, given(a.p.noise, kStd), v, y);
      if (a.p.mask) add_noise(kKnown, given(a.p.known_noise, kKN), v, y);
      return y;
    }
    // One text of the drawing serves both streams.
    FD_ROLLED
    for (uint32_t stream = kStep; stream <= (a.p.mask ? kKnown : kStep); ++stream) {
      const void* const data = stream == kStep ? a.p.noise : a.p.known_noise;
      const int column = stream == kStep ? kStd : kKN;
      const Values z = data || !has(column_bit(column)) ? given(data, column) : draw(stream);
      add_noise(stream, z, v, y);
    }
    return y;
  }

  FD_MEMBER void store_input(int64_t b, const Values& values) const {
    const auto input = reached<Other<N>>(a.p.model_input, a.p.input_dtype);
    if constexpr (kAccess == kVectors) {
      input.with([&](auto* p) {
        auto* const first = p + b * a.input.sample + quads[0].first;
        put(values, [&](int k, const float (&v)[N]) {
          if (stores(k)) store_floats(first + (k ? quads[k].first - quads[0].first : 0), v);
        });
      });
    } else {
      put(values, [&](int k, const float (&v)[N]) {
        Quad q = quads[k];
        q.b = b;
        store_quad<kAccess>(input, a.input, q, v);
      });
    }
  }

  // c_in of the next row times y, to every batch part.
  FD_MEMBER void write_input(const Values& y) const {
    const Values scaled = y * now.at[kNextCIn];
    int64_t b = quads[0].b;
    int left = a.p.input_copies;
    FD_ROLLED
    do {
      store_input(b, scaled);
      b += a.walk.B;
    } while (--left > 0);
  }

  FD_MEMBER void run() const {
    const Values y = has(kTaken) ? advance() : filled<N * M>(now.at[kNextCIn]);
    if (kAccess == kVectors && a.scattered && !here[0]) return;
    store_state(a.p.out, y);
    if (a.p.model_input) write_input(y);
  }
};

// Quads that a thread computes at once.
FD_FN constexpr int at_once(int access, int width) { return access == kElements ? 1 : kWide / width; }

template <class T, int kAccess, int N>
__global__ void __launch_bounds__(kBlock, 3) reverse_step_kernel(const ReverseStep a) {
  constexpr int M = at_once(kAccess, N);
  Start start = find_start<kAccess>(a.share);
  Current now = read_row(a, start.b);
  Step<T, kAccess, N, M> step{a, now, {}, {}, {}};
  if constexpr (kAccess == kTiles) {
    step.place(start);
    step.run();
  } else {
    const int64_t end = end_of(a.walk, a.share, start);
    if (start.index >= end) {
      if (kAccess != kVectors || !(now.terms & a.scattered)) return;
      now.terms &= kTaken | kDraws | terms_of(kStd);  // all threads draw for others what is exchanged
    }
    do {
      step.place(start);
      step.run();
    } while ((start.index += M * a.share.threads) < end);
  }
}

Strides mask_strides(const ReverseStepParams& p) {
  Strides strides = make_strides(p.state_layout, p.mask_C, p.S);
  if (p.mask_B == 1) strides.sample = 0;
  if (p.mask_C == 1) strides.channel = 0;
  return strides;
}

Access find_access(const ReverseStepParams& p, Walk& walk) {
  const bool shared = p.mask && p.mask_C != p.C;      // by all channels: a quad must be of one
  if (shared && p.S % kQuad != 0) return kElements;
  const auto state = [&](const void* data) { return Operand{data, p.state_dtype, p.state_layout}; };
  return widen_walk(walk, p.state_layout, {state(p.x), state(p.out), state(p.noise), state(p.extra), state(p.known),
                                           state(p.known_noise), state(p.mask), state(p.history),
                                           {p.model_output, p.model_dtype, p.model_layout},
                                           {p.model_input, p.input_dtype, p.input_layout}},
                    !shared || p.S % kWide == 0);
}

// Quads of a thread: it comes back for more where it draws nothing, which would take longer than all else.
int quads_of(const ReverseStepParams& p, Access access, const Walk& walk) {
  return at_once(access, walk.width) * (access == kVectors && !p.rng ? 4 : 1);
}

// Whether all tensors have one order in memory, and no element has to be told from another but for its noise.
bool is_uniform(const ReverseStepParams& p) {
  return !p.learned && (!p.mask || (p.mask_C == p.C && !p.rng)) &&
         (!p.model_output || p.model_layout == p.state_layout) && (!p.model_input || p.input_layout == p.state_layout);
}

ReverseStep arguments_of(const ReverseStepParams& p) {
  return {p, make_walk(p.B, p.C, p.S, p.state_layout), {}, make_call(p), 0, make_strides(p.state_layout, p.C, p.S),
          make_strides(p.model_layout, p.learned ? 2 * p.C : p.C, p.S), make_strides(p.input_layout, p.C, p.S),
          mask_strides(p), make_strides(kChannelsLast, p.C, p.S), p.B * p.C * p.S * dtype_size(p.state_dtype)};
}

// Channels last taken as contiguous, where that can be; false else.
bool scatter(ReverseStepParams p, ReverseStep& arguments) {
  if (p.state_layout != kChannelsLast || !is_uniform(p)) return false;
  p.state_layout = p.model_layout = p.input_layout = kChannelsFirst;
  ReverseStep flat = arguments_of(p);
  flat.scattered = p.rng ? kDraws : 0;
  if (find_access(p, flat.walk) != kVectors || (flat.scattered && !flat.walk.tile_quads)) return false;
  arguments = flat;
  return true;
}

}  // namespace

Status reverse_step(const ReverseStepParams& p, Place place) {
  if (p.model_output && p.model_dtype > kBF16) return {kUnsupported, 0, p.model_dtype};
  if (p.model_input && p.input_dtype > kBF16) return {kUnsupported, 0, p.input_dtype};
  ReverseStep arguments = arguments_of(p);
  const Access access = scatter(p, arguments) ? kVectors : find_access(p, arguments.walk);
  return dispatch(p.state_dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * arguments.walk.quads == 0) return Status{};
    arguments.share = make_share(arguments.walk, arguments.scattered ? kTiles : access,
                                 quads_of(p, access, arguments.walk));
    if (arguments.scattered) arguments.share.length *= arguments.share.threads;
    const auto kernel = kernel_of<T>(arguments.walk, [=](auto width) {
      constexpr int N = decltype(width)::value;
      return kernel_of(access, reverse_step_kernel<Any, kElements, kQuad>, reverse_step_kernel<Loose<T>, kVectors, N>,
                       reverse_step_kernel<Loose<T>, kTiles, N>);
    });
    return launch(kernel, grid_of(arguments.walk, arguments.share), arguments.share.threads, 0, place, arguments);
  });
}

}  // namespace cuda
}  // namespace fastdiff
