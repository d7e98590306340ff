// Gradients of rms_norm_silu. With n = x r, r = min(1 / sqrt(mean over channels of x^2 + eps), most), h = n * gain +
// shift, dh = grad_y * act'(h), and per sample and channel P = sum dh, Q = sum dh n over the positions:
//
//     grad_x = r (gain dh - n m), m = mean over channels of gain dh n, or 0 where r is limited
//     grad_weight = sum_b (1 + scale) Q         grad_scale = weight Q         grad_shift = P
//
// A block makes its tile's grad_x and its share of P and Q; a second kernel adds these up for a sample, a third over
// the batch, each in kStrides strides and then these. Chunks of channels (rms_norm.cuh) are read up to three times.
#include "clear.cuh"
#include "rms_norm.cuh"

namespace fastdiff {
namespace cuda {
namespace {

constexpr int kPerThread = 32, kStrides = 32;
enum Sum { kP, kQ, kAll };

struct Backward {
  RmsNormSiluBackwardParams p;
  Paging paging;
  bool aligned, has_sums;
  float eps, most;
  // The workspace, in this order.
  float* partial;                      // [B, tiles, C, 2]: P and Q of a tile
  float* sums;                         // [B, C, 2]
};

FD_DEVICE void put(float* sums, int64_t i, float P, float Q) { store(sums + 2 * i, Vec<float, 2>{{P, Q}}); }

// kWhole: as of Page, and there is an activation.
template <class T, int V, bool kLast, bool kWhole>
struct Block {
  typedef cuda::Page<T, V, kLast, kPerThread, kWhole> Page;
  typedef typename Page::Values Values;
  typedef typename Page::Part Part;

  const Backward& a;
  const Page page;
  // terms: gain and shift times `factor`, of the exponent where there is an activation. Of a position: r; what its m
  // is a mean by, 1 / C or 0, and then m times `factor`.
  const float factor;
  const Shared<float> terms, deviation, share, entries;

  FD_MEMBER Block(const Backward& a, Shared<float> shared)
      : a(a), page(a.paging, a.p.dtype), factor(kWhole || a.p.silu ? kMinusLog2E : 1.0f), terms(shared),
        deviation(terms + 2 * a.paging.channels), share(deviation + a.paging.span), entries(share + a.paging.span) {}

  FD_MEMBER void load(const Part& part, const void* data, Values& v) const {
    typename Page::Raw raw;
    page.load(part, data, a.aligned, raw);
    page.widen(raw, v);
  }

  FD_MEMBER void take_terms(int chunk) const {
    load_terms(a.p, a.paging, page.b, chunk, page.channels(chunk), factor, terms);
  }

  FD_MEMBER void put_deviations(const typename Page::Pixels& sums) const {
    page.sum_pixels(sums, entries, [&](int pixel, float squares) {
      const float found = deviation_of(squares, a.paging.share, a.eps);
      const bool limited = found >= a.most;
      deviation[pixel] = limited ? a.most : found;
      share[pixel] = limited ? 0.0f : a.paging.share;
    });
  }

  // x becomes n and grad_y dh, 0 where there is nothing.
  FD_MEMBER void differentiate(Values& n, Values& dh) const {
    float r[Page::kPixels];
    if (!page.exists) return;
    page.take_pixels(deviation, r);
    if (kWhole || a.p.silu) differentiate_as<true>(r, n, dh);
    else differentiate_as<false>(r, n, dh);
  }

  template <bool kSilu>
  FD_MEMBER void differentiate_as(const float (&r)[Page::kPixels], Values& n, Values& dh) const {
    float gain[Page::kTerms], shift[Page::kTerms];
    if (kLast && kSilu) page.take_terms(terms, 0, gain, shift);
    FD_UNROLL
    for (int i = 0; i < Page::kHeld; ++i) {
      if (!kLast && kSilu) page.take_terms(terms, i, gain, shift);
      FD_UNROLL
      for (int j = 0; j < V; ++j) {
        n[i][j] *= r[Page::pixel(i, j)];
        if (kSilu) dh[i][j] *= slope_of_exponent(fmaf(n[i][j], gain[kLast ? j : 0], shift[kLast ? j : 0]));
      }
    }
  }

  // dh becomes gain dh, and gain dh n is added to products; both times `factor`.
  FD_MEMBER void weigh(const Values& n, Values& dh, typename Page::Pixels& products) const {
    if (!page.exists) return;
    float gain[Page::kTerms], shift[Page::kTerms];
    if (kLast) page.take_terms(terms, 0, gain, shift);
    FD_UNROLL
    for (int i = 0; i < Page::kHeld; ++i) {
      if (!kLast) page.take_terms(terms, i, gain, shift);
      FD_UNROLL
      for (int j = 0; j < V; ++j) {
        float& sum = products[0][Page::pixel(i, j)];
        dh[i][j] *= gain[kLast ? j : 0];
        sum = fmaf(dh[i][j], n[i][j], sum);
      }
    }
  }

  // P and Q of the tile's channels. There was a barrier since the entries were read.
  FD_MEMBER void put_channels(int chunk, const Values& n, const Values& dh) const {
    typename Page::Channels sums[kAll] = {};
    FD_UNROLL
    for (int i = 0; i < Page::kHeld; ++i) {
      FD_UNROLL
      for (int j = 0; j < V; ++j) {
        const int own = Page::own(i, j);
        sums[kP][own] += dh[i][j];
        sums[kQ][own] = fmaf(dh[i][j], n[i][j], sums[kQ][own]);
      }
    }
    const int64_t at = (page.b * a.paging.tiles + page.tile) * a.paging.C + int64_t(chunk) * a.paging.channels;
    page.template sum_channels<kAll>(sums, entries, [&](int c, const float (&sum)[kAll]) {
      if (c < page.channels(chunk)) put(a.partial, at + c, sum[kP], sum[kQ]);
    });
  }

  FD_MEMBER void put_means(const typename Page::Pixels& sums) const {
    __syncthreads();
    page.sum_pixels(sums, entries, [&](int pixel, float sum) { share[pixel] = share[pixel] * sum; });
    __syncthreads();
  }

  // Of what weigh makes of dh. Of 32 bits, channels last, registers do not suffice for two ways.
  static constexpr bool kMayTell = kWhole || sizeof(T) == 2 || !kLast;

  FD_MEMBER void write(const Part& part, const Values& n, const Values& dh) const {
    if (!page.exists) return;
    const float back = kWhole || a.p.silu ? -kLn2 : 1.0f;   // 1 / factor
    float r[Page::kPixels], mean[Page::kPixels];
    page.take_pixels(deviation, r);
    page.take_pixels(share, mean);
    FD_UNROLL
    for (int i = 0; i < Page::kPixels; ++i) r[i] *= back, mean[i] = -mean[i];
    if (kMayTell && page.is_plain(part, a.aligned)) write_as<true>(part, r, mean, n, dh);
    else write_as<false>(part, r, mean, n, dh);
  }

  template <bool kPlain>
  FD_MEMBER void write_as(const Part& part, const float (&r)[Page::kPixels], const float (&mean)[Page::kPixels],
                          const Values& n, const Values& dh) const {
    const bool plain = kPlain || page.is_plain(part, a.aligned);
    FD_UNROLL
    for (int i = 0; i < Page::kHeld; ++i) {
      float grad_x[V];
      FD_UNROLL
      for (int j = 0; j < V; ++j) {
        const int pixel = Page::pixel(i, j);
        grad_x[j] = r[pixel] * fmaf(n[i][j], mean[pixel], dh[i][j]);
      }
      page.store(part, a.p.grad_x, plain, a.aligned, i, grad_x);
    }
  }
};

template <class T, int V, bool kLast, bool kWhole = false>
__global__ void __launch_bounds__(kMaxThreads, 1) rms_norm_silu_backward_kernel(const Backward a) {
  FD_DYNAMIC_SHARED(float, shared);
  typedef Block<T, V, kLast, kWhole> Block;
  const Block block(a, shared);
  const int last = kWhole ? 0 : a.paging.chunks - 1;
  typename Block::Values n, dh;
  typename Block::Page::Pixels squares = {}, products = {}, again = {};
  typename Block::Part part;
  for (int chunk = 0; chunk <= last; ++chunk) {
    part = block.page.part(chunk);
    block.load(part, a.p.x, n);
    if (chunk == last) block.load(part, a.p.grad_y, dh), block.take_terms(chunk);
    block.page.add_squares(n, squares);
  }
  block.put_deviations(squares);
  __syncthreads();
  for (int chunk = last; chunk >= 0; --chunk) {
    if (chunk < last) {
      part = block.page.part(chunk);
      block.load(part, a.p.x, n), block.load(part, a.p.grad_y, dh);
      __syncthreads();                                // the terms may still be read
      block.take_terms(chunk);
      __syncthreads();
    }
    block.differentiate(n, dh);
    if (a.has_sums) block.put_channels(chunk, n, dh);
    block.weigh(n, dh, products);
  }
  if (!a.p.grad_x) return;
  block.put_means(products);
  for (int chunk = 0; chunk <= last; ++chunk) {
    if (chunk > 0) {
      part = block.page.part(chunk);
      block.load(part, a.p.x, n), block.load(part, a.p.grad_y, dh);
      __syncthreads();
      block.take_terms(chunk);
      __syncthreads();
      block.differentiate(n, dh);
      block.weigh(n, dh, again);
    }
    block.write(part, n, dh);
  }
}

// The sum over i < length of read(n, c, i), to emit(c, sums), c this lane's channel from a first one on.
template <int N, class Read, class Emit>
FD_DEVICE void sum_strides(int64_t first, int64_t C, int64_t length, Shared<float> parts, const Read& read,
                           const Emit& emit) {
  const int lane = threadIdx.x % kWarp, stride = threadIdx.x / kWarp;
  const int64_t c = first + lane;
  float sums[N] = {};
  for (int64_t i = stride; c < C && i < length; i += kStrides) read(c, i, sums);
  for (int n = 0; n < N; ++n) parts[n * kStrides * kWarp + int(threadIdx.x)] = sums[n];
  __syncthreads();
  if (stride != 0 || c >= C) return;
  float totals[N] = {};
  for (int n = 0; n < N; ++n)
    for (int i = 0; i < kStrides; ++i) totals[n] += parts[(n * kStrides + i) * kWarp + lane];
  emit(c, totals);
}

// P and Q of a sample, grad_scale and grad_shift.
__global__ void __launch_bounds__(kStrides * kWarp) sample_kernel(const Backward a) {
  FD_SHARED(float, parts, kAll * kStrides * kWarp);
  const uint32_t blocks = uint32_t(a.paging.C + kWarp - 1) / kWarp;
  const int64_t b = blockIdx.x / blocks, C = a.paging.C, tiles = a.paging.tiles;
  const auto read = [&](int64_t c, int64_t i, float (&sums)[kAll]) {
    const Vec<float, 2> part = load<float, 2>(a.partial + 2 * ((b * tiles + i) * C + c));
    sums[kP] += part.at[kP], sums[kQ] += part.at[kQ];
  };
  const auto emit = [&](int64_t c, const float (&sums)[kAll]) {
    put(a.sums, b * C + c, sums[kP], sums[kQ]);
    set_number(a.p.grad_shift, a.p.shift_dtype, b * C + c, sums[kP]);
    set_number(a.p.grad_scale, a.p.scale_dtype, b * C + c, number(a.p.weight, a.p.weight_dtype, c, 1.0f) * sums[kQ]);
  };
  sum_strides<kAll>(int64_t(blockIdx.x % blocks) * kWarp, C, tiles, parts, read, emit);
}

// grad_weight.
__global__ void __launch_bounds__(kStrides * kWarp) batch_kernel(const Backward a) {
  FD_SHARED(float, parts, kStrides * kWarp);
  const int64_t C = a.paging.C;
  const auto read = [&](int64_t c, int64_t b, float (&sums)[1]) {
    sums[0] = fmaf(modulation(a.p, b, c), load(a.sums + 2 * (b * C + c) + kQ), sums[0]);
  };
  sum_strides<1>(int64_t(blockIdx.x) * kWarp, C, a.p.B, parts, read, [&](int64_t c, const float (&sums)[1]) {
    set_number(a.p.grad_weight, a.p.weight_dtype, c, sums[0]);
  });
}

Status clear_all(const RmsNormSiluBackwardParams& p, Place place) {
  Status status = clear(p.grad_weight, p.C, p.weight_dtype, place);
  if (status.code == kOk) status = clear(p.grad_scale, p.B * p.C, p.scale_dtype, place);
  if (status.code == kOk) status = clear(p.grad_shift, p.B * p.C, p.shift_dtype, place);
  return status;
}

template <class T>
auto kernel_for(const Paging& t, bool whole) {
  constexpr int V = 16 / sizeof(T);
  if (whole) return rms_norm_silu_backward_kernel<T, V, true, true>;
  if (t.vector == 1)
    return t.last ? rms_norm_silu_backward_kernel<Any, 1, true> : rms_norm_silu_backward_kernel<Any, 1, false>;
  return t.last ? rms_norm_silu_backward_kernel<Loose<T>, V, true> : rms_norm_silu_backward_kernel<Loose<T>, V, false>;
}

template <class T>
Status run(const Backward& a, Place place) {
  const Paging& t = a.paging;
  const size_t shared = sizeof(float) * (2 * t.channels + 2 * t.span + kAll * entries_of(t));
  const unsigned blocks = static_cast<unsigned>(divide_up(t.C, kWarp));
  const auto kernel = kernel_for<T>(t, is_whole(t) && a.aligned && a.p.silu);
  Status status = launch(kernel, static_cast<unsigned>(a.p.B * t.tiles), t.threads, shared, place, a);
  if (status.code != kOk || !a.has_sums) return status;
  status = launch(sample_kernel, static_cast<unsigned>(a.p.B) * blocks, kStrides * kWarp, 0, place, a);
  if (status.code != kOk || !a.p.grad_weight) return status;
  return launch(batch_kernel, blocks, kStrides * kWarp, 0, place, a);
}

}  // namespace

int64_t rms_norm_silu_backward_workspace(const RmsNormSiluBackwardParams& p) {
  if (p.B * p.C * p.S == 0) return 0;
  return 2 * p.B * p.C * (1 + make_paging(p.C, p.S, p.layout, dtype_size(p.dtype), kPerThread).tiles);
}

Status rms_norm_silu_backward(const RmsNormSiluBackwardParams& p, Place place) {
  return dispatch(p.dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * p.C * p.S == 0) return clear_all(p, place);
    const Paging t = make_paging(p.C, p.S, p.layout, sizeof(T), kPerThread);
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.grad_y) |
                                reinterpret_cast<uintptr_t>(p.grad_x);
    float* const partial = static_cast<float*>(p.workspace);
    return run<T>({p, t, addresses % 16 == 0, p.grad_weight || p.grad_scale || p.grad_shift, float(p.eps),
                   float(p.most), partial, partial + 2 * p.B * p.C * t.tiles}, place);
  });
}

}  // namespace cuda
}  // namespace fastdiff
