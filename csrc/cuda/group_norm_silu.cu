// y = drop(act((x + add - mean) * rstd * gain + offset)) + residual, gain = weight * (1 + scale), offset = bias * (1 +
// scale) + shift; statistics per sample and group.
//
// Where a group fits on chip one kernel reads x once. Else a block a chunk makes the chunk's statistics, and a last
// launch reads x again; each of its blocks merges those of its groups, or where they are many a launch between does.
// Statistics are two-pass within a tile, the second about the first's mean and correcting it, and Chan's between tiles.
// The cut into tiles is that of group_norm_tiling.h. Dropout and a residual are in kernels of their own, so that they
// cost nothing elsewhere.
#include "group_norm.cuh"

namespace fastdiff {
namespace cuda {
namespace {

constexpr int kPerThread = 64;
constexpr Wish kWish = {kPerThread, kMaxThreads, 8192};
constexpr int64_t kFewRecords = 32;    // so many are merged by every block that needs them

enum Part { kWhole, kStatistics, kApply };

// Of count values: their mean is mean + low, squares is the sum of squared deviations.
struct Moments {
  float count, mean, low, squares;
};

struct Forward {
  GroupNormSiluParams p;
  Tiling tiling;
  Part part;
  bool aligned;
  float* moments;                      // [B, chunks, G] of Moments; what is merged, for kApply
  int64_t chunks;
  float eps;
};

FD_DEVICE void put(float* moments, int64_t i, const Moments& m) {
  store(moments + 4 * i, Vec<float, 4>{{m.count, m.mean, m.low, m.squares}});
}

FD_DEVICE Moments take(const float* moments, int64_t i) {
  const Vec<float, 4> m = load<float, 4>(moments + 4 * i);
  return {m.at[0], m.at[1], m.at[2], m.at[3]};
}

// The sum over the lanes of a lane's number in its place among `places` ones, in every lane.
FD_DEVICE float sum_lanes(float v, int places) {
  FD_ROLLED
  for (int distance = kWarp / 2; distance >= places; distance /= 2) v += across(v, distance);
  return v;
}

// Chan's formula by a warp, means taken relative to the first chunk's, for each of `places` groups side by side, 1 or
// 2: sectors are read whole. A lane has the group of its place.
FD_DEVICE Moments merge(const float* moments, int64_t groups, int64_t chunks, int places) {
  const int lane = threadIdx.x % kWarp, place = lane & (places - 1), first = lane / places, step = kWarp / places;
  const float reference = take(moments, place).mean;
  float count = 0, distance = 0, squares = 0;
  FD_ROLLED
  for (int64_t i = first; i < chunks; i += step) {
    const Moments m = take(moments, i * groups + place);
    count += m.count;
    distance += m.count * (m.mean - reference + m.low);
  }
  count = sum_lanes(count, places);
  distance = sum_lanes(distance, places) * reciprocal(count);
  FD_ROLLED
  for (int64_t i = first; i < chunks; i += step) {
    const Moments m = take(moments, i * groups + place);
    const float off = m.mean - reference + m.low - distance;
    squares += fmaf(m.count * off, off, m.squares);
  }
  const float mean = reference + distance;
  return {count, mean, reference - mean + distance, sum_lanes(squares, places)};
}

template <class T, int V, bool kLast, bool kFull, bool kEpilogue>
struct Block {
  typedef Tile<T, V, kLast, kPerThread, kFull> Region;
  typedef typename Region::Values Values;
  static constexpr int kSums = kLast ? V : V < 2 ? 1 : 2;   // of a thread: channels last, one a channel

  const Forward& a;
  const Region& tile;
  // Of a channel: center is its group's mean (channels first there is but one), map its gain and offset, those of
  // x + add - center in the end.
  Shared<float> mask, add, map, center, scratch;

  FD_MEMBER Block(const Forward& a, const Region& tile, Shared<float> shared)
      : a(a), tile(tile), mask(shared), add(mask + (kEpilogue ? a.tiling.width * mask_words(a.tiling) : 0)),
        map(add + a.tiling.width), center(map + 2 * a.tiling.width),
        scratch(center + a.tiling.width) {}

  FD_MEMBER void load_terms() const {
    const Corner at(a.tiling);
    FD_ROLLED
    for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
      if (a.p.add) add[c] = add_of(a.p, at.b, at.c + c);
      if (a.part == kStatistics) continue;
      map[2 * c] = gain_of(a.p, at.b, at.c + c);
      map[2 * c + 1] = offset_of(a.p, at.b, at.c + c);
    }
  }

  FD_MEMBER void set_center(int g, int lane, int lanes, float mean) const {
    if (!kLast && lane == 0) center[0] = mean;
    FD_ROLLED
    for (int c = g * tile.D + lane; kLast && c < (g + 1) * tile.D; c += lanes) center[c] = mean;
  }

  // emit(group, lane, lanes, sums), by every lane of a group, of the thread's sums per column element.
  template <int N, class Emit>
  FD_MEMBER void sum_groups(const float (&mine)[N][kSums], const Emit& emit) const {
    if (kLast && tile.groups > 1) sum_channels(mine, emit);
    else {
      float sums[N] = {};
      FD_UNROLL
      for (int n = 0; n < N; ++n) {
        FD_UNROLL
        for (int j = 0; j < kSums; ++j) sums[n] += mine[n][j];
      }
      block_sum(sums, scratch);
      emit(0, int32_t(threadIdx.x), int32_t(blockDim.x), sums);
    }
    __syncthreads();
  }

  // By channel, then by group.
  template <int N, class Emit>
  FD_MEMBER void sum_channels(const float (&mine)[N][kSums], const Emit& emit) const {
    const int lanes = tile.active / tile.columns, pitch = lanes | 1, all = tile.channels * pitch;
    const Shared<float> sums = scratch, entries = scratch + N * tile.channels;
    if (tile.row() < lanes) {
      FD_UNROLL
      for (int n = 0; n < N; ++n) {
        FD_UNROLL
        for (int j = 0; j < kSums; ++j) entries[n * all + (tile.column() * V + j) * pitch + tile.row()] = mine[n][j];
      }
    }
    __syncthreads();
    sum_rows<N>(tile.channels, lanes, [&](int n, int c, int i) -> float { return entries[n * all + c * pitch + i]; },
                [&](int c, int first, int, const float (&sum)[N]) {
                  for (int n = 0; n < N; ++n)
                    if (first == 0) sums[n * tile.channels + c] = sum[n];
                });
    __syncthreads();
    sum_rows<N>(tile.groups, tile.D,
                [&](int n, int g, int i) -> float { return sums[n * tile.channels + g * tile.D + i]; }, emit);
  }

  // A group's moments into its channels' gain and offset, by its lanes.
  FD_MEMBER void settle(int g, int lane, int lanes, const Moments& m, bool write) const {
    const float rstd = reciprocal_sqrt(fmaf(fmaxf(m.squares, 0.0f), reciprocal(m.count), a.eps));
    FD_ROLLED
    for (int c = g * tile.D + lane; c < (g + 1) * tile.D; c += lanes) {
      const float gain = rstd * map[2 * c];
      map[2 * c] = gain;
      map[2 * c + 1] = fmaf(-m.low, gain, map[2 * c + 1]);
    }
    if (!write || lane != 0) return;
    const int64_t group = Corner(a.tiling).group(a.tiling, g);
    store(static_cast<float*>(a.p.mean) + group, m.mean + m.low);
    store(static_cast<float*>(a.p.rstd) + group, rstd);
  }

  // v becomes v - center.
  FD_MEMBER void centre(Values& v) const {
    if (kLast)
      each_with<1>(tile, center, [&](int i, int64_t, const float (&mean)[1][V]) {
        FD_UNROLL
        for (int j = 0; j < V; ++j) v[i][j] -= mean[0][j];
      });
    if (kLast) return;
    const float mean = center[0];
    tile.each([&](int i, int64_t) {
      FD_UNROLL
      for (int j = 0; j < V; ++j) v[i][j] -= mean;
    });
  }

  FD_MEMBER void find_means(const Values& v, float count) const {
    float sum[1][kSums] = {};
    FD_UNROLL
    for (int i = 0; i < Region::kVectors; ++i) {
      FD_UNROLL
      for (int j = 0; j < V; ++j) sum[0][j % kSums] += v[i][j];
    }
    sum_groups<1>(sum, [&](int g, int lane, int lanes, const float (&sums)[1]) {
      set_center(g, lane, lanes, sums[0] * reciprocal(count));
    });
  }

  FD_MEMBER void put_chunk(int g, const Moments& m) const {
    const Corner at(a.tiling);
    put(a.moments, (at.b * a.chunks + at.chunk) * a.tiling.G + at.g + g, m);
  }

  // The tile's statistics; v becomes v - center.
  FD_MEMBER void measure(Values& v) const {
    const float count = float(tile.D) * float(tile.positions);
    find_means(v, count);
    centre(v);
    float sums[2][kSums] = {};
    FD_UNROLL
    for (int i = 0; i < Region::kVectors; ++i) {
      FD_UNROLL
      for (int j = 0; j < V; ++j) {
        sums[0][j % kSums] += v[i][j];
        sums[1][j % kSums] = fmaf(v[i][j], v[i][j], sums[1][j % kSums]);
      }
    }
    sum_groups<2>(sums, [&](int g, int lane, int lanes, const float (&sum)[2]) {
      const float low = sum[0] * reciprocal(count);
      const Moments m = {count, center[kLast ? g * tile.D : 0], low, fmaf(-low, sum[0], sum[1])};
      if (a.part == kWhole) settle(g, lane, lanes, m, true);
      else if (lane == 0) put_chunk(g, m);
    });
  }

  // The groups' statistics, merged.
  FD_MEMBER void recall() const {
    const int lane = threadIdx.x % kWarp;
    const Corner at(a.tiling);
    for (int g = threadIdx.x / kWarp; g < tile.groups; g += blockDim.x / kWarp) {
      const float* const first = a.moments + 4 * (at.b * a.chunks * a.tiling.G + at.g + g);
      const Moments m = a.chunks == 1 ? take(first, 0) : merge(first, a.tiling.G, a.chunks, 1);
      set_center(g, lane, kWarp, m.mean);
      settle(g, lane, kWarp, m, at.chunk == 0);
    }
    __syncthreads();
  }

  FD_MEMBER void plus_add(Values& v) const {
    each_with<1>(tile, add, [&](int i, int64_t, const float (&more)[1][V]) {
      FD_UNROLL
      for (int j = 0; j < V; ++j) v[i][j] += more[0][j];
    });
  }

  FD_MEMBER void write(const Values& v) const {
    each_placed_with<2>(tile, map, [&](int i, int64_t at, const float (&map)[2][V], int row, int column) {
      float y[V];
      FD_UNROLL
      for (int j = 0; j < V; ++j) y[j] = fmaf(v[i][j], map[0][j], map[1][j]);
      if (a.p.silu) {
        with_size<T>(tile.dtype, [&](auto type) {
          FD_UNROLL
          for (int j = 0; j < V; ++j) y[j] = silu<typename decltype(type)::Is>(y[j]);
        });
      }
      if (kEpilogue) finish(at, row, column, y);
      tile.store(a.p.y, a.aligned, at, y);
    });
  }

  FD_MEMBER void finish(int64_t at, int row, int column, float (&y)[V]) const {
    if (a.p.drop.rng) apply_mask<kLast>(a.tiling, a.p.drop, mask, row, column, y);
    if (!a.p.residual) return;
    float residual[V];
    tile.get(a.p.residual, a.aligned, at, residual);
    FD_UNROLL
    for (int j = 0; j < V; ++j) y[j] += residual[j];
  }
};

template <class T, int V, bool kLast, bool kFull, bool kEpilogue>
FD_DEVICE void work(const Forward& a) {
  FD_DYNAMIC_SHARED(float, shared);
  typedef Tile<T, V, kLast, kPerThread, kFull> Region;
  const Region tile(a.tiling, a.p.dtype);
  const Block<T, V, kLast, kFull, kEpilogue> block(a, tile, shared);
  typename Region::Raw raw = {};
  typename Region::Values v;
  // Before the load, whose registers would not all fit beside the generator's.
  if (kEpilogue && a.p.drop.rng && a.part != kStatistics) draw_mask(tile, a.tiling, a.p.drop, block.mask);
  tile.load(a.p.x, a.aligned, raw);
  block.load_terms();
  __syncthreads();
  if (a.part == kApply) block.recall();
  tile.widen(raw, v);
  if (a.p.add) block.plus_add(v);
  if (a.part == kApply) block.centre(v);
  else block.measure(v);
  if (a.part == kStatistics) return;
  block.write(v);
}

template <class T, int V, bool kLast, bool kFull>
__global__ void __launch_bounds__(kMaxThreads, 1) group_norm_silu_kernel(const Forward a) {
  work<T, V, kLast, kFull, false>(a);
}

// With dropout or a residual.
template <class T, int V, bool kLast>
__global__ void __launch_bounds__(kMaxThreads, 1) epilogue_kernel(const Forward a) {
  work<T, V, kLast, false, true>(a);
}

// One moments of each group, behind the chunks'; a block has `places` groups of a sample.
__global__ void __launch_bounds__(kWarp)
merge_kernel(float* moments, int64_t B, int32_t G, int64_t chunks, int places) {
  const int64_t first = int64_t(blockIdx.x) * places, b = first / G;
  const Moments m = merge(moments + 4 * (b * chunks * G + first - b * G), G, chunks, places);
  if (int(threadIdx.x) < places) put(moments, B * chunks * G + first + threadIdx.x, m);
}

Tiling tiling_of(const GroupNormSiluParams& p) {
  return make_tiling(p.C, p.S, p.G, p.layout, dtype_size(p.dtype), kWish);
}

bool has_many_records(const Tiling& t) { return t.groups * chunks_of(t) > kFewRecords; }

bool has_epilogue(const GroupNormSiluParams& p) { return p.residual || p.drop.rng; }

size_t shared_bytes(const Forward& a) {
  const Tiling& t = a.tiling;
  const int64_t sums = t.groups > 1 ? 2 * (t.width + entries_of(t, kWish)) : 2 * kWarp;
  return sizeof(float) * (4 * t.width + sums + (has_epilogue(a.p) ? t.width * mask_words(t) : 0));
}

template <class T, bool kLast>
auto kernel_for(const Forward& a) {
  constexpr int V = 16 / sizeof(T);
  typedef Loose<T> U;
  if (has_epilogue(a.p)) return a.tiling.vector == 1 ? epilogue_kernel<Any, 1, kLast> : epilogue_kernel<U, V, kLast>;
  if (a.tiling.vector == 1) return group_norm_silu_kernel<Any, 1, kLast, false>;
  const bool full = a.aligned && is_full(a.tiling, kWish);
  return full ? group_norm_silu_kernel<T, V, kLast, true> : group_norm_silu_kernel<U, V, kLast, false>;
}

template <class T>
Status run(Forward a, Place place) {
  const auto kernel = a.tiling.last ? kernel_for<T, true>(a) : kernel_for<T, false>(a);
  const dim3 grid(static_cast<unsigned>(a.p.B * tiles_of(a.tiling))), block(a.tiling.threads);
  const auto pass = [&](Part part) {
    a.part = part;
    return launch(kernel, grid, block, shared_bytes(a), place, a);
  };
  if (is_whole(a.tiling)) return pass(kWhole);
  Status status = pass(kStatistics);
  if (status.code == kOk && has_many_records(a.tiling)) {
    const int places = a.tiling.G % 2 ? 1 : 2;
    status = launch(merge_kernel, static_cast<unsigned>(a.p.B * a.tiling.G / places), kWarp, 0, place, a.moments, a.p.B,
                    a.tiling.G, a.chunks, places);
    a.moments += 4 * a.p.B * a.tiling.G * a.chunks, a.chunks = 1;
  }
  return status.code == kOk ? pass(kApply) : status;
}

}  // namespace

int64_t group_norm_silu_workspace(const GroupNormSiluParams& p) {
  const Tiling t = tiling_of(p);
  return is_whole(t) ? 0 : 4 * p.B * p.G * (chunks_of(t) + has_many_records(t));
}

Status group_norm_silu(const GroupNormSiluParams& p, Place place) {
  return dispatch(p.dtype, [&](auto type) {
    typedef typename decltype(type)::Is T;
    if (p.B * p.C * p.S == 0) return Status{};
    const Tiling t = tiling_of(p);
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.y) |
                                reinterpret_cast<uintptr_t>(p.residual);
    const bool aligned = addresses % 16 == 0;
    return run<T>({p, t, kWhole, aligned, static_cast<float*>(p.workspace), chunks_of(t), float(p.eps)}, place);
  });
}

}  // namespace cuda
}  // namespace fastdiff
