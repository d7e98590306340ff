// A convolution of any square kernel and stride, channels last, as one matrix product for each block of outputs: the
// inputs of each are gathered to a row, but for a 1x1 kernel, whose rows may lie there. Every output is one sum over the
// taps and, within, the channels in their order: of float, or of pairs of bfloat16 where the level multiplies those.
#include "../arithmetic.h"
#include "arrays.h"
#include "kernels.h"
#include "pages.h"
#include "parallel.h"
#include "product.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

constexpr int64_t kInputs = 64 << 10, kMost = 96;   // floats, and rows, of a block's inputs: they stay in a near cache

// Inputs T, multiplied as E.
template <class T, class E> struct Blocks {
  const ConvolutionParams& p;
  const int64_t terms, depth, outputs;   // of a sum; these and what fills a step; pixels of y
  const bool in_place;                   // whether the rows of inputs lie in x
  int threads;
  int64_t block;

  explicit Blocks(const ConvolutionParams& params)
      : p(params), terms(p.kernel * p.kernel * p.C), depth(rounded_up(terms, Step<E>::kElements)),
        outputs(p.B * p.rows * p.columns),
        in_place(sizeof(T) == sizeof(E) && p.kernel == 1 && p.stride == 1 && p.padding == 0 && depth == terms) {
    threads = useful_threads(outputs * p.O * depth / 64, p.num_threads);
    const int64_t fits = kInputs / depth / kTileRows * kTileRows;
    block = even_block(outputs, fits < kTileRows ? kTileRows : fits < kMost ? fits : kMost, threads);
  }

  // One pixel's channels.
  void copy(const T* from, E* to) const {
    if constexpr (sizeof(T) == sizeof(E)) return (void)memcpy(to, from, p.C * sizeof(E));
    else {
      int64_t c = 0;
      for (; c + kWidth <= p.C; c += kWidth) store(to + c, load(from + c));
      for (; c < p.C; ++c) to[c] = to_float(from[c]);
    }
  }

  // The inputs of one pixel of y, [depth]; what lies outside, or beyond the terms, is 0.
  void gather(int64_t pixel, E* to) const {
    const int64_t b = pixel / (p.rows * p.columns), y = pixel / p.columns % p.rows * p.stride - p.padding;
    const int64_t x = pixel % p.columns * p.stride - p.padding;
    for (int64_t i = y; i < y + p.kernel; ++i)
      for (int64_t j = x; j < x + p.kernel; ++j, to += p.C) {
        const bool inside = i >= 0 && i < p.H && j >= 0 && j < p.W;
        if (inside) copy(static_cast<const T*>(p.x) + ((b * p.H + i) * p.W + j) * p.C, to);
        else memset(to, 0, p.C * sizeof(E));
      }
    memset(to, 0, (depth - terms) * sizeof(E));
  }

  // To y: the sums m [n, panel] of the columns from o on, with bias and residual.
  void finish(int64_t first, int64_t n, int64_t o, const float* m) const {
    for (int64_t k = 0; k < kPanel && o + k < p.O; k += kWidth) {
      const int count = p.O - o - k < kWidth ? int(p.O - o - k) : kWidth;
      const vfloat bias = p.bias ? load_some(p.bias + o + k, count) : vfloat{};
      for (int64_t i = 0; i < n; ++i) {
        const int64_t offset = (first + i) * p.O + o + k;
        vfloat v = load(m + i * kPanel + k) + bias;
        if (p.residual) v += load_some(static_cast<const T*>(p.residual) + offset, count);
        T* to = static_cast<T*>(p.y) + offset;
        count == kWidth ? store(to, v) : store_first(to, v, count);
      }
    }
  }

  void block_of(int64_t first) const {
    const int64_t n = outputs - first < block ? outputs - first : block, steps = depth / Step<E>::kElements;
    Scratch<E> gathered(in_place ? 0 : n * depth);
    Scratch<float> m(n * kPanel);
    const E* v = gathered.data;
    if (in_place) v = static_cast<const E*>(p.x) + first * depth;
    else for (int64_t k = 0; k < n; ++k) gather(first + k, gathered.data + k * depth);
    for (int64_t o = 0; o < p.O; o += kPanel) {
      const float *u = p.filters + o * steps, *next = o + kPanel < p.O ? u + kPanel * steps : p.filters;
      product(n, v, depth, u, next, steps, m.data, kPanel);
      finish(first, n, o, m.data);
    }
  }

  void run() const {
    parallel_for((outputs + block - 1) / block, threads, [&](int64_t i) { block_of(i * block); });
  }
};

// The filters of one tap in a panel, E each: [steps, panel, elements of a step].
template <class E> void pack_tap(const ConvolutionPackParams& p, int64_t o, int64_t tap, E* panel) {
  constexpr int kElements = Step<E>::kElements;
  const auto place = [&](int64_t term, int64_t k) -> E& {
    return panel[(term / kElements * kPanel + k) * kElements + term % kElements];
  };
  const float* from = p.weight + o * p.o_stride + tap * p.tap_stride;
  for (int64_t c = 0; c < p.C; ++c)
    for (int64_t k = 0; k < kPanel; ++k)
      from_float(o + k < p.O ? from[c * p.c_stride + k * p.o_stride] : 0, place(tap * p.C + c, k));
  if (const int64_t terms = p.taps * p.C; tap == p.taps - 1 && terms % kElements)
    for (int64_t k = 0; k < kPanel; ++k) from_float(0, place(terms, k));
}

template <class E> void pack(const ConvolutionPackParams& p) {
  const int64_t panels = (p.O + kPanel - 1) / kPanel, size = kPanel * rounded_up(p.taps * p.C, Step<E>::kElements);
  in_large_pages(p.packed, panels * size * int64_t(sizeof(E)));
  parallel_for(panels * p.taps, useful_threads(panels * size, p.num_threads), [&](int64_t i) {
    pack_tap(p, i / p.taps * kPanel, i % p.taps, static_cast<E*>(p.packed) + i / p.taps * size);
  });
}

template <class T> Status convolve(const ConvolutionParams& p) { return Blocks<T, float>(p).run(), Status{}; }

#if defined(__AVX512BF16__)
template <> Status convolve<bfloat16_t>(const ConvolutionParams& p) {
  return p.pairs ? Blocks<bfloat16_t, bfloat16_t>(p).run() : Blocks<bfloat16_t, float>(p).run(), Status{};
}
#endif

}  // namespace

Status convolution(const ConvolutionParams& p) {
  if (p.B * p.rows * p.columns == 0) return {};
  switch (p.dtype) {
    case kF32: return convolve<float>(p);
    case kF16: return convolve<half_t>(p);
    case kBF16: return convolve<bfloat16_t>(p);
  }
  return {kUnsupported, 0, p.dtype};
}

Status convolution_pack(const ConvolutionPackParams& p) {
#if defined(__AVX512BF16__)
  if (p.pairs) return pack<bfloat16_t>(p), Status{};
#endif
  return pack<float>(p), Status{};
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
