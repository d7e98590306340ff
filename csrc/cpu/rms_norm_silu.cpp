// y = act(n * gain + shift), n = x min(1 / sqrt(mean over channels of x^2 + eps), most), gain = weight (1 + scale).
#include "rms_norm.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

template <class T, bool kSilu> struct RmsForward : Rows<T, RmsNormSiluParams> {
  typedef Rows<T, RmsNormSiluParams> Base;
  typedef Scalar<T> S;
  typedef Vector<T> V;
  using Base::p;

  explicit RmsForward(const RmsNormSiluParams& params) : Base(params) {}

  static FD_INLINE V activate(V h) { return kSilu ? silu_of<T>(h) : h; }

  FD_INLINE void row(const T* x, T* y, V r, const S* gain, const S* shift) const {
    each_vector<T>(p.C, [&](int64_t c, int lanes) FD_INLINE {
      const V n = load_lanes(x + c, lanes) * r;
      store_lanes(y + c, activate(madd(n, load(gain + c), load(shift + c))), lanes);
    });
  }

  // Rows of channels, whose norms are taken some at a time: each is a long way from the sum to the reciprocal root.
  void rows(const T* x, T* y, int64_t n, const S* gain, const S* shift) const {
    constexpr int64_t kSome = 8;
    for (int64_t first = 0; first < n; first += kSome) {
      const int64_t some = n - first < kSome ? n - first : kSome;
      S norms[kSome];
      for (int64_t i = 0; i < some; ++i) norms[i] = this->norm_of_row(x + (first + i) * p.C).r;
      for (int64_t i = 0; i < some; ++i) {
        const int64_t at = (first + i) * p.C;
        row(x + at, y + at, broadcast(norms[i]), gain, shift);
      }
    }
  }

  void block(const T* x, T* y, int n, const S* gain, const S* shift) const {
    typename Base::template Block<Base::kBlock> r, share;
    this->template norms_of_block<Base::kBlock>(x, n, r, share);
    for (int64_t c = 0; c < p.C; ++c)
      for (int k = 0; k * kLanes<T> < n; ++k) {
        const int64_t at = c * p.S + k * kLanes<T>;
        const int lanes = this->lanes_of(k, n);
        const V h = madd(load_lanes(x + at, lanes) * r.v[k], broadcast(gain[c]), broadcast(shift[c]));
        store_lanes(y + at, activate(h), lanes);
      }
  }

  void run() const {
    this->each_part([&](int64_t b, int64_t, int64_t begin, int64_t end) {
      Scratch<S> terms(2 * (p.C + kLanes<T>));
      S *const gain = terms.data, *const shift = gain + p.C + kLanes<T>;
      this->terms(b, gain, shift);
      const T* x = this->sample(p.x, b);
      T* y = this->sample(p.y, b);
      if (this->last) rows(x + begin * p.C, y + begin * p.C, end - begin, gain, shift);
      else this->template each_block<Base::kBlock>(begin, end, [&](int64_t s, int n) {
        block(x + s, y + s, n, gain, shift);
      });
    });
  }
};

template <class T> Status rms_forward(const RmsNormSiluParams& p) {
  p.silu ? RmsForward<T, true>(p).run() : RmsForward<T, false>(p).run();
  return {};
}

}  // namespace

Status rms_norm_silu(const RmsNormSiluParams& p) {
  if (p.B == 0 || p.C == 0 || p.S == 0) return {};
  switch (p.dtype) {
    case kF32: return rms_forward<float>(p);
    case kF16: return rms_forward<half_t>(p);
    case kBF16: return rms_forward<bfloat16_t>(p);
    case kF64: return FD_FLOAT64(rms_norm_silu, p, rms_forward<double>(p));
  }
  return {kUnsupported, 0, p.dtype};
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
