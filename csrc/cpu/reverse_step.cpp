// One row of a sampler plan, every term of it (DESIGN 5), tile by tile.
#include "../step.h"
#include "kernels.h"
#include "tile.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

template <class Real>
Row<Real> load_row(const ReverseStepParams& p, int64_t r) {
  Row<Real> row;
  memcpy(&row, static_cast<const Real*>(p.rows) + r * kRowColumns, sizeof row);
  return row;
}

// The inputs of a tile; those the row does not read are NULL.
template <class Real>
struct Inputs {
  const Real *x, *m, *v, *extra, *h0, *h1, *h2, *noise;
};

// The terms of the element formulas; the other columns are looked at once per tile.
constexpr uint32_t kElementTerms = kReadsX | kReadsModel | kReadsVariance | kReadsExtra | kReadsHistory |
                                   terms_of(kL0, kC0, kStd, kQ0);
constexpr uint32_t kDeterministicTerms = terms_of(kPX, kPM, kCX, kC0);
constexpr uint32_t kAncestralTerms = kDeterministicTerms | terms_of(kStd);

// y[i] = x', and pushed_to[i] where that is not NULL. Inlined with constant terms, this is a loop without branches.
template <class Real>
FD_SIMD void combine(const Inputs<Real>& in, const Row<Real>& row, uint32_t terms, Real bound, Real shrink, int n,
                     Real* y, Real* pushed_to) {
  typedef typename Lanes<Real>::Value Value;
  const Value limit = Value{} + bound;
  for (int i = 0; i < n; i += Lanes<Real>::kCount) {
    Element<Value> e{};
    if (terms & kReadsX) e.x = load(in.x + i);
    if (terms & kReadsModel) e.m = load(in.m + i);
    if (terms & kReadsVariance) e.v = load(in.v + i);
    if (terms & kReadsExtra) e.extra = load(in.extra + i);
    if (terms & terms_of(kC1)) e.h0 = load(in.h0 + i);
    if (terms & terms_of(kC2)) e.h1 = load(in.h1 + i);
    if (terms & terms_of(kC3)) e.h2 = load(in.h2 + i);
    if (terms & terms_of(kStd)) e.noise = load(in.noise + i);
    const Value x0 = estimate_x0(e, row, terms, limit, shrink);
    store(y + i, next_state(e, x0, row, terms));
    if (pushed_to) store(pushed_to + i, pushed(e.x, x0, e.m, row, terms));
  }
}

// The common rows get a loop of their own.
template <class Real>
void combine_tile(const Inputs<Real>& in, const Row<Real>& row, uint32_t terms, Real bound, Real shrink, int n, Real* y,
                  Real* pushed_to) {
  terms &= kElementTerms;
  if (terms == kAncestralTerms && !pushed_to)
    return combine<Real>(in, row, kAncestralTerms, bound, shrink, n, y, nullptr);
  if (terms == kDeterministicTerms && !pushed_to)
    return combine<Real>(in, row, kDeterministicTerms, bound, shrink, n, y, nullptr);
  combine(in, row, terms, bound, shrink, n, y, pushed_to);
}

template <class Real>
struct ReverseStep {
  typedef typename Lanes<Real>::Value Value;
  static constexpr int kCount = Lanes<Real>::kCount;

  struct Buffers {
    Buffer<Real> x, m, conditional, v, extra, h0, h1, h2, noise, known, known_noise, mask, y, pushed;
  };

  const ReverseStepParams& p;
  Grid grid;

  explicit ReverseStep(const ReverseStepParams& params)
      : p(params), grid(make_grid(p.B, p.C, p.S, p.state_layout)) {}

  View state(const void* data) const { return make_view(data, p.state_dtype, p.state_layout, p.C, p.S); }

  View history(int64_t slot) const {
    return state(static_cast<char*>(p.history) + slot * p.B * p.C * p.S * dtype_size(p.state_dtype));
  }

  // The mean channels, or from first_channel = C on the variance.
  View model(int64_t first_channel) const {
    View view = make_view(p.model_output, p.model_dtype, p.model_layout, p.learned ? 2 * p.C : p.C, p.S);
    view.data = address(view, 0, first_channel, 0);
    return view;
  }

  View mask() const {
    View view = make_view(p.mask, p.state_dtype, p.state_layout, p.mask_C, p.S);
    if (p.mask_B == 1) view.sample = 0;
    if (p.mask_C == 1) view.channel = 0;
    return view;
  }

  // The slot a row writes; -1: none.
  static int history_slot(const Row<Real>& row) {
    return row.at[kWrite] == 0 ? 0 : row.at[kWrite] == 1 ? 1 : row.at[kWrite] == 2 ? 2 : -1;
  }

  Status check() const {
    for (int64_t b = 0; b < (p.row_stride ? p.B : 1); ++b) {
      const int64_t r = p.row[b];
      if (r < 0 || r >= p.R) return {kIndexOutOfRange, b, r};
      const int64_t input = missing_input(load_row<Real>(p, r));
      if (input >= 0) return {kMissingInput, input, r};
    }
    return {};
  }

  // What the row needs and the call lacks, or -1.
  int64_t missing_input(const Row<Real>& row) const {
    const uint32_t terms = nonzero_terms(row);
    if (terms & (kReadsModel | kReadsVariance) && !p.model_output) return kNoModelOutput;
    if (terms & kReadsVariance && !p.learned) return kNoVariance;
    if (terms & kReadsExtra && !p.extra) return kNoExtra;
    if ((terms & kReadsHistory || row.at[kWrite] >= 0) && !p.history) return kNoHistory;
    if (terms & terms_of(kStd) && !p.noise && !p.rng) return kNoNoise;
    if (terms & terms_of(kKN) && p.mask && !p.known_noise && !p.rng) return kNoKnownNoise;
    return -1;
  }

  void operator()(const Tile& tile) const {
    Buffers buffers;
    const int64_t r = p.row[tile.b * p.row_stride];
    const Row<Real> row = load_row<Real>(p, r);
    const uint32_t terms = nonzero_terms(row);
    const int slot = history_slot(row);
    const Inputs<Real> in = read(row, terms, tile, buffers);
    const Real bound = p.bound ? Real(p.bound[tile.b]) : row.at[kBound], shrink = p.shrink ? Real(p.shrink[tile.b]) : 1;
    Real* y = p.mask ? buffers.y.at : target(state(p.out), tile, buffers.y);
    Real* pushed_to = slot < 0 ? nullptr : target(history(slot), tile, buffers.pushed);
    combine_tile(in, row, terms, bound, shrink, tile.n, y, pushed_to);
    if (pushed_to) flush<Real>(history(slot), grid, tile, pushed_to);
    if (p.mask) blend_known(row, terms, tile, buffers, y);
    flush<Real>(state(p.out), grid, tile, y);
    if (p.model_input) write_input(r, tile, y, buffers.x);
  }

  // Where to put a tile: the tensor itself if it can be used in place.
  Real* target(const View& view, const Tile& tile, Buffer<Real>& buffer) const {
    Real* there = in_place<Real>(view, grid, tile);
    return there ? there : buffer.at;
  }

  Inputs<Real> read(const Row<Real>& row, uint32_t terms, const Tile& tile, Buffers& to) const {
    Inputs<Real> in{};
    if (terms & kReadsX) in.x = fetch(state(p.x), grid, tile, to.x);
    if (terms & kReadsModel) in.m = mean_output(row, terms, tile, to);
    if (terms & kReadsVariance) in.v = fetch(model(p.C), grid, conditional(tile), to.v);
    if (terms & kReadsExtra) in.extra = fetch(state(p.extra), grid, tile, to.extra);
    if (terms & terms_of(kC1)) in.h0 = fetch(history(0), grid, tile, to.h0);
    if (terms & terms_of(kC2)) in.h1 = fetch(history(1), grid, tile, to.h1);
    if (terms & terms_of(kC3)) in.h2 = fetch(history(2), grid, tile, to.h2);
    if (terms & terms_of(kStd)) in.noise = noise(p.noise, kStep, tile, to.noise);
    return in;
  }

  // The tile in the conditional half of the network's output.
  Tile conditional(const Tile& tile) const { return {p.guided ? tile.b + p.B : tile.b, tile.begin, tile.n}; }

  // gain * (m_uncond + w (m_cond - m_uncond)), the network's output itself where that is all.
  const Real* mean_output(const Row<Real>& row, uint32_t terms, const Tile& tile, Buffers& to) const {
    const Real* uncond = fetch(model(0), grid, tile, to.m);
    const bool guided = p.guided && terms & terms_of(kW);
    if (!guided && !p.gain) return uncond;
    const Real gain = p.gain ? Real(p.gain[tile.b]) : 1;
    const Real* cond = guided ? fetch(model(0), grid, conditional(tile), to.conditional) : uncond;
    const uint32_t guidance = guided ? terms_of(kW) : 0;
    for (int i = 0; i < tile.n; i += kCount)
      store(to.m.at + i, guide<Value>(load(uncond + i), load(cond + i), row, guidance, gain));
    return to.m.at;
  }

  const Real* noise(const void* given, uint32_t stream, const Tile& tile, Buffer<Real>& to) const {
    if (given) return fetch(state(given), grid, tile, to);
    return draw_into(noise_key(p.rng, p.sample_ids, tile.b, stream), grid, tile, to);
  }

  // y = mask * y + (1 - mask)(k_0 known + k_n known_noise).
  void blend_known(const Row<Real>& row, uint32_t terms, const Tile& tile, Buffers& to, Real* y) const {
    const Real* keep = fetch(mask(), grid, tile, to.mask);
    const Real* known = terms & terms_of(kK0) ? fetch(state(p.known), grid, tile, to.known) : keep;
    const Real* drawn = terms & terms_of(kKN) ? noise(p.known_noise, kKnown, tile, to.known_noise) : keep;
    for (int i = 0; i < tile.n; i += kCount)
      store(y + i, blend<Value>(load(y + i), load(keep + i), load(known + i), load(drawn + i), row, terms));
  }

  // c_in of the next row times y, to every batch half.
  void write_input(int64_t r, const Tile& tile, const Real* y, Buffer<Real>& buffer) const {
    const View input = make_view(p.model_input, p.input_dtype, p.input_layout, p.C, p.S);
    const Real c_in = r + 1 < p.R ? load_row<Real>(p, r + 1).at[kCIn] : 1;
    Real* scaled = target(input, tile, buffer);
    for (int i = 0; i < tile.n; i += kCount) store(scaled + i, load(y + i) * c_in);
    for (int copy = 0; copy < p.input_copies; ++copy)
      flush<Real>(input, grid, {tile.b + copy * p.B, tile.begin, tile.n}, scaled);
  }
};

template <class Real>
Status run(const ReverseStepParams& p) {
  const ReverseStep<Real> kernel(p);
  const Status status = kernel.check();
  if (status.code == kOk) for_each_tile(kernel.grid, p.num_threads, kernel);
  return status;
}

}  // namespace

Status reverse_step(const ReverseStepParams& p) {
  if (p.state_dtype > kF64 || p.model_dtype > kF64 || p.input_dtype > kF64) return {kUnsupported, 0, p.state_dtype};
  if (p.B * p.C * p.S == 0) return {};
  return p.state_dtype == kF64 ? FD_FLOAT64(reverse_step, p, run<double>(p)) : run<float>(p);
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
