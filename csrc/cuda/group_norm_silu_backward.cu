// Gradients of group_norm_silu. With n = (x + add - mean) * rstd, h = n * gain + offset, dh = drop(grad_y) * act'(h),
// per sample and channel P = sum dh, Q = sum dh n, R = sum n, and over a group of N elements A = sum gain P / N,
// B = sum gain Q / N:
//
//     grad_x = rstd (gain dh - A - n B)         grad_add = rstd (gain P - S A - R B)
//     grad_weight = sum_b (1 + scale) Q         grad_bias = sum_b (1 + scale) P
//     grad_scale = weight Q + bias P            grad_shift = P
//
// Where a group fits on chip one kernel makes the sums and grad_x. Else a block a chunk makes P, Q and R of the chunk,
// a small kernel adds them up, and a third launch, which works dh out again, makes grad_x. The last launch makes every
// other gradient of P, Q, R, A and B. The cut into tiles is group_norm_tiling.h's; the batch is summed in kStrides
// strides, and then these.
#include "clear.cuh"

namespace fastdiff {
namespace cuda {
namespace {

constexpr int kPerThread = 32;
constexpr Wish kWish = {kPerThread, kMaxThreads, 8192};
constexpr Wish kScalarWish = {kPerThread, 256, 4096};   // as many entries in shared memory as elements
constexpr int kMergeThreads = 256, kStrides = 32;

enum Part { kWhole, kSums, kApply };
enum Sum { kP, kQ, kR, kAll };
typedef Vec<float, 4> Four;

struct Backward {
  GroupNormSiluBackwardParams p;
  Tiling tiling;
  Part part;
  bool aligned;
  // The workspace, in this order.
  float* sums;                         // [B, C, 4]: P, Q, R of a sample and channel
  float* partial;                      // [B, position_tiles, C, 4]: of a chunk; absent where groups are whole
  float* means;                        // [B, G, 2]: A and B
};

FD_DEVICE void put(float* sums, int64_t i, const float (&sum)[kAll]) {
  store(sums + 4 * i, Vec<float, 4>{{sum[kP], sum[kQ], sum[kR], 0.0f}});
}

FD_DEVICE void take(const float* sums, int64_t i, float (&sum)[kAll]) {
  const Vec<float, 4> v = load<float, 4>(sums + 4 * i);
  sum[kP] = v.at[0], sum[kQ] = v.at[1], sum[kR] = v.at[2];
}

FD_DEVICE void put(float* means, int64_t group, float mean_a, float mean_b) {
  store(means + 2 * group, Vec<float, 2>{{mean_a, mean_b}});
}

template <class T, int V, bool kLast, bool kFull, bool kDrop>
struct Block {
  typedef Tile<T, V, kLast, kPerThread, kFull> Region;
  typedef typename Region::Values Values;

  const Backward& a;
  const Region& tile;
  // Of a channel: its group's mean less add, rstd, gain and offset; and what grad_x = dh slope + n tilt + level.
  Shared<Four> terms, share;
  Shared<float> mask, scratch;

  FD_MEMBER Block(const Backward& a, const Region& tile, Shared<float> shared)
      : a(a), tile(tile), terms(seen_as<Four>(shared)), share(terms + a.tiling.width),
        mask(seen_as<float>(share + a.tiling.width)),
        scratch(mask + (kDrop ? a.tiling.width * mask_words(a.tiling) : 0)) {}

  // Gain and offset are these times themselves (slope_of_exponent), and what takes that back.
  FD_MEMBER float factor() const { return a.p.silu ? kMinusLog2E : 1.0f; }
  FD_MEMBER float inverse() const { return a.p.silu ? -kLn2 : 1.0f; }

  FD_MEMBER void load_terms() const {
    const Corner at(a.tiling);
    FD_ROLLED
    for (int i = threadIdx.x; i < tile.channels; i += blockDim.x) {
      const int64_t c = at.c + i, g = at.group(a.tiling, i / tile.D);
      const float gain = gain_of(a.p, at.b, c), rstd = load(static_cast<const float*>(a.p.rstd) + g);
      const float center = load(static_cast<const float*>(a.p.mean) + g) - add_of(a.p, at.b, c);
      terms[i] = Four{{center, rstd, factor() * gain, factor() * offset_of(a.p, at.b, c)}};
      if (a.part == kApply) set_share(i, rstd, gain, load(a.means + 2 * g), load(a.means + 2 * g + 1));
    }
  }

  FD_MEMBER void set_share(int c, float rstd, float gain, float mean_a, float mean_b) const {
    share[c] = Four{{rstd * gain, -rstd * mean_b, -rstd * mean_a, 0.0f}};
  }

  FD_MEMBER void drop(Values& grad_y) const {
    if (kLast) {
      tile.each([&](int i, int64_t) {
        apply_mask<kLast>(a.tiling, a.p.drop, mask, tile.row_of(i), tile.column(), grad_y[i]);
      });
    } else {
      tile.each_placed([&](int i, int64_t, int row, int column) {
        apply_mask<kLast>(a.tiling, a.p.drop, mask, row, column, grad_y[i]);
      });
    }
  }

  // x in n becomes n, and grad_y in dh becomes dh.
  FD_MEMBER void differentiate(Values& n, Values& dh) const {
    if (kDrop) drop(dh);
    if (!kLast) return differentiate_rows(n, dh);
    Four of[V];
    get_columns(terms, of);
    tile.each([&](int i, int64_t) {
      FD_UNROLL
      for (int j = 0; j < V; ++j) n[i][j] = (n[i][j] - of[j].at[0]) * of[j].at[1];
    });
    if (!a.p.silu) return;
    tile.each([&](int i, int64_t) {
      FD_UNROLL
      for (int j = 0; j < V; ++j) dh[i][j] *= slope_of_exponent(fmaf(n[i][j], of[j].at[2], of[j].at[3]));
    });
  }

  // Of the channels of the thread's vectors, channels last.
  FD_MEMBER void get_columns(Shared<Four> channels, Four (&of)[V]) const {
    FD_UNROLL
    for (int j = 0; j < V; ++j) of[j] = channels[tile.column() * V + j];
  }

  // Channels first, all in one walk; and P, Q and R, an entry a vector.
  FD_MEMBER void differentiate_rows(Values& n, Values& dh) const {
    const int first = threadIdx.x, more = pitch() - lanes();
    tile.each_placed([&](int i, int64_t, int row, int) {
      const Four of = terms[row];
      FD_UNROLL
      for (int j = 0; j < V; ++j) n[i][j] = (n[i][j] - of.at[0]) * of.at[1];
      if (a.p.silu) {
        FD_UNROLL
        for (int j = 0; j < V; ++j) dh[i][j] *= slope_of_exponent(fmaf(n[i][j], of.at[2], of.at[3]));
      }
      if (a.part == kApply) return;
      float sum[kAll] = {dh[i][0], dh[i][0] * n[i][0], n[i][0]};
      FD_UNROLL
      for (int j = 1; j < V; ++j) sum[kP] += dh[i][j], sum[kQ] = fmaf(dh[i][j], n[i][j], sum[kQ]), sum[kR] += n[i][j];
      put_entry(first + i * tile.active + row * more, sum);
    });
  }

  FD_MEMBER int lanes() const { return kLast ? tile.active / tile.columns : tile.columns; }
  FD_MEMBER int pitch() const { return lanes() | 1; }
  FD_MEMBER void put_entry(int i, const float (&sum)[kAll]) const {
    FD_UNROLL
    for (int k = 0; k < kAll; ++k) entries()[kAll * i + k] = sum[k];
  }
  FD_MEMBER Shared<float> channel_sums() const { return scratch; }
  FD_MEMBER Shared<float> entries() const { return scratch + kAll * a.tiling.width; }

  // Channels last, an entry a thread and channel.
  FD_MEMBER void put_columns(const Values& n, const Values& dh) const {
    FD_UNROLL
    for (int k = 0; k < kAll; ++k) {
      float sum[V] = {};
      FD_UNROLL
      for (int i = 0; i < Region::kVectors; ++i) {
        FD_UNROLL
        for (int j = 0; j < V; ++j)
          sum[j] = k == kP ? sum[j] + dh[i][j] : k == kQ ? fmaf(dh[i][j], n[i][j], sum[j]) : sum[j] + n[i][j];
      }
      if (tile.row() >= lanes()) continue;
      FD_UNROLL
      for (int j = 0; j < V; ++j) entries()[kAll * ((tile.column() * V + j) * pitch() + tile.row()) + k] = sum[j];
    }
  }

  // P, Q and R of the tile's channels, to shared memory or as a chunk's to the workspace.
  FD_MEMBER void sum_channels(const Values& n, const Values& dh) const {
    if (kLast) put_columns(n, dh);
    __syncthreads();
    const int tall = pitch();
    const Shared<float> in = entries(), out = channel_sums();
    sum_rows<kAll>(tile.channels, lanes(), [&](int k, int c, int i) -> float { return in[kAll * (c * tall + i) + k]; },
                   [&](int c, int lane, int, const float (&sum)[kAll]) {
                     if (lane != 0) return;
                     const Corner at(a.tiling);
                     if (a.part == kSums) {
                       const int64_t chunk = int64_t(at.b) * a.tiling.position_tiles + at.position_tile;
                       return put(a.partial, chunk * a.tiling.C + at.c + c, sum);
                     }
                     put(a.sums, at.channel(a.tiling, c), sum);
                     for (int k = 0; k < kAll; ++k) out[k * tile.channels + c] = sum[k];
                   });
    __syncthreads();
  }

  FD_MEMBER float gain_at(int c) const { return Four(terms[c]).at[2]; }   // times factor

  // A and B of the groups, and what they settle.
  FD_MEMBER void sum_groups() const {
    const int D = tile.D, C = tile.channels;
    const Shared<float> in = channel_sums();
    const float back = inverse(), share = back * reciprocal(float(D) * float(a.tiling.S));
    sum_rows<2>(tile.groups, D, [&](int k, int g, int i) { return gain_at(g * D + i) * in[k * C + g * D + i]; },
                [&](int g, int lane, int lanes, const float (&sums)[2]) {
                  const float mean_a = sums[kP] * share, mean_b = sums[kQ] * share;
                  FD_ROLLED
                  for (int c = g * D + lane; c < g * D + D; c += lanes)
                    set_share(c, Four(terms[c]).at[1], back * gain_at(c), mean_a, mean_b);
                  if (lane == 0) put(a.means, Corner(a.tiling).group(a.tiling, g), mean_a, mean_b);
                });
    __syncthreads();
  }

  FD_MEMBER void write(const Values& n, const Values& dh) const {
    if (kLast) {
      Four of[V];
      get_columns(share, of);
      tile.each([&](int i, int64_t at) { write(at, n[i], dh[i], of); });
    } else {
      tile.each_placed([&](int i, int64_t at, int row, int) {
        const Four same = share[row];
        Four of[V];
        FD_UNROLL
        for (int j = 0; j < V; ++j) of[j] = same;
        write(at, n[i], dh[i], of);
      });
    }
  }

  FD_MEMBER void write(int64_t at, const float (&n)[V], const float (&dh)[V], const Four (&of)[V]) const {
    float grad_x[V];
    FD_UNROLL
    for (int j = 0; j < V; ++j) grad_x[j] = fmaf(dh[j], of[j].at[0], fmaf(n[j], of[j].at[1], of[j].at[2]));
    tile.store(a.p.grad_x, a.aligned, at, grad_x);
  }
};

template <class T, int V, bool kLast, bool kFull, bool kDrop>
FD_DEVICE void work(const Backward& a) {
  FD_DYNAMIC_SHARED(float, shared);
  typedef Tile<T, V, kLast, kPerThread, kFull> Region;
  const Region tile(a.tiling, a.p.dtype);
  const Block<T, V, kLast, kFull, kDrop> block(a, tile, shared);
  typename Region::Raw x = {}, grad_y = {};
  typename Region::Values n, dh;
  tile.load(a.p.x, a.aligned, x);
  tile.load(a.p.grad_y, a.aligned, grad_y);
  block.load_terms();
  if (kDrop) draw_mask(tile, a.tiling, a.p.drop, block.mask);
  __syncthreads();
  tile.widen(x, n);
  tile.widen(grad_y, dh);
  block.differentiate(n, dh);
  if (a.part != kApply) block.sum_channels(n, dh);
  if (a.part == kSums) return;
  if (a.part == kWhole) block.sum_groups();
  if (a.p.grad_x) block.write(n, dh);
}

template <class T, int V, bool kLast, bool kFull>
__global__ void __launch_bounds__(kMaxThreads, 1) group_norm_silu_backward_kernel(const Backward a) {
  work<T, V, kLast, kFull, false>(a);
}

template <class T, int V, bool kLast>
__global__ void __launch_bounds__(kMaxThreads, 1) dropout_kernel(const Backward a) {
  work<T, V, kLast, false, true>(a);
}

// P, Q and R of a group's channels from their chunks', a warp a channel, or two where that reads whole sectors; then A
// and B.
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const Backward a) {
  FD_SHARED(float, scratch, 2 * kWarp);
  const int64_t b = blockIdx.x / uint32_t(a.p.G), g = blockIdx.x % uint32_t(a.p.G), D = a.tiling.D;
  const int64_t chunks = a.tiling.position_tiles;
  const int lane = threadIdx.x % kWarp, places = D % 2 ? 1 : 2;
  float totals[2] = {};
  for (int64_t i = threadIdx.x / kWarp * places; i < D; i += kMergeThreads / kWarp * places) {
    const int64_t c = g * D + i + lane % places;
    float sum[kAll] = {};
    for (int64_t chunk = lane / places; chunk < chunks; chunk += kWarp / places) {
      float part[kAll];
      take(a.partial, (b * chunks + chunk) * a.p.C + c, part);
      for (int k = 0; k < kAll; ++k) sum[k] += part[k];
    }
    for (int k = 0; k < kAll; ++k)
      for (int distance = kWarp / 2; distance >= places; distance /= 2) sum[k] += across(sum[k], distance);
    if (lane >= places) continue;
    put(a.sums, b * a.p.C + c, sum);
    const float gain = gain_of(a.p, b, c);
    totals[kP] = fmaf(gain, sum[kP], totals[kP]);
    totals[kQ] = fmaf(gain, sum[kQ], totals[kQ]);
  }
  block_sum(totals, scratch);
  const float share = reciprocal(float(D) * float(a.p.S));
  if (threadIdx.x == 0) put(a.means, blockIdx.x, totals[kP] * share, totals[kQ] * share);
}

// grad_add, grad_scale and grad_shift of a sample and channel.
FD_DEVICE void put_gradients(const Backward& a, int64_t b, int64_t c, const float (&sum)[kAll]) {
  const int64_t i = b * a.p.C + c;
  set_number(a.p.grad_shift, a.p.shift_dtype, i, sum[kP]);
  if (a.p.grad_scale) {
    const float weight = number(a.p.weight, a.p.weight_dtype, c, 1.0f);
    const float bias = number(a.p.bias, a.p.weight_dtype, c, 0.0f);
    set_number(a.p.grad_scale, a.p.scale_dtype, i, fmaf(weight, sum[kQ], bias * sum[kP]));
  }
  if (!a.p.grad_add) return;
  const int64_t group = b * a.p.G + int32_t(c) / int32_t(a.tiling.D);
  const float mean_a = load(a.means + 2 * group), mean_b = load(a.means + 2 * group + 1);
  const float rest = fmaf(gain_of(a.p, b, c), sum[kP], -float(a.p.S) * mean_a);
  const float rstd = load(static_cast<const float*>(a.p.rstd) + group);
  set_number(a.p.grad_add, a.p.add_dtype, i, rstd * fmaf(-sum[kR], mean_b, rest));
}

// Every gradient but grad_x; the batch is summed in kStrides strides, then these.
__global__ void __launch_bounds__(kStrides * kWarp) gradients_kernel(const Backward a) {
  FD_SHARED(float, parts, 2 * kStrides * kWarp);
  const int lane = threadIdx.x % kWarp, stride = threadIdx.x / kWarp;
  const int64_t c = int64_t(blockIdx.x) * kWarp + lane;
  float weight = 0, bias = 0;
  for (int64_t b = stride; c < a.p.C && b < a.p.B; b += kStrides) {
    float sum[kAll];
    take(a.sums, b * a.p.C + c, sum);
    put_gradients(a, b, c, sum);
    const float factor = modulation(a.p, b, c);
    weight = fmaf(factor, sum[kQ], weight);
    bias = fmaf(factor, sum[kP], bias);
  }
  parts[threadIdx.x] = weight;
  parts[kStrides * kWarp + threadIdx.x] = bias;
  __syncthreads();
  if (c >= a.p.C || stride > 1) return;
  float total = 0;
  for (int i = 0; i < kStrides; ++i) total += parts[(stride * kStrides + i) * kWarp + lane];
  set_number(stride ? a.p.grad_bias : a.p.grad_weight, a.p.weight_dtype, c, total);
}

Status clear_all(const GroupNormSiluBackwardParams& p, Place place) {
  Status status = clear(p.grad_weight, p.C, p.weight_dtype, place);
  if (status.code == kOk) status = clear(p.grad_bias, p.C, p.weight_dtype, place);
  if (status.code == kOk) status = clear(p.grad_add, p.B * p.C, p.add_dtype, place);
  if (status.code == kOk) status = clear(p.grad_scale, p.B * p.C, p.scale_dtype, place);
  if (status.code == kOk) status = clear(p.grad_shift, p.B * p.C, p.shift_dtype, place);
  return status;
}

bool has_sums(const GroupNormSiluBackwardParams& p) {
  return p.grad_weight || p.grad_bias || p.grad_add || p.grad_scale || p.grad_shift;
}

Wish wish_of(const Tiling& t) { return t.last || t.vector > 1 ? kWish : kScalarWish; }

Tiling tiling_of(const GroupNormSiluBackwardParams& p) {
  const Tiling t = make_tiling(p.C, p.S, p.G, p.layout, dtype_size(p.dtype), kWish);
  return make_tiling(p.C, p.S, p.G, p.layout, dtype_size(p.dtype), wish_of(t));
}

size_t shared_bytes(const Backward& a) {
  const Tiling& t = a.tiling;
  const int64_t mask = a.p.drop.rng ? t.width * mask_words(t) : 0;
  return sizeof(float) * (8 * t.width + kAll * (t.width + entries_of(t, kWish)) + mask);
}

template <class T, bool kLast>
auto kernel_for(const Backward& a) {
  constexpr int V = 16 / sizeof(T);
  typedef Loose<T> U;
  if (a.p.drop.rng) return a.tiling.vector == 1 ? dropout_kernel<Any, 1, kLast> : dropout_kernel<U, V, kLast>;
  if (a.tiling.vector == 1) return group_norm_silu_backward_kernel<Any, 1, kLast, false>;
  const bool full = a.aligned && is_full(a.tiling, kWish);
  return full ? group_norm_silu_backward_kernel<T, V, kLast, true>
              : group_norm_silu_backward_kernel<U, V, kLast, false>;
}

template <class T>
Status run(Backward a, Place place) {
  const auto kernel = a.tiling.last ? kernel_for<T, true>(a) : kernel_for<T, false>(a);
  const dim3 grid(static_cast<unsigned>(a.p.B * tiles_of(a.tiling))), block(a.tiling.threads);
  const auto pass = [&](Part part) {
    a.part = part;
    return launch(kernel, grid, block, shared_bytes(a), place, a);
  };
  Status status = pass(is_whole(a.tiling) ? kWhole : kSums);
  if (status.code == kOk && !is_whole(a.tiling)) {
    status = launch(merge_kernel, static_cast<unsigned>(a.p.B * a.p.G), kMergeThreads, 0, place, a);
    if (status.code == kOk && a.p.grad_x) status = pass(kApply);
  }
  if (status.code != kOk || !has_sums(a.p)) return status;
  return launch(gradients_kernel, static_cast<unsigned>(divide_up(a.p.C, kWarp)), kStrides * kWarp, 0, place, a);
}

}  // namespace

int64_t group_norm_silu_backward_workspace(const GroupNormSiluBackwardParams& p) {
  const Tiling t = tiling_of(p);
  return 4 * p.B * p.C * (is_whole(t) ? 1 : 1 + t.position_tiles) + 2 * p.B * p.G;
}

Status group_norm_silu_backward(const GroupNormSiluBackwardParams& p, Place place) {
  return dispatch(p.dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * p.C * p.S == 0) return clear_all(p, place);
    const Tiling t = tiling_of(p);
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.grad_y) |
                                reinterpret_cast<uintptr_t>(p.grad_x);
    float* const sums = static_cast<float*>(p.workspace);
    float* const partial = sums + 4 * p.B * p.C;
    float* const means = is_whole(t) ? partial : partial + 4 * p.B * p.C * t.position_tiles;
    return run<T>({p, t, kWhole, addresses % 16 == 0, sums, partial, means}, place);
  });
}

}  // namespace cuda
}  // namespace fastdiff
