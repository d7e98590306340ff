// y = act(n * gain + shift), n = x min(1 / sqrt(mean over channels of x^2 + eps), most), gain = weight * (1 + scale).
//
// A block reads its tile once where its threads hold all channels (rms_norm.cuh); else the chunks twice, the last one
// read being the first one written.
#include "rms_norm.cuh"

namespace fastdiff {
namespace cuda {
namespace {

constexpr int kPerThread = 64;

struct Forward {
  RmsNormSiluParams p;
  Paging paging;
  bool aligned;
  float eps, most;
};

// kWhole: as of Page, and there is an activation.
template <class T, int V, bool kLast, bool kWhole>
struct Block {
  typedef cuda::Page<T, V, kLast, kPerThread, kWhole> Page;
  typedef typename Page::Raw Raw;
  typedef typename Page::Part Part;

  const Forward& a;
  const Page page;
  const Shared<float> terms, deviation, entries;   // terms: of the exponent where there is an activation

  FD_MEMBER Block(const Forward& a, Shared<float> shared)
      : a(a), page(a.paging, a.p.dtype), terms(shared), deviation(terms + 2 * a.paging.channels),
        entries(deviation + a.paging.span) {}

  FD_MEMBER void take_terms(int chunk) const {
    load_terms(a.p, a.paging, page.b, chunk, page.channels(chunk), kWhole || a.p.silu ? kMinusLog2E : 1.0f, terms);
  }

  FD_MEMBER void put_deviations(const typename Page::Pixels& sums) const {
    page.sum_pixels(sums, entries, [&](int pixel, float squares) {
      const float found = deviation_of(squares, a.paging.share, a.eps);
      deviation[pixel] = found > a.most ? a.most : found;
    });
  }

  // kUsual: there is an activation, and part is plain; of 32 bits registers do not suffice for two ways.
  template <bool kUsual>
  FD_MEMBER void write_as(const Part& part, const Raw& raw) const {
    float r[Page::kPixels], gain[Page::kTerms], shift[Page::kTerms];
    const bool silu = kUsual || a.p.silu, plain = kUsual || page.is_plain(part, a.aligned);
    page.take_pixels(deviation, r);
    if (kLast) page.take_terms(terms, 0, gain, shift);
    FD_UNROLL
    for (int i = 0; i < Page::kHeld; ++i) {
      if (!kLast) page.take_terms(terms, i, gain, shift);
      float y[V];
      page.widen(raw[i], y);
      FD_UNROLL
      for (int j = 0; j < V; ++j) y[j] = fmaf(y[j] * r[Page::pixel(i, j)], gain[kLast ? j : 0], shift[kLast ? j : 0]);
      if (silu) {
        FD_UNROLL
        for (int j = 0; j < V; ++j) y[j] = silu_of_exponent(y[j]);
      }
      page.store(part, a.p.y, plain, a.aligned, i, y);
    }
  }

  FD_MEMBER void write(const Part& part, const Raw& raw) const {
    if (!page.exists) return;
    if (kWhole || (kLast && sizeof(T) == 2 && a.p.silu && page.is_plain(part, a.aligned))) write_as<true>(part, raw);
    else write_as<false>(part, raw);
  }
};

template <class T, int V, bool kLast, bool kWhole = false>
__global__ void __launch_bounds__(kMaxThreads, 1) rms_norm_silu_kernel(const Forward a) {
  FD_DYNAMIC_SHARED(float, shared);
  typedef Block<T, V, kLast, kWhole> Block;
  const Block block(a, shared);
  const int last = kWhole ? 0 : a.paging.chunks - 1;
  typename Block::Raw raw;
  typename Block::Page::Pixels sums = {};
  typename Block::Part part;
  for (int chunk = 0; chunk <= last; ++chunk) {
    part = block.page.part(chunk);
    block.page.load(part, a.p.x, a.aligned, raw);
    if (chunk == last) block.take_terms(chunk);
    block.page.add_squares(raw, sums);
  }
  block.put_deviations(sums);
  __syncthreads();
  block.write(part, raw);
  for (int chunk = last - 1; chunk >= 0; --chunk) {
    part = block.page.part(chunk);
    block.page.load(part, a.p.x, a.aligned, raw);
    __syncthreads();                                  // the terms may still be read
    block.take_terms(chunk);
    __syncthreads();
    block.write(part, raw);
  }
}

template <class T>
auto kernel_for(const Paging& t, bool whole) {
  constexpr int V = 16 / sizeof(T);
  if (whole) return rms_norm_silu_kernel<T, V, true, true>;
  if (t.vector == 1) return t.last ? rms_norm_silu_kernel<Any, 1, true> : rms_norm_silu_kernel<Any, 1, false>;
  return t.last ? rms_norm_silu_kernel<Loose<T>, V, true> : rms_norm_silu_kernel<T, V, false>;
}

}  // namespace

Status rms_norm_silu(const RmsNormSiluParams& p, Place place) {
  return dispatch(p.dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * p.C * p.S == 0) return Status{};
    const Paging t = make_paging(p.C, p.S, p.layout, sizeof(T), kPerThread);
    const bool aligned = (reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.y)) % 16 == 0;
    const Forward a = {p, t, aligned, float(p.eps), float(p.most)};
    const size_t shared = sizeof(float) * (2 * t.channels + t.span + pixel_entries_of(t));
    const bool whole = is_whole(t) && aligned && p.silu;
    return launch(kernel_for<T>(t, whole), static_cast<unsigned>(p.B * t.tiles), t.threads, shared, place, a);
  });
}

}  // namespace cuda
}  // namespace fastdiff
