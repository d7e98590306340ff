// One row of a sampler plan, every term of it (DESIGN 5), one thread a quad.
#include "../step.h"
#include "quad.cuh"

namespace fastdiff {
namespace cuda {
namespace {

struct ReverseStep {
  ReverseStepParams p;
  Walk walk;
  Strides state, model, input, mask;
};

template <int N>
using Inputs = Element<float>[N];

// A row of the plan as the sample's warp sees it.
struct Current {
  int64_t r;
  Row<float> row;
  uint32_t terms;
};

FD_DEVICE const float* row_address(const ReverseStepParams& p, int64_t r) {
  return static_cast<const float*>(p.rows) + r * kRowColumns;
}

// Whether the call lacks what the row needs.
FD_DEVICE bool lacks_input(const ReverseStepParams& p, const Current& now) {
  const uint32_t terms = now.terms;
  return (terms & (kReadsModel | kReadsVariance) && !p.model_output) || (terms & kReadsVariance && !p.learned) ||
         (terms & kReadsExtra && !p.extra) || ((terms & kReadsHistory || now.row.at[kWrite] >= 0) && !p.history) ||
         (terms & terms_of(kStd) && !p.noise && !p.rng) ||
         (terms & terms_of(kKN) && p.mask && !p.known_noise && !p.rng);
}

// Reads the sample's row; false where it cannot be taken. The whole warp calls this.
FD_DEVICE bool read_row(const ReverseStepParams& p, int64_t b, Current& now) {
  now.r = load(p.row + b * p.row_stride);
  if (now.r < 0 || now.r >= p.R) return false;
  const float* const row = row_address(p, now.r);
  const int lane = threadIdx.x % kWarp;
  now.terms = __ballot_sync(0xffffffffu, lane < kRowColumns && load(row + lane) != 0);
  if (reinterpret_cast<uintptr_t>(row) % 16 == 0) {
    FD_UNROLL
    for (int i = 0; i < kRowColumns; i += 4) {
      const Vec<float, 4> four = load<float, 4>(row + i);
      FD_UNROLL
      for (int j = 0; j < 4; ++j) now.row.at[i + j] = four.at[j];
    }
  } else {
    FD_UNROLL
    for (int i = 0; i < kRowColumns; ++i) now.row.at[i] = load(row + i);
  }
  return !lacks_input(p, now);
}

template <class T, int kAccess, int N>
struct Step {
  const ReverseStep& a;
  const Quad& q;
  const Current& now;

  FD_MEMBER bool has(uint32_t terms) const { return now.terms & terms; }

  FD_MEMBER void load_state(const void* data, float (&v)[N]) const { load_quad<kAccess, T>(data, a.state, q, v); }

  FD_MEMBER T* history(int slot) const { return static_cast<T*>(a.p.history) + slot * a.walk.B * a.walk.C * a.walk.S; }

  // One member of every element, from a state tensor.
  template <float Element<float>::*kMember>
  FD_MEMBER void read(const void* data, Inputs<N>& in) const {
    float v[N];
    load_state(data, v);
    FD_UNROLL
    for (int j = 0; j < N; ++j) in[j].*kMember = v[j];
  }

  FD_MEMBER int64_t conditional() const { return a.p.guided ? q.b + a.walk.B : q.b; }

  // Whether the output's two halves lie side by side, and are loaded as a pair.
  FD_MEMBER bool has_pairs() const { return kAccess == kTiles && a.p.learned && has_runs(a.model); }

  FD_MEMBER void load_model_pair(int64_t b) const {
    const int64_t sample = b * a.model.sample;
    const void* const data = a.p.model_output;
    if constexpr (N == kQuad)
      if (a.p.model_dtype == kF32) return load_pair<N>(q.tile, static_cast<const float*>(data) + sample);
    if (a.p.model_dtype == kF16) load_pair<N>(q.tile, static_cast<const half_t*>(data) + sample);
    else load_pair<N>(q.tile, static_cast<const bfloat16_t*>(data) + sample);
  }

  // The network's output of a sample b, from first_channel on. loaded: the last call was for this b as well.
  FD_MEMBER void load_model(int64_t b, int64_t first_channel, bool loaded, float (&v)[N]) const {
    if (has_pairs()) {
      if (!loaded) load_model_pair(b);
      return take_half(q.tile, int(first_channel), v);
    }
    Quad there = q;
    there.b = b;
    const int64_t skipped = first_channel * a.model.channel * dtype_size(a.p.model_dtype);
    load_quad<kAccess>(a.p.model_dtype, static_cast<const char*>(a.p.model_output) + skipped, a.model, there, v);
  }

  FD_MEMBER uint32_t guidance() const { return a.p.guided ? now.terms & terms_of(kW) : 0; }

  // gain * (m_uncond + w (m_cond - m_uncond)).
  FD_MEMBER void read_model(Inputs<N>& in) const {
    const uint32_t guided = guidance();
    const float gain = a.p.gain ? load(a.p.gain + q.b) : 1.0f;
    float uncond[N], cond[N] = {};
    load_model(q.b, 0, false, uncond);
    if (guided) load_model(conditional(), 0, false, cond);
    FD_UNROLL
    for (int j = 0; j < N; ++j) in[j].m = guide(uncond[j], cond[j], now.row, guided, gain);
  }

  FD_MEMBER void read_variance(Inputs<N>& in) const {
    float v[N];
    load_model(conditional(), a.walk.C, has(kReadsModel) && (guidance() || !a.p.guided), v);
    FD_UNROLL
    for (int j = 0; j < N; ++j) in[j].v = v[j];
  }

  FD_MEMBER void noise(const void* given, uint32_t stream, float (&v)[N]) const {
    if (given) load_state(given, v);
    else draw_quad<kAccess>(a.p.rng, a.p.sample_ids, stream, q, v);
  }

  FD_MEMBER void read(Inputs<N>& in) const {
    if (has(kReadsX)) read<&Element<float>::x>(a.p.x, in);
    if (has(kReadsModel)) read_model(in);
    if (has(kReadsVariance)) read_variance(in);
    if (has(kReadsExtra)) read<&Element<float>::extra>(a.p.extra, in);
    if (has(terms_of(kC1))) read<&Element<float>::h0>(history(0), in);
    if (has(terms_of(kC2))) read<&Element<float>::h1>(history(1), in);
    if (has(terms_of(kC3))) read<&Element<float>::h2>(history(2), in);
    if (!has(terms_of(kStd))) return;
    float z[N];
    noise(a.p.noise, kStep, z);
    FD_UNROLL
    for (int j = 0; j < N; ++j) in[j].noise = z[j];
  }

  // y = mask * y + (1 - mask)(k_0 known + k_n known_noise).
  FD_MEMBER void blend_known(float (&y)[N]) const {
    float mask[N], known[N] = {}, drawn[N] = {};
    load_quad<kAccess, T>(a.p.mask, a.mask, q, mask);
    if (has(terms_of(kK0))) load_state(a.p.known, known);
    if (has(terms_of(kKN))) noise(a.p.known_noise, kKnown, drawn);
    FD_UNROLL
    for (int j = 0; j < N; ++j) y[j] = blend(y[j], mask[j], known[j], drawn[j], now.row, now.terms);
  }

  // y = x', and the row's entry of the history.
  FD_MEMBER void advance(float (&y)[N]) const {
    Inputs<N> in = {};
    read(in);
    const float bound = a.p.bound ? load(a.p.bound + q.b) : now.row.at[kBound];
    const float shrink = a.p.shrink ? load(a.p.shrink + q.b) : 1.0f;
    float kept[N];
    FD_UNROLL
    for (int j = 0; j < N; ++j) {
      const float x0 = estimate_x0(in[j], now.row, now.terms, bound, shrink);
      y[j] = next_state(in[j], x0, now.row, now.terms);
      kept[j] = pushed(in[j], x0, now.row, now.terms);
    }
    const float slot = now.row.at[kWrite];
    if (slot >= 0) store_quad<kAccess, T>(history(int(slot)), a.state, q, kept);
    if (a.p.mask) blend_known(y);
  }

  // c_in of the next row times y, to every batch part.
  FD_MEMBER void write_input(const float (&y)[N]) const {
    const bool has_next = now.r >= 0 && now.r + 1 < a.p.R;
    const float c_in = has_next ? load(row_address(a.p, now.r + 1) + kCIn) : 1.0f;
    float scaled[N];
    FD_UNROLL
    for (int j = 0; j < N; ++j) scaled[j] = y[j] * c_in;
    Quad there = q;
    for (int copy = 0; copy < a.p.input_copies; ++copy, there.b += a.walk.B)
      store_quad<kAccess>(a.p.input_dtype, a.p.model_input, a.input, there, scaled);
  }
};

// As many blocks to a multiprocessor as there are registers for: left to itself, the compiler spills for more.
template <class T, int kAccess, int N>
__global__ void __launch_bounds__(kBlock, kAccess == kElements || N == kWide ? 2 : 3) reverse_step_kernel(const ReverseStep a) {
  const Quad q = find_quad<kAccess, N>(a.walk, a.state);
  if (q.b >= a.walk.B) return;
  Current now;
  const bool taken = read_row(a.p, q.b, now);
  if (q.count == 0) return;
  const Step<T, kAccess, N> step{a, q, now};
  float y[N];
  FD_UNROLL
  for (int j = 0; j < N; ++j) y[j] = nanf("");
  if (taken) step.advance(y);
  store_quad<kAccess, T>(a.p.out, a.state, q, y);
  if (a.p.model_input) step.write_input(y);
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

}  // namespace

Status reverse_step(const ReverseStepParams& p, Place place) {
  if (p.model_output && p.model_dtype > kBF16) return {kUnsupported, 0, p.model_dtype};
  if (p.model_input && p.input_dtype > kBF16) return {kUnsupported, 0, p.input_dtype};
  ReverseStep arguments = {p, make_walk(p.B, p.C, p.S, p.state_layout), make_strides(p.state_layout, p.C, p.S),
                           make_strides(p.model_layout, p.learned ? 2 * p.C : p.C, p.S),
                           make_strides(p.input_layout, p.C, p.S), mask_strides(p)};
  const Access access = find_access(p, arguments.walk);
  return dispatch(p.state_dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * arguments.walk.quads == 0) return Status{};
    const auto kernel = kernel_of<T>(arguments.walk, [=](auto width) {
      constexpr int N = decltype(width)::value;
      return kernel_of(access, reverse_step_kernel<T, kElements, kQuad>, reverse_step_kernel<T, kVectors, N>,
                       reverse_step_kernel<T, kTiles, N>);
    });
    return launch(kernel, grid_of(arguments.walk, access), block_of(arguments.walk, access), 0, place, arguments);
  });
}

}  // namespace cuda
}  // namespace fastdiff
