// Kernels with a planted bug each, one for each thing that the harness finds, and kernels without, for what it computes.
#include <pybind11/pybind11.h>

#include <map>
#include <stdexcept>
#include <string>

#include "common.cuh"

namespace fastdiff {
namespace cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;

struct Arguments {
  float* out;
  const float* in;
  int n;
};

FD_DEVICE int thread_in_grid() { return int(blockIdx.x * blockDim.x + threadIdx.x); }

__global__ void copy(Arguments a) {
  const int i = thread_in_grid();
  if (i < a.n) store(a.out + i, load(a.in + i));
}

__global__ void copy_one_too_many(Arguments a) {
  const int i = thread_in_grid();
  if (i <= a.n) store(a.out + i, load(a.in + i));
}

__global__ void copy_unaligned_vectors(Arguments a) {
  const int i = 4 * thread_in_grid();
  if (i + 4 < a.n) store<float, 4>(a.out + i, load<float, 4>(a.in + i + 1));
}

__global__ void copy_every_fourth(Arguments a) {
  const int i = 4 * thread_in_grid();
  if (i < a.n) store(a.out + i, load(a.in + i));
}

__global__ void write_the_input(Arguments a) {
  const int i = thread_in_grid();
  if (i < a.n) store(const_cast<float*>(a.in) + i, 0.0f);
}

// Reverses the block's elements through shared memory.
template <bool kBarrier>
FD_DEVICE void reverse_with(Arguments a) {
  FD_DYNAMIC_SHARED(float, tile);
  const int last = int(blockDim.x) - 1;
  tile[threadIdx.x] = load(a.in + thread_in_grid());
  if (kBarrier) __syncthreads();
  store(a.out + thread_in_grid(), float(tile[last - int(threadIdx.x)]));
}

__global__ void reverse(Arguments a) { reverse_with<true>(a); }
__global__ void reverse_without_barrier(Arguments a) { reverse_with<false>(a); }

__global__ void write_again_without_barrier(Arguments a) {
  FD_SHARED(float, tile, 64);
  tile[threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x < kWarp) store(a.out + threadIdx.x, float(tile[0]));
  if (threadIdx.x == 63) tile[0] = 2.0f;
}

template <bool kSync>
FD_DEVICE void neighbour_with(Arguments a) {
  FD_SHARED(float, tile, kWarp);
  const int lane = int(threadIdx.x);
  tile[lane] = load(a.in + lane);
  if (kSync) __syncwarp();
  store(a.out + lane, float(tile[lane ^ 1]));
}

__global__ void neighbour(Arguments a) { neighbour_with<true>(a); }
__global__ void neighbour_without_sync(Arguments a) { neighbour_with<false>(a); }

__global__ void shared_one_too_far(Arguments a) {
  FD_SHARED(float, tile, 64);
  FD_SHARED(float, other, 64);
  other[threadIdx.x] = 0.0f;
  tile[threadIdx.x + 1] = load(a.in + threadIdx.x);
}

__global__ void shared_never_written(Arguments a) {
  FD_SHARED(float, tile, 64);
  if (threadIdx.x != 40) tile[threadIdx.x] = 1.0f;
  store(a.out + threadIdx.x, float(tile[threadIdx.x]));
}

__global__ void last_writer_wins(Arguments a) {
  if (threadIdx.x % kWarp == 0) store(a.out, float(threadIdx.x / kWarp));
}

__global__ void end_before_barrier(Arguments a) {
  if (int(threadIdx.x) >= a.n) return;
  __syncthreads();
}

__global__ void shuffle_of_half_a_warp(Arguments a) {
  float v = 1.0f;
  if (threadIdx.x % kWarp < 16) v = __shfl_xor_sync(kAll, v, 1);
  store(a.out + threadIdx.x, v);
}

__global__ void shuffle_from_outside_the_mask(Arguments a) {
  if (threadIdx.x < 16) store(a.out + threadIdx.x, __shfl_down_sync(0xffffu, 1.0f, 8));
}

__global__ void vote_against_shuffle(Arguments a) {
  if (threadIdx.x % 2) store(a.out + threadIdx.x, float(__ballot_sync(kAll, true)));
  else store(a.out + threadIdx.x, __shfl_xor_sync(kAll, 1.0f, 1));
}

__global__ void sums(Arguments a) {
  FD_SHARED(float, scratch, kWarp);
  const float v = load(a.in + thread_in_grid()), sum = block_sum(v, scratch);
  store(a.out + thread_in_grid(), sum + block_sum(v, scratch));
}

// Every way to move a value in a warp, in one number.
__global__ void shuffles(Arguments a) {
  const int lane = int(threadIdx.x) % kWarp;
  const unsigned odd = __ballot_sync(kAll, lane % 2 == 1);
  float sum = odd == 0xaaaaaaaau && __any_sync(kAll, lane == 3) && !__all_sync(kAll, lane == 3) ? 0.0f : nanf("");
  sum += float(__shfl_sync(kAll, lane, 5)) + 100.0f * float(__shfl_up_sync(kAll, lane, 2));
  sum += 1e4f * float(__shfl_down_sync(kAll, lane, 2, 8));
  store(a.out + threadIdx.x, sum);
}

typedef void (*Kernel)(Arguments);
#define FD_NAMED(kernel) {#kernel, kernel}
const std::map<std::string, Kernel> kernels = {
    FD_NAMED(copy), FD_NAMED(copy_one_too_many), FD_NAMED(copy_unaligned_vectors), FD_NAMED(copy_every_fourth),
    FD_NAMED(write_the_input), FD_NAMED(reverse), FD_NAMED(reverse_without_barrier), FD_NAMED(write_again_without_barrier),
    FD_NAMED(neighbour), FD_NAMED(neighbour_without_sync), FD_NAMED(shared_one_too_far), FD_NAMED(shared_never_written),
    FD_NAMED(last_writer_wins), FD_NAMED(end_before_barrier), FD_NAMED(shuffle_of_half_a_warp),
    FD_NAMED(shuffle_from_outside_the_mask), FD_NAMED(vote_against_shuffle), FD_NAMED(sums), FD_NAMED(shuffles),
};

int run(const std::string& name, uintptr_t out, uintptr_t in, int n, unsigned grid, unsigned block, size_t shared) {
  const Arguments arguments = {reinterpret_cast<float*>(out), reinterpret_cast<const float*>(in), n};
  return int(launch(kernels.at(name), grid, block, shared, {0, nullptr}, arguments).value);
}

}  // namespace
}  // namespace cuda
}  // namespace fastdiff

// The status' value: 0, or a cudaError_t.
PYBIND11_MODULE(planted, module) { module.def("run", fastdiff::cuda::run); }
