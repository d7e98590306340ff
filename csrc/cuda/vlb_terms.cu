// The terms of the variational bound in bits per dimension, and their gradient in the network's output.
#include "../likelihood.h"
#include "loss.cuh"

namespace fastdiff {
namespace cuda {
namespace {

typedef Loss<VlbTermsParams> VlbTerms;
typedef VlbSetting<float, float> Setting;
typedef VlbTerm<float> Terms[kQuad];

constexpr double kBitsPerNat = 1.4426950408889634074;

// The row of the sample's t, NaN where there is none; the variance is NaN where the row asks for one that is not there.
FD_DEVICE Setting read_setting(const VlbTermsParams& p, int64_t b) {
  const int64_t t = load(p.t + b);
  const bool exists = t >= 0 && t < p.T;
  Setting s;
  FD_UNROLL
  for (int i = 0; i < kVlbColumns; ++i)
    s.row.at[i] = exists ? load(static_cast<const float*>(p.table) + t * kVlbColumns + i) : nanf("");
  if (s.row.at[kVlbL1] != 0 && !p.learned) s.row.at[kVlbL0] = nanf("");
  s.bound = float(p.bound), s.raw = s.row.at[kVlbRaw] != 0, s.decoder = t == 0, s.exact = p.exact;
  return s;
}

template <int kAccess, class T>
FD_DEVICE void terms(const VlbTerms& a, const Setting& s, const Quad& q, Terms& out) {
  float m[kQuad], v[kQuad] = {}, x0[kQuad], x_t[kQuad];
  load_outputs<kAccess, T>(a, q, s.row.at[kVlbL1] != 0, m, v);
  load_start<kAccess>(a, q, x0);
  load_quad<kAccess>(reached<Any>(a.p.x_t, a.p.x_t_dtype), a.other, q, x_t);
  with_term(s, [&](const auto& term) {
    FD_UNROLL
    for (int j = 0; j < kQuad; ++j) out[j] = term(VlbElement<float>{x0[j], x_t[j], m[j], v[j]}, s);
  });
}

template <class T, int kAccess>
__global__ void __launch_bounds__(kBlock) vlb_terms_kernel(const VlbTerms a) {
  const Setting s = read_setting(a.p, blockIdx.x / a.chunks);
  float sum = 0;
  each_quad<kAccess>(a, [&](const Quad& q) {
    Terms found;
    terms<kAccess, T>(a, s, q, found);
    sum = sum_of<kAccess>(sum, q, [&](float sum, int j) { return sum + found[j].value; });
  });
  put_sum(a, sum, a.p.terms, a.p.workspace);
}

template <class T, int kAccess>
__global__ void __launch_bounds__(kBlock) vlb_terms_backward_kernel(const VlbTerms a) {
  const Quad q = gradient_quad<kAccess>(a);
  if (q.b >= a.walk.B || q.count == 0) return;
  const Setting s = read_setting(a.p, q.b);
  const float upstream = load(static_cast<const float*>(a.p.grad_terms) + q.b);
  const float factor = upstream * weight_of(a.mean, q.b) * float(a.mean.scale);
  Terms found;
  terms<kAccess, T>(a, s, q, found);
  float by_m[kQuad], by_v[kQuad];
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j) {
    by_m[j] = a.p.detach_mean ? 0.0f : found[j].by_m * factor;
    by_v[j] = s.row.at[kVlbL1] == 0 ? 0.0f : found[j].by_v * factor;
  }
  store_gradient<kAccess, T>(a, q, by_m, by_v);
}

Operand x_t_of(const VlbTermsParams& p) { return {p.x_t, p.x_t_dtype, p.x_t_layout}; }

bool is_supported(const VlbTermsParams& p) { return p.x_start_dtype != kF64 && p.x_t_dtype != kF64; }

}  // namespace

Status vlb_terms(const VlbTermsParams& p, Place place) {
  if (!is_supported(p)) return {kUnsupported, 0, kF64};
  VlbTerms a = make_loss(p, x_t_of(p), kBitsPerNat);
  return launch_sums(a, access_of(a, x_t_of(p), nullptr), p.terms, place, [](auto type, Access access) {
    typedef typename decltype(type)::Is T;
    return kernel_of(access, vlb_terms_kernel<Any, kElements>, vlb_terms_kernel<Loose<T>, kVectors>,
                     vlb_terms_kernel<Loose<T>, kTiles>);
  });
}

Status vlb_terms_backward(const VlbTermsParams& p, Place place) {
  if (!is_supported(p)) return {kUnsupported, 0, kF64};
  VlbTerms a = make_loss(p, x_t_of(p), kBitsPerNat);
  const Access access = access_of(a, x_t_of(p), p.grad);
  return launch_gradient(a, access, place, [](auto type, Access access) {
    typedef typename decltype(type)::Is T;
    return kernel_of(access, vlb_terms_backward_kernel<Any, kElements>, vlb_terms_backward_kernel<T, kVectors>,
                     vlb_terms_backward_kernel<Loose<T>, kTiles>);
  });
}

}  // namespace cuda
}  // namespace fastdiff
