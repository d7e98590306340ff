// What the gradient of GroupNorm + SiLU makes of its sums over each sample and channel, whatever walked the memory.
#pragma once
#include "group_norm.h"

namespace fastdiff {
namespace FD_LEVEL {

enum Plane { kP, kQ, kR, kGain, kOffset, kPlanes };   // of the workspace, [B, kPlanes, C]

// With t = k h and gate = 1 / (1 + 2^t) the derivative of SiLU is gate (t (1 - gate) + k) / k, see silu.h.
template <class S> constexpr S factor_of(bool silu) { return silu ? kFactor<Vector<S>> : S(1); }

// The planes of the workspace and what is made of them, alike for every dtype that is computed in S.
template <class S> struct Gradients : Extents<S, GroupNormSiluBackwardParams> {
  typedef Extents<S, GroupNormSiluBackwardParams> Base;
  typedef Vector<S> V;
  using Base::Base; using Base::p; using Base::D; using Base::N;
  static constexpr int64_t kSamples = 32;   // of one float32 sum

  // P and Q; R is for grad_add alone.
  int sums() const { return p.grad_add ? 3 : 2; }

  S* plane(int64_t b, int plane) const { return static_cast<S*>(p.workspace) + (b * kPlanes + plane) * p.C; }

  V at(int64_t b, int plane, int64_t c, int lanes) const { return load_lanes(this->plane(b, plane) + c, lanes); }
  void set(int64_t b, int plane, int64_t c, int lanes, V v) const { store_lanes(this->plane(b, plane) + c, v, lanes); }

  // Sums over d to sums over n: Q = sum dh d rstd + P offset, R = sum d rstd + S offset. Groups may be narrower than a
  // vector: their terms are spread first.
  void finish(int64_t b, int64_t c0, int64_t c1) const {
    ChannelsOf<S> rstds;
    this->each_group(c0, c1, [&](int64_t g, int64_t i0, int64_t i1) FD_INLINE {
      fill(rstds.v + i0, i1 - i0, static_cast<const S*>(p.rstd)[b * p.G + g]);
    });
    const V size = broadcast(S(p.S));
    each_vector<S>(c1 - c0, [&](int64_t i, int lanes) FD_INLINE {
      const int64_t c = c0 + i;
      const V rstd = load(rstds.v + i), offset = at(b, kOffset, c, lanes);
      set(b, kQ, c, lanes, madd(at(b, kQ, c, lanes), rstd, at(b, kP, c, lanes) * offset));
      if (p.grad_add) set(b, kR, c, lanes, madd(at(b, kR, c, lanes), rstd, size * offset));
    });
  }

  // A / N and B / N of the unit's groups.
  void group_means(int64_t b, int64_t g0, int64_t g1, S* means) const {
    ChannelsOf<S> P, Q;
    double A = 0, B = 0;
    this->each_block(g0 * D, g1 * D, kChannels, [&](int64_t c0, int64_t c1) {
      each_vector<S>(c1 - c0, [&](int64_t i, int lanes) FD_INLINE {
        const V gain = at(b, kGain, c0 + i, lanes);
        store(P.v + i, gain * at(b, kP, c0 + i, lanes)), store(Q.v + i, gain * at(b, kQ, c0 + i, lanes));
      });
      this->each_group(c0, c1, [&](int64_t g, int64_t i0, int64_t i1) {
        A += sum_of(P.v + i0, i1 - i0), B += sum_of(Q.v + i0, i1 - i0);
        if (c0 + i1 < (g + 1) * D) return;
        means[2 * (g - g0)] = S(A / double(N)), means[2 * (g - g0) + 1] = S(B / double(N));
        A = B = 0;
      });
    });
  }

  // ---- Gradients of [C] and [B, C] ----

  void put(void* base, int32_t dtype, int64_t i, int lanes, V v) const { Any<S>::set(base, dtype, i, lanes, v); }

  // rstd (gain P - S A / N - R B / N).
  void set_grad_add(int64_t b, int64_t g0, int64_t g1, const S* means) const {
    for (int64_t g = g0; g < g1; ++g) {
      const S rstd = static_cast<const S*>(p.rstd)[b * p.G + g];
      const V level = broadcast(-S(p.S) * means[2 * (g - g0)]), tilt = broadcast(-means[2 * (g - g0) + 1]);
      each_vector<S>(D, [&](int64_t i, int lanes) FD_INLINE {
        const int64_t c = g * D + i;
        const V rest = madd(at(b, kR, c, lanes), tilt, level);
        const V value = madd(at(b, kGain, c, lanes), at(b, kP, c, lanes), rest);
        put(p.grad_add, p.add_dtype, b * p.C + c, lanes, rstd * value);
      });
    }
  }

  // grad_scale = weight Q + bias P, grad_shift = P.
  void per_sample(int64_t b) const {
    const V inverse = broadcast(1 / factor_of<S>(p.silu));
    each_vector<S>(p.C, [&](int64_t c, int lanes) FD_INLINE {
      const V P = inverse * at(b, kP, c, lanes), Q = inverse * at(b, kQ, c, lanes);
      if (p.grad_shift) put(p.grad_shift, p.shift_dtype, b * p.C + c, lanes, P);
      if (!p.grad_scale) return;
      const V weight = p.weight ? this->get(p.weight, p.weight_dtype, c, lanes) : broadcast(S(1));
      const V bias = p.bias ? this->get(p.bias, p.weight_dtype, c, lanes) : broadcast(S(0));
      put(p.grad_scale, p.scale_dtype, b * p.C + c, lanes, madd(weight, Q, bias * P));
    });
  }

  // grad_weight = sum over b of (1 + scale) Q, grad_bias = sum of (1 + scale) P.
  void per_channel() const {
    const V inverse = broadcast(1 / factor_of<S>(p.silu));
    each_vector<S>(p.C, [&](int64_t c, int lanes) FD_INLINE {
      V weight = {}, bias = {};
      for (int64_t begin = 0; begin < p.B; begin += kSamples) {
        V some_weight = {}, some_bias = {};
        for (int64_t b = begin; b < p.B && b < begin + kSamples; ++b) {
          const V scale = p.scale ? this->get(p.scale, p.scale_dtype, b * p.scale_stride + c, lanes) : V{};
          some_weight = madd(1 + scale, at(b, kQ, c, lanes), some_weight);
          some_bias = madd(1 + scale, at(b, kP, c, lanes), some_bias);
        }
        weight += some_weight, bias += some_bias;
      }
      if (p.grad_weight) put(p.grad_weight, p.weight_dtype, c, lanes, inverse * weight);
      if (p.grad_bias) put(p.grad_bias, p.weight_dtype, c, lanes, inverse * bias);
    });
  }
};

}  // namespace FD_LEVEL
}  // namespace fastdiff
