// Losses: sums of a sample's terms by chunks, one for each block, and gradients in the network's output.
//
// A chunk is kRounds quads for each of a block's threads, or kRounds tiles: a partition that neither the batch nor
// alignment changes. Where a sample has several, a second launch adds them up.
#pragma once
#include "start.cuh"

namespace fastdiff {
namespace cuda {

constexpr int kRounds = 4;

// What makes a sample's mean of the sum of its terms: scale * weight[t] * sample_weight[b].
struct Mean {
  const int64_t* t;
  const float *weight, *sample_weight;   // NULL: 1
  int64_t T;
  double scale;                          // what a term of 1 is in the result, over the number of terms
};

// What all kernels of a loss have. Strides: of the network's output; of an image in its layout; of x_start.
template <class Params>
struct Loss {
  Params p;
  Walk walk;
  Strides model, home, x_start, other;
  Mean mean;
  uint32_t chunks;                       // of a sample
  int32_t aligned;
};

FD_DEVICE float weight_of(const Mean& mean, int64_t b) {
  const int64_t t = load(mean.t + b);
  if (t < 0 || t >= mean.T) return nanf("");
  const float weight = mean.weight ? load(mean.weight + t) : 1.0f;
  return weight * (mean.sample_weight ? load(mean.sample_weight + b) : 1.0f);
}

// One thread of a block does this, in double: a result has no rounding but the sum's.
FD_DEVICE void put_mean(const Mean& mean, int64_t b, float sum, float* out) {
  store(out + b, float(double(sum) * mean.scale * double(weight_of(mean, b))));
}

// From the thread's quad in a tile to that in the next; it has no pixels where there is none.
FD_DEVICE void next_tile(const Walk& walk, Quad& q) {
  const int pixels = walk.tile_quads * kQuad;
  q.first += pixels, q.tile.first += pixels;
  q.tile.pixels = walk.S - q.tile.first < pixels ? int(walk.S - q.tile.first) : pixels;
}

// body(q) for each of the thread's quads in the block's chunk; the whole block takes part in each tile.
template <int kAccess, class Params, class Body>
FD_DEVICE void each_quad(const Loss<Params>& a, const Body& body) {
  const uint32_t b = blockIdx.x / a.chunks, chunk = blockIdx.x - b * a.chunks;
  if constexpr (kAccess == kTiles) {
    Quad q = place_tile(a.walk, a.home, b, chunk * kRounds);
    q.tile.aligned = a.aligned;
    for (int round = 0; round < kRounds && q.tile.pixels > 0; ++round, next_tile(a.walk, q)) body(q);
  } else {
    for (int round = 0; round < kRounds; ++round) {
      const Quad q = place_quad<kAccess>(a.walk, b, (int64_t(chunk) * kRounds + round) * kBlock + threadIdx.x);
      if (q.count) body(q);
    }
  }
}

// Adds what add(sum, j) makes of each of the quad's elements that exist; in a tile they all do or none.
template <int kAccess, class Add>
FD_DEVICE float sum_of(float sum, const Quad& q, const Add& add) {
  if (kAccess == kTiles && !q.tile.has<kQuad>(q.tile.runs)) return sum;
  FD_UNROLL
  for (int j = 0; j < kQuad; ++j)
    if (kAccess == kTiles || j < q.count) sum = add(sum, j);
  return sum;
}

// The block's chunk is done: the sample's result, or a number for sum_kernel.
template <class Params>
FD_DEVICE void put_sum(const Loss<Params>& a, float sum, void* out, void* workspace) {
  FD_SHARED(float, scratch, kWarp);
  sum = block_sum(sum, scratch);
  if (threadIdx.x != 0) return;
  const uint32_t b = blockIdx.x / a.chunks;
  if (a.chunks > 1) store(static_cast<float*>(workspace) + blockIdx.x, sum);
  else put_mean(a.mean, b, sum, static_cast<float*>(out));
}

// One block a sample.
static __global__ void __launch_bounds__(kBlock)
sum_kernel(const float* workspace, uint32_t chunks, Mean mean, float* out) {
  FD_SHARED(float, scratch, kWarp);
  float sum = 0;
  for (uint32_t i = threadIdx.x; i < chunks; i += kBlock) sum += load(workspace + int64_t(blockIdx.x) * chunks + i);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) put_mean(mean, blockIdx.x, sum, out);
}

// Whether the output's two halves lie side by side, and tiles reach them as a pair; then these have runs.
template <class Params>
FD_DEVICE bool has_pairs(const Loss<Params>& a) {
  return a.p.learned && has_runs(a.model);
}

// The network's output, and its variance where it is `asked` for and there is one.
template <int kAccess, class T, class Params, int N>
FD_DEVICE void load_outputs(const Loss<Params>& a, const Quad& q, bool asked, float (&m)[N], float (&v)[N]) {
  const int32_t dtype = a.p.model_dtype;
  if constexpr (kAccess == kTiles)
    if (has_pairs(a)) return load_pair<T>(q.tile.in_runs(), a.p.model_output, dtype, q.b * a.model.sample, m, v);
  load_quad<kAccess>(reached<T>(a.p.model_output, dtype), a.model, q, m);
  if (!asked || !a.p.learned) return;
  load_quad<kAccess>(reached<T>(a.p.model_output, dtype, a.walk.C * a.model.channel), a.model, q, v);
}

// The gradient of both halves, of the first alone where there is no other.
template <int kAccess, class T, class Params, int N>
FD_DEVICE void store_gradient(const Loss<Params>& a, const Quad& q, const float (&by_m)[N], const float (&by_v)[N]) {
  const int32_t dtype = a.p.model_dtype;
  if constexpr (kAccess == kTiles)
    if (has_pairs(a)) return store_pair<T>(q.tile.in_runs(), a.p.grad, dtype, q.b * a.model.sample, by_m, by_v);
  store_quad<kAccess>(reached<T>(a.p.grad, dtype), a.model, q, by_m);
  if (!a.p.learned) return;
  store_quad<kAccess>(reached<T>(a.p.grad, dtype, a.walk.C * a.model.channel), a.model, q, by_v);
}

// The gradient's kernels have a thread for each quad.
template <int kAccess, int N = kQuad, class Params>
FD_DEVICE Quad gradient_quad(const Loss<Params>& a) {
  Quad q = find_quad<kAccess, N>(a.walk, a.home);
  q.tile.aligned = a.aligned;
  return q;
}

static inline uint32_t chunks_of(const Walk& walk, Access access) {
  const int64_t rounds = access == kTiles ? walk.tiles : (walk.quads + kBlock - 1) / kBlock;
  return rounds > kRounds ? uint32_t((rounds + kRounds - 1) / kRounds) : 1;
}

// other: the third image, noise or x_t. unit: what a term of 1 is in the result.
template <class Params>
static Loss<Params> make_loss(const Params& p, Operand other, double unit) {
  const int64_t S = p.H * p.W, channels = p.learned ? 2 * p.C : p.C;
  return {p, make_walk(p.B, p.C, S, p.model_layout), make_strides(p.model_layout, channels, S),
          make_strides(p.model_layout, p.C, S), make_strides(p.x_start_layout, p.C, S), make_strides(other.layout, p.C, S),
          {p.t, static_cast<const float*>(p.weight), static_cast<const float*>(p.sample_weight), p.T,
           unit / double(p.C * S)},
          1, 1};
}

template <class Params>
static Access access_of(Loss<Params>& a, Operand other, const void* grad) {
  const std::initializer_list<Operand> operands = {{a.p.model_output, a.p.model_dtype, a.p.model_layout},
                                                   {a.p.x_start, a.p.x_start_dtype, a.p.x_start_layout},
                                                   other,
                                                   {grad, a.p.model_dtype, a.p.model_layout}};
  a.aligned = are_aligned(operands);
  const Access access = access_of_aligned(a.walk, operands);
  return access == kTiles || a.aligned ? access : kElements;
}

// Where wide quads can be reached the walk is made wide: gradients have no sums that would depend on it.
template <class Params>
static Access wide_access_of(Loss<Params>& a, Operand other, const void* grad) {
  const Params& p = a.p;
  const std::initializer_list<Operand> operands = {{p.model_output, p.model_dtype, p.model_layout},
                                                   {p.x_start, p.x_start_dtype, p.x_start_layout},
                                                   other,
                                                   {grad, p.model_dtype, p.model_layout}};
  const Access access = widen_walk(a.walk, p.model_layout, operands);
  return a.walk.width == kWide ? access : access_of(a, other, grad);
}

// kernel(Type<T>, access) is a loss' forward kernel.
template <class Params, class Kernel>
static Status launch_sums(Loss<Params>& a, Access access, void* out, Place place, Kernel kernel) {
  a.chunks = chunks_of(a.walk, access);
  const dim3 grid(static_cast<unsigned>(a.p.B * a.chunks));
  const Status status = dispatch(a.p.model_dtype, [&](auto type) {
    if (a.p.B == 0) return Status{};
    return launch(kernel(type, access), grid, block_of(a.walk, access), 0, place, a);
  });
  if (status.code != kOk || a.p.B == 0 || a.chunks == 1) return status;
  return launch(sum_kernel, dim3(static_cast<unsigned>(a.p.B)), dim3(kBlock), 0, place,
                static_cast<const float*>(a.p.workspace), a.chunks, a.mean, static_cast<float*>(out));
}

template <class Params, class Kernel>
static Status launch_gradient(const Loss<Params>& a, Access access, Place place, Kernel kernel) {
  return dispatch(a.p.model_dtype, [&](auto type) {
    if (a.p.B * a.walk.quads == 0) return Status{};
    return launch(kernel(type, access), grid_of(a.walk, access), block_of(a.walk, access), 0, place, a);
  });
}

}  // namespace cuda
}  // namespace fastdiff
