// The terms of the variational bound in bits per dimension, and their gradient in the network's output.
#include "kernels.h"
#include "loss.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

constexpr double kBitsPerNat = 1.4426950408889634074;

template <class Real>
struct VlbTerms {
  typedef typename Lanes<Real>::Value Value;
  static constexpr int kCount = Lanes<Real>::kCount;
  typedef VlbSetting<Value, Real> Setting;

  struct Buffers {
    Buffer<Real> m, v, x0, x_t;
  };

  struct Inputs {
    const Real *m, *v, *x0, *x_t;   // v: NULL where the row does not read it
    bool bytes;
  };

  const VlbTermsParams& p;
  Grid grid;

  explicit VlbTerms(const VlbTermsParams& params)
      : p(params), grid(make_grid(p.B, p.C, p.H * p.W, p.model_layout)) {}

  Setting setting(int64_t b) const {
    Setting s;
    memcpy(&s.row, static_cast<const Real*>(p.table) + p.t[b] * kVlbColumns, sizeof s.row);
    s.bound = Value{} + Real(p.bound), s.raw = s.row.at[kVlbRaw] != 0, s.decoder = p.t[b] == 0, s.exact = p.exact;
    return s;
  }

  // Whether a row asks for a variance that the network does not give.
  Status check() const {
    for (int64_t b = 0; b < p.B; ++b)
      if (!p.learned && setting(b).row.at[kVlbL1] != 0) return {kMissingInput, kNoVariance, p.t[b]};
    return {};
  }

  Inputs read(const Tile& tile, const Setting& s, Buffers& to) const {
    Inputs in{};
    in.m = fetch(model_view(p, p.model_output, 0), grid, tile, to.m);
    if (s.row.at[kVlbL1] != 0) in.v = fetch(model_view(p, p.model_output, p.C), grid, tile, to.v);
    in.x0 = start_tile(p, grid, tile, to.x0);
    in.x_t = fetch(make_view(p.x_t, p.x_t_dtype, p.x_t_layout, p.C, grid.S), grid, tile, to.x_t);
    in.bytes = p.x_start_dtype == kU8;
    return in;
  }

  FD_SIMD VlbElement<Value> element(const Inputs& in, int i, int count) {
    const Value x0 = zero_or(in.x0, i, count);
    return {in.bytes ? scale_byte(x0) : x0, zero_or(in.x_t, i, count), zero_or(in.m, i, count), zero_or(in.v, i, count)};
  }

  double operator()(const Tile& tile) const {
    Buffers buffers;
    const Setting s = setting(tile.b);
    const Inputs in = read(tile, s, buffers);
    double sum = 0;
    with_term(s, [&](const auto& term) {
      sum = sum_terms<Real>(tile.n, [&](int i, int count) { return term(element(in, i, count), s).value; });
    });
    return sum;
  }

  void differentiate(const Tile& tile) const {
    Buffers buffers;
    Buffer<Real> by_m, by_v;
    const Setting s = setting(tile.b);
    const Inputs in = read(tile, s, buffers);
    const Real factor = Real(kBitsPerNat * entry<Real>(p.grad_terms, tile.b) * mean_factor<Real>(p, tile.b));
    with_term(s, [&](const auto& term) {
      for (int i = 0; i < tile.n; i += kCount) {
        const int left = tile.n - i;
        const VlbTerm<Value> found = term(element(in, i, left < kCount ? left : kCount), s);
        store(by_m.at + i, found.by_m * factor), store(by_v.at + i, found.by_v * factor);
      }
    });
    if (p.detach_mean) memset(by_m.at, 0, sizeof by_m);
    if (!in.v) memset(by_v.at, 0, sizeof by_v);
    flush<Real>(model_view(p, p.grad, 0), grid, tile, by_m.at);
    if (p.learned) flush<Real>(model_view(p, p.grad, p.C), grid, tile, by_v.at);
  }
};

template <class Real>
Status forward(const VlbTermsParams& p) {
  const VlbTerms<Real> kernel(p);
  const Status status = kernel.check();
  if (status.code != kOk) return status;
  sum_samples<Real>(kernel.grid, p.num_threads, p.workspace, p.terms, kernel,
                    [&](int64_t b) { return kBitsPerNat * mean_factor<Real>(p, b); });
  return status;
}

template <class Real>
Status backward(const VlbTermsParams& p) {
  const VlbTerms<Real> kernel(p);
  const Status status = kernel.check();
  if (status.code == kOk)
    for_each_tile(kernel.grid, p.num_threads, [&](const Tile& tile) { kernel.differentiate(tile); });
  return status;
}

Status check(const VlbTermsParams& p) {
  if (p.x_start_dtype > kU8 || p.x_t_dtype > kF64 || p.model_dtype > kF64) return {kUnsupported, 0, p.model_dtype};
  return check_timesteps(p);
}

}  // namespace

Status vlb_terms(const VlbTermsParams& p) {
  const Status status = check(p);
  if (status.code != kOk) return status;
  return p.model_dtype == kF64 ? FD_FLOAT64(vlb_terms, p, forward<double>(p)) : forward<float>(p);
}

Status vlb_terms_backward(const VlbTermsParams& p) {
  const Status status = check(p);
  if (status.code != kOk) return status;
  return p.model_dtype == kF64 ? FD_FLOAT64(vlb_terms_backward, p, backward<double>(p)) : backward<float>(p);
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
