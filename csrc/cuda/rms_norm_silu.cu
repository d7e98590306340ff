// y = act(n * gain + shift), n = x min(1 / sqrt(mean over channels of x^2 + eps), most), gain = weight * (1 + scale).
//
// A block reads its tile once where its threads hold all channels (rms_norm.cuh); else the chunks twice, the last one
// read being the first one written.
#include "rms_norm.cuh"

namespace fastdiff {
namespace cuda {
namespace {

constexpr int kPerThread = 32;

struct Forward {
  RmsNormSiluParams p;
  Paging paging;
  bool aligned;
  float eps, most;
};

template <class T, int V, bool kLast>
struct Block {
  typedef cuda::Page<T, V, kLast, kPerThread> Page;
  typedef typename Page::Raw Raw;

  const Forward& a;
  const Page page;
  const Shared<float> terms, deviation, entries;

  FD_MEMBER Block(const Forward& a, Shared<float> shared)
      : a(a), page(a.paging), terms(shared), deviation(terms + 2 * a.paging.channels),
        entries(deviation + a.paging.span) {}

  FD_MEMBER void take_terms(int chunk) const { load_terms(a.p, a.paging, page.b, chunk, page.channels(chunk), terms); }

  FD_MEMBER void put_deviations(const typename Page::Pixels& sums) const {
    page.sum_pixels(sums, entries, [&](int pixel, float squares) {
      const float found = deviation_of(squares, a.paging.C, a.eps);
      deviation[pixel] = found > a.most ? a.most : found;
    });
  }

  template <bool kSilu>
  FD_MEMBER void write(int chunk, const Raw& raw) const {
    page.each(chunk, [&](int i, int64_t at) {
      float y[V];
      widen<T, V>(raw[i], y);
      FD_UNROLL
      for (int j = 0; j < V; ++j) {
        const int c = page.channel_index(Page::own(i, j));
        const float n = y[j] * deviation[page.pixel_index(Page::pixel(i, j))];
        const float h = fmaf(n, terms[2 * c], terms[2 * c + 1]);
        y[j] = kSilu ? silu<T>(h) : h;
      }
      page.store(a.p.y, a.aligned, at, y);
    });
  }
};

template <class T, int V, bool kLast>
__global__ void __launch_bounds__(kMaxThreads, 1) rms_norm_silu_kernel(const Forward a) {
  FD_DYNAMIC_SHARED(float, shared);
  const Block<T, V, kLast> block(a, shared);
  const int last = a.paging.chunks - 1;
  typename Block<T, V, kLast>::Raw raw;
  typename Block<T, V, kLast>::Page::Pixels sums = {};
  for (int chunk = 0; chunk <= last; ++chunk) {
    block.page.load(chunk, a.p.x, a.aligned, raw);
    if (chunk == last) block.take_terms(chunk);
    block.page.add_squares(raw, sums);
  }
  block.put_deviations(sums);
  __syncthreads();
  for (int chunk = last; chunk >= 0; --chunk) {
    if (chunk < last) {
      block.page.load(chunk, a.p.x, a.aligned, raw);
      __syncthreads();                                // the terms may still be read
      block.take_terms(chunk);
      __syncthreads();
    }
    if (a.p.silu) block.template write<true>(chunk, raw);
    else block.template write<false>(chunk, raw);
  }
}

template <class T>
auto kernel_for(const Paging& t) {
  constexpr int V = 16 / sizeof(T);
  if (t.vector == 1) return t.last ? rms_norm_silu_kernel<T, 1, true> : rms_norm_silu_kernel<T, 1, false>;
  return t.last ? rms_norm_silu_kernel<T, V, true> : rms_norm_silu_kernel<T, V, false>;
}

}  // namespace

Status rms_norm_silu(const RmsNormSiluParams& p, Place place) {
  return dispatch(p.dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * p.C * p.S == 0) return Status{};
    const Paging t = make_paging(p.C, p.S, p.layout, sizeof(T), kPerThread);
    const bool aligned = (reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.y)) % 16 == 0;
    const Forward a = {p, t, aligned, float(p.eps), float(p.most)};
    const size_t shared = sizeof(float) * (2 * t.channels + t.span + entries_of(t));
    return launch(kernel_for<T>(t), static_cast<unsigned>(p.B * t.tiles), t.threads, shared, place, a);
  });
}

}  // namespace cuda
}  // namespace fastdiff
