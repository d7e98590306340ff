// What the forward and the backward pass of RMSNorm over the channels + SiLU share: how a tensor is cut, and how it is
// walked.
//
// A unit of work is a part of a sample's positions. Channels last, a position is a row of channels and its terms are
// met lane by lane; channels first, a block of positions is walked channel by channel.
#pragma once
#include "arrays.h"
#include "kernels.h"
#include "parallel.h"
#include "silu.h"

namespace fastdiff {
namespace FD_LEVEL {

template <class T> FD_SIMD Vector<T> silu_of(Vector<T> h) {
  return silu<kDegree<T>>(Pack<Vector<T>, 1>{{h * kFactor<Vector<T>>}}).v[0];
}

template <class T, class Params> struct Rows {
  typedef Scalar<T> S;
  typedef Vector<T> V;
  static constexpr int kBlock = 4;              // vectors of positions walked together, channels first
  static constexpr int64_t kPiece = 32;         // addends of a float32 sum
  static constexpr int64_t kUnit = 8192;        // elements worth a part of their own

  const Params& p;
  bool last;
  int64_t parts, span;                          // of a sample; positions of a part

  explicit Rows(const Params& params) : p(params), last(p.layout == kChannelsLast || p.S == 1) {
    parts = p.C * p.S / kUnit;
    parts = parts < 1 ? 1 : parts > kRmsParts ? kRmsParts : parts;
    span = ((p.S + parts - 1) / parts + 63) / 64 * 64;
    parts = (p.S + span - 1) / span;
  }

  const T* sample(const void* base, int64_t b) const { return static_cast<const T*>(base) + b * p.C * p.S; }
  T* sample(void* base, int64_t b) const { return static_cast<T*>(base) + b * p.C * p.S; }

  V get(const void* base, int32_t dtype, int64_t i, int lanes) const { return Any<S>::get(base, dtype, i, lanes); }

  // unit(b, part, begin, end) of every part, [begin, end) its positions.
  template <class Unit> void each_part(const Unit& unit) const {
    parallel_for(p.B * parts, useful_threads(p.B * p.C * p.S, p.num_threads), [&](int64_t u) {
      const int64_t part = u % parts, begin = part * span, end = begin + span < p.S ? begin + span : p.S;
      unit(u / parts, part, begin, end);
    });
  }

  // gain = weight (1 + scale) and shift of a sample's channels; there is room for a vector more.
  void terms(int64_t b, S* gain, S* shift) const {
    each_vector<T>(p.C, [&](int64_t c, int lanes) FD_INLINE {
      V g = p.weight ? get(p.weight, p.weight_dtype, c, lanes) : broadcast(S(1));
      if (p.scale) g *= 1 + get(p.scale, p.scale_dtype, b * p.scale_stride + c, lanes);
      store(gain + c, g);
      store(shift + c, p.shift ? get(p.shift, p.shift_dtype, b * p.shift_stride + c, lanes) : V{});
    });
  }

  // 1 / sqrt(mean of squares + eps), and whether the limit holds instead.
  struct Norm { S r; bool limited; };
  Norm norm(S squares) const {
    const S r = S(1 / __builtin_sqrt(double(squares) / double(p.C) + p.eps));
    return r >= S(p.most) ? Norm{S(p.most), true} : Norm{r, false};
  }

  // Of a row of channels.
  Norm norm_of_row(const T* x) const {
    V sums[4] = {}, total = {};
    each_vector<T>(p.C, [&](int64_t c, int lanes) FD_INLINE {
      const V v = load_lanes(x + c, lanes);
      V& some = sums[c / kLanes<T> % 4];
      some = madd(v, v, some);
      if (c / kLanes<T> % (4 * kPiece) < 4 * kPiece - 1) return;
      total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
      for (V& each : sums) each = V{};
    });
    return norm(sum(total + ((sums[0] + sums[1]) + (sums[2] + sums[3]))));
  }

  // body(s, n) for blocks of up to N vectors of the positions [begin, end): n positions from s on.
  template <int N, class Body> void each_block(int64_t begin, int64_t end, const Body& body) const {
    constexpr int64_t kMost = N * kLanes<T>;
    for (int64_t s = begin; s < end; s += kMost) body(s, int(end - s < kMost ? end - s : kMost));
  }

  // A value for each of N vectors of positions.
  template <int N> struct Block { V v[N]; };

  // Lanes of the k-th vector of n positions.
  static int lanes_of(int k, int n) {
    const int left = n - k * kLanes<T>;
    return left < kLanes<T> ? left : kLanes<T>;
  }

  // r and 1 / C, or 0 where the limit holds, of n positions from x on, channels first.
  template <int N> FD_INLINE void norms_of_block(const T* x, int n, Block<N>& r, Block<N>& share) const {
    S squares[N * kLanes<T>], shares[N * kLanes<T>];
    for (int k = 0; k * kLanes<T> < n; ++k) {
      V total = {}, some = {};
      for (int64_t c = 0; c < p.C; ++c) {
        const V v = load_lanes(x + c * p.S + k * kLanes<T>, lanes_of(k, n));
        some = madd(v, v, some);
        if (c % kPiece == kPiece - 1) total += some, some = V{};
      }
      store(squares + k * kLanes<T>, total + some);
      for (int i = k * kLanes<T>; i < (k + 1) * kLanes<T>; ++i) {
        const Norm found = norm(squares[i]);
        squares[i] = found.r, shares[i] = found.limited ? S(0) : S(1) / S(p.C);
      }
      r.v[k] = load(squares + k * kLanes<T>), share.v[k] = load(shares + k * kLanes<T>);
    }
  }
};

}  // namespace FD_LEVEL
}  // namespace fastdiff
