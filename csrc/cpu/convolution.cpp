// A convolution of any square kernel and stride, channels last, as one matrix product for each block of outputs: the
// inputs of each are gathered to a row, but for a 1x1 kernel in float, whose rows lie there. Every output is one sum
// over the taps and, within, the channels in their order.
#include "../arithmetic.h"
#include "arrays.h"
#include "kernels.h"
#include "parallel.h"
#include "product.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

constexpr int64_t kInputs = 64 << 10, kMost = 96;   // floats, and rows, of a block's inputs: they stay in a near cache

template <class T> struct Blocks {
  const ConvolutionParams& p;
  const int64_t depth, outputs;   // of a sum; pixels of y
  const bool in_place;            // whether the rows of inputs lie in x
  int threads;
  int64_t block;

  explicit Blocks(const ConvolutionParams& params)
      : p(params), depth(p.kernel * p.kernel * p.C), outputs(p.B * p.rows * p.columns),
        in_place(sizeof(T) == 4 && p.kernel == 1 && p.stride == 1 && p.padding == 0) {
    threads = useful_threads(outputs * p.O * depth / 64, p.num_threads);
    const int64_t fits = kInputs / depth / kTileRows * kTileRows;
    const int64_t share = rounded_up((outputs + threads - 1) / threads, kTileRows);
    block = fits < kTileRows ? kTileRows : fits < kMost ? fits : kMost;
    block = block < share ? block : share;
  }

  // One pixel's channels.
  void copy(const T* from, float* to) const {
    int64_t c = 0;
    for (; c + kWidth <= p.C; c += kWidth) store(to + c, load(from + c));
    for (; c < p.C; ++c) to[c] = to_float(from[c]);
  }

  // The inputs of one pixel of y, [depth]; what lies outside is 0.
  void gather(int64_t pixel, float* to) const {
    const int64_t b = pixel / (p.rows * p.columns), y = pixel / p.columns % p.rows * p.stride - p.padding;
    const int64_t x = pixel % p.columns * p.stride - p.padding;
    for (int64_t i = y; i < y + p.kernel; ++i)
      for (int64_t j = x; j < x + p.kernel; ++j, to += p.C) {
        const bool inside = i >= 0 && i < p.H && j >= 0 && j < p.W;
        if (inside) copy(static_cast<const T*>(p.x) + ((b * p.H + i) * p.W + j) * p.C, to);
        else memset(to, 0, p.C * sizeof(float));
      }
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
    const int64_t n = outputs - first < block ? outputs - first : block;
    Scratch<float> gathered(in_place ? 0 : n * depth), m(n * kPanel);
    const float* v = gathered.data;
    if (in_place) v = reinterpret_cast<const float*>(p.x) + first * depth;
    else for (int64_t k = 0; k < n; ++k) gather(first + k, gathered.data + k * depth);
    for (int64_t o = 0; o < p.O; o += kPanel) {
      const float* u = p.filters + o * depth;
      product(n, v, depth, u, o + kPanel < p.O ? u + kPanel * depth : p.filters, depth, m.data, kPanel);
      finish(first, n, o, m.data);
    }
  }

  void run() const {
    parallel_for((outputs + block - 1) / block, threads, [&](int64_t i) { block_of(i * block); });
  }
};

}  // namespace

Status convolution(const ConvolutionParams& p) {
  if (p.B * p.rows * p.columns == 0) return {};
  switch (p.dtype) {
    case kF32: return Blocks<float>(p).run(), Status{};
    case kF16: return Blocks<half_t>(p).run(), Status{};
    case kBF16: return Blocks<bfloat16_t>(p).run(), Status{};
  }
  return {kUnsupported, 0, p.dtype};
}

Status convolution_pack(const ConvolutionPackParams& p) {
  const int64_t panels = (p.O + kPanel - 1) / kPanel;
  parallel_for(panels * p.taps, useful_threads(panels * kPanel * p.taps * p.C, p.num_threads), [&](int64_t i) {
    const int64_t o = i / p.taps * kPanel, tap = i % p.taps, n = p.O - o < kPanel ? p.O - o : kPanel;
    const float* from = p.weight + o * p.o_stride + tap * p.tap_stride;
    float* to = p.packed + i * p.C * kPanel;
    memset(to, 0, p.C * kPanel * sizeof(float));
    for (int64_t c = 0; c < p.C; ++c)
      for (int64_t k = 0; k < n; ++k) to[c * kPanel + k] = from[c * p.c_stride + k * p.o_stride];
  });
  return {};
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
