// Gradients that are sums over nothing.
#pragma once
#include "group_norm.cuh"

namespace fastdiff {
namespace cuda {
namespace {

constexpr int kClearThreads = 256;

__global__ void __launch_bounds__(kClearThreads) clear_kernel(void* gradient, int32_t dtype, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * kClearThreads + threadIdx.x;
  if (i < n) set_number(gradient, dtype, i, 0.0f);
}

Status clear(void* gradient, int64_t n, int32_t dtype, Place place) {
  if (!gradient || n == 0) return {};
  const dim3 grid(static_cast<unsigned>(divide_up(n, kClearThreads)));
  return launch(clear_kernel, grid, kClearThreads, 0, place, gradient, dtype, n);
}

}  // namespace
}  // namespace cuda
}  // namespace fastdiff
