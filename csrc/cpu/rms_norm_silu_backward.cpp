// Gradients of rms_norm_silu. With n = x r, h = n gain + shift, dh = grad_y act'(h), and per sample and channel
// P = sum dh, Q = sum dh n over the positions:
//
//     grad_x = r (gain dh - n m), m = mean over channels of gain dh n, or 0 where r is limited
//
// and every other gradient is made of P and Q. A part of a sample's positions has sums of its own, in the workspace, of
// pieces of a bounded length; the parts are added up, and then the batch.
#include "rms_norm.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

constexpr int64_t kSamples = 32;       // of one float32 sum
enum Plane { kSumP, kSumQ, kSumPlanes };   // of the workspace, [B, kRmsParts, kSumPlanes, C]

// Sums of n places, each of pieces of kPiece addends.
template <class S> struct Sums {
  static constexpr int64_t kPiece = 64;
  S *const some, *const total;
  int64_t n, added = 0;

  Sums(S* memory, int64_t n) : some(memory), total(memory + n), n(n) {
    for (int64_t i = 0; i < 2 * n; ++i) memory[i] = 0;
  }
  // After each addend.
  void next() {
    if (++added % kPiece == 0) flush();
  }
  void flush() {
    for (int64_t i = 0; i < n; ++i) total[i] += some[i], some[i] = 0;
  }
};

template <class T, bool kSilu> struct RmsBackward : Rows<T, RmsNormSiluBackwardParams> {
  typedef Rows<T, RmsNormSiluBackwardParams> Base;
  typedef Scalar<T> S;
  typedef Vector<T> V;
  static constexpr int kBlock = 2;     // vectors of positions
  using Base::p;

  explicit RmsBackward(const RmsNormSiluBackwardParams& params) : Base(params) {}

  int64_t padded() const { return (p.C + kLanes<T> - 1) / kLanes<T> * kLanes<T>; }

  S* plane(int64_t b, int64_t part, int plane) const {
    return static_cast<S*>(p.workspace) + ((b * kRmsParts + part) * kSumPlanes + plane) * p.C;
  }

  static FD_INLINE V slope(V grad_y, V n, V gain, V shift) {
    if (!kSilu) return grad_y;
    const V h = madd(n, gain, shift), one = broadcast(S(1)), gate = sigmoid<6>(Pack<V, 1>{{h}}).v[0];
    return grad_y * gate * madd(h, one - gate, one);
  }

  static FD_INLINE void add(S* to, V v) { store(to, load(to) + v); }

  struct Unit {
    const S *gain, *shift;
    S* dh;                             // of a row, or of a block: kBlock vectors a channel
    Sums<S>&P, &Q;                     // a place a channel, or a vector a channel
  };

  // A position's channels.
  void row(const T* x, const T* grad_y, T* grad_x, const Unit& u) const {
    const typename Base::Norm found = this->norm_of_row(x);
    const V r = broadcast(found.r);
    V products = {};
    each_vector<T>(p.C, [&](int64_t c, int lanes) FD_INLINE {
      const V n = load_lanes(x + c, lanes) * r, gain = load(u.gain + c);
      const V dh = slope(load_lanes(grad_y + c, lanes), n, gain, load(u.shift + c));
      store(u.dh + c, dh);
      add(u.P.some + c, dh), add(u.Q.some + c, dh * n);
      products = madd(gain * dh, n, products);
    });
    u.P.next(), u.Q.next();
    if (!grad_x) return;
    const V m = broadcast(found.limited ? S(0) : sum(products) / S(p.C));
    each_vector<T>(p.C, [&](int64_t c, int lanes) FD_INLINE {
      const V n = load_lanes(x + c, lanes) * r;
      store_lanes(grad_x + c, r * (load(u.gain + c) * load(u.dh + c) - n * m), lanes);
    });
  }

  // n positions.
  void block(const T* x, const T* grad_y, T* grad_x, int n, const Unit& u) const {
    typename Base::template Block<kBlock> r, share;
    this->template norms_of_block<kBlock>(x, n, r, share);
    V products[kBlock] = {};
    for (int64_t c = 0; c < p.C; ++c) {
      V P = {}, Q = {};
      for (int k = 0; k * kLanes<T> < n; ++k) {
        const int64_t at = c * p.S + k * kLanes<T>;
        const int lanes = this->lanes_of(k, n);
        const V v = load_lanes(x + at, lanes) * r.v[k], gain = broadcast(u.gain[c]);
        const V dh = slope(load_lanes(grad_y + at, lanes), v, gain, broadcast(u.shift[c]));
        store(u.dh + (c * kBlock + k) * kLanes<T>, dh);
        P += dh, Q = madd(dh, v, Q);
        products[k] = madd(gain * dh, v, products[k]);
      }
      add(u.P.some + c * kLanes<T>, P), add(u.Q.some + c * kLanes<T>, Q);
    }
    u.P.next(), u.Q.next();
    if (!grad_x) return;
    for (int k = 0; k * kLanes<T> < n; ++k) products[k] *= share.v[k];
    for (int64_t c = 0; c < p.C; ++c)
      for (int k = 0; k * kLanes<T> < n; ++k) {
        const int64_t at = c * p.S + k * kLanes<T>;
        const int lanes = this->lanes_of(k, n);
        const V v = load_lanes(x + at, lanes) * r.v[k], dh = load(u.dh + (c * kBlock + k) * kLanes<T>);
        store_lanes(grad_x + at, r.v[k] * (broadcast(u.gain[c]) * dh - v * products[k]), lanes);
      }
  }

  void part(int64_t b, int64_t part, int64_t begin, int64_t end) const {
    const int64_t room = padded(), places = this->last ? room : p.C * kLanes<T>;
    Scratch<S> terms(2 * room), dh(this->last ? room : p.C * kBlock * kLanes<T>), memory(4 * places);
    this->terms(b, terms.data, terms.data + room);
    Sums<S> P(memory.data, places), Q(memory.data + 2 * places, places);
    const Unit u = {terms.data, terms.data + room, dh.data, P, Q};
    const T *x = this->sample(p.x, b), *grad_y = this->sample(p.grad_y, b);
    T* const grad_x = p.grad_x ? this->sample(p.grad_x, b) : nullptr;
    if (this->last)
      for (int64_t s = begin; s < end; ++s) row(x + s * p.C, grad_y + s * p.C, grad_x ? grad_x + s * p.C : nullptr, u);
    else this->template each_block<kBlock>(begin, end, [&](int64_t s, int n) {
      block(x + s, grad_y + s, grad_x ? grad_x + s : nullptr, n, u);
    });
    put(P, plane(b, part, kSumP));
    put(Q, plane(b, part, kSumQ));
  }

  void put(Sums<S>& sums, S* to) const {
    sums.flush();
    for (int64_t c = 0; c < p.C; ++c) to[c] = this->last ? sums.total[c] : sum(load(sums.total + c * kLanes<T>));
  }

  // ---- Gradients of [C] and [B, C] ----

  V at(int64_t b, int64_t part, int plane, int64_t c, int lanes) const {
    return this->get(this->plane(b, part, plane), kArithmetic<T>, c, lanes);
  }

  // A sample's P and Q, into its first part's place; grad_scale = weight Q, grad_shift = P.
  void per_sample(int64_t b) const {
    each_vector<T>(p.C, [&](int64_t c, int lanes) FD_INLINE {
      V P = at(b, 0, kSumP, c, lanes), Q = at(b, 0, kSumQ, c, lanes);
      for (int64_t part = 1; part < this->parts; ++part)
        P += at(b, part, kSumP, c, lanes), Q += at(b, part, kSumQ, c, lanes);
      Any<S>::set(plane(b, 0, kSumQ), kArithmetic<T>, c, lanes, Q);
      if (p.grad_shift) Any<S>::set(p.grad_shift, p.shift_dtype, b * p.C + c, lanes, P);
      if (!p.grad_scale) return;
      const V weight = p.weight ? this->get(p.weight, p.weight_dtype, c, lanes) : broadcast(S(1));
      Any<S>::set(p.grad_scale, p.scale_dtype, b * p.C + c, lanes, weight * Q);
    });
  }

  // grad_weight = sum over b of (1 + scale) Q.
  void per_channel() const {
    each_vector<T>(p.C, [&](int64_t c, int lanes) FD_INLINE {
      V total = {};
      for (int64_t begin = 0; begin < p.B; begin += kSamples) {
        V some = {};
        for (int64_t b = begin; b < p.B && b < begin + kSamples; ++b) {
          const V scale = p.scale ? this->get(p.scale, p.scale_dtype, b * p.scale_stride + c, lanes) : V{};
          some = madd(1 + scale, at(b, 0, kSumQ, c, lanes), some);
        }
        total += some;
      }
      Any<S>::set(p.grad_weight, p.weight_dtype, c, lanes, total);
    });
  }

  void run() const {
    this->each_part([&](int64_t b, int64_t number, int64_t begin, int64_t end) { part(b, number, begin, end); });
    if (!p.grad_weight && !p.grad_scale && !p.grad_shift) return;
    for (int64_t b = 0; b < p.B; ++b) per_sample(b);
    if (p.grad_weight) per_channel();
  }
};

template <class T> Status rms_backward(const RmsNormSiluBackwardParams& p) {
  p.silu ? RmsBackward<T, true>(p).run() : RmsBackward<T, false>(p).run();
  return {};
}

}  // namespace

Status rms_norm_silu_backward(const RmsNormSiluBackwardParams& p) {
  if (p.B == 0 || p.C == 0 || p.S == 0) {
    clear(p.grad_weight, p.C, p.weight_dtype);
    clear(p.grad_scale, p.B * p.C, p.scale_dtype);
    clear(p.grad_shift, p.B * p.C, p.shift_dtype);
    return {};
  }
  switch (p.dtype) {
    case kF32: return rms_backward<float>(p);
    case kF16: return rms_backward<half_t>(p);
    case kBF16: return rms_backward<bfloat16_t>(p);
    case kF64: return FD_FLOAT64(rms_norm_silu_backward, p, rms_backward<double>(p));
  }
  return {kUnsupported, 0, p.dtype};
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
