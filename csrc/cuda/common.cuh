// What every kernel is built from: memory access, conversions, sums, launches, dispatch.
//
// Global memory is reached only through load and store, shared memory only through FD_SHARED and FD_DYNAMIC_SHARED: a
// host compiler with a cuda_runtime.h of its own can run the kernels and watch each access. Such a header defines the
// two macros itself. PTX stands only here, each time beside its host twin.
#pragma once
#include <cuda_runtime.h>

#include <cstring>

#include "../dtype.h"
#include "kernels.h"

#define FD_DEVICE static __device__ __forceinline__

#ifdef __CUDACC__
#define FD_SHARED(type, name, count) __shared__ type name[count]
#define FD_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(16) unsigned char fd_dynamic_shared[];  \
  type* const name = reinterpret_cast<type*>(fd_dynamic_shared)
#endif

namespace fastdiff {
namespace cuda {

// V consecutive elements as they lie in memory.
template <class T, int V>
struct alignas(sizeof(T) * V) Vec {
  T at[V];
};

#ifdef __CUDACC__
// The register type of one access.
template <int kBytes> struct Word;
template <> struct Word<1> { typedef uint8_t Type; };
template <> struct Word<2> { typedef uint16_t Type; };
template <> struct Word<4> { typedef uint32_t Type; };
template <> struct Word<8> { typedef uint2 Type; };
template <> struct Word<16> { typedef uint4 Type; };
#endif

// p[0 ... V) in one access; p is a multiple of V elements.
template <class T, int V>
FD_DEVICE Vec<T, V> load(const T* p) {
  Vec<T, V> v;
#ifdef __CUDACC__
  const auto word = *reinterpret_cast<const typename Word<sizeof v>::Type*>(p);
  memcpy(&v, &word, sizeof v);
#else
  memcpy(&v, p, sizeof v);
#endif
  return v;
}

template <class T, int V>
FD_DEVICE void store(T* p, const Vec<T, V>& v) {
#ifdef __CUDACC__
  typename Word<sizeof v>::Type word;
  memcpy(&word, &v, sizeof v);
  *reinterpret_cast<decltype(word)*>(p) = word;
#else
  memcpy(p, &v, sizeof v);
#endif
}

template <class T>
FD_DEVICE T load(const T* p) {
  return load<T, 1>(p).at[0];
}

template <class T>
FD_DEVICE void store(T* p, T value) {
  store<T, 1>(p, Vec<T, 1>{{value}});
}

// to_float and from_float of dtype.h by the hardware's conversions. narrow rounds to nearest even.
FD_DEVICE float widen(float v) { return v; }
FD_DEVICE float widen(uint8_t v) { return to_float(v); }
FD_DEVICE float widen(bfloat16_t v) { return to_float(v); }

FD_DEVICE float widen(half_t v) {
#ifdef __CUDACC__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
#else
  return to_float(v);
#endif
}

FD_DEVICE void narrow(float v, float& out) { out = v; }

FD_DEVICE void narrow(float v, half_t& out) {
#ifdef __CUDACC__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
#else
  out = to_half(v);
#endif
}

FD_DEVICE void narrow(float v, bfloat16_t& out) {
#ifdef __CUDACC__
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
#else
  out = to_bfloat16(v);
#endif
}

template <class T, int V>
FD_DEVICE void load_floats(const T* p, float (&v)[V]) {
  const Vec<T, V> raw = load<T, V>(p);
#pragma unroll
  for (int i = 0; i < V; ++i) v[i] = widen(raw.at[i]);
}

template <class T, int V>
FD_DEVICE void store_floats(T* p, const float (&v)[V]) {
  Vec<T, V> raw;
#pragma unroll
  for (int i = 0; i < V; ++i) narrow(v[i], raw.at[i]);
  store<T, V>(p, raw);
}

constexpr int kWarp = 32;

// The warp's sum, in every lane.
FD_DEVICE float warp_sum(float v) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
  return v;
}

// The block's sums, in every thread: lanes first, then warps. scratch: shared, N * kWarp floats. The block is
// one-dimensional, full warps.
template <int N>
FD_DEVICE void block_sum(float (&v)[N], float* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
#pragma unroll
  for (int n = 0; n < N; ++n) v[n] = warp_sum(v[n]);
  __syncthreads();                                    // scratch may still be read by an earlier sum
#pragma unroll
  for (int n = 0; n < N; ++n)
    if (lane == 0) scratch[n * kWarp + warp] = v[n];
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) v[n] = warp_sum(lane < warps ? scratch[n * kWarp + lane] : 0.0f);
}

FD_DEVICE float block_sum(float v, float* scratch) {
  float sums[1] = {v};
  block_sum(sums, scratch);
  return sums[0];
}

// Makes a device current while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : error_(cudaGetDevice(&before_)), switched_(false) {
    if (error_ != cudaSuccess || before_ == device) return;
    error_ = cudaSetDevice(device);
    switched_ = error_ == cudaSuccess;
  }
  ~DeviceGuard() {
    if (switched_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  cudaError_t error_;
  bool switched_;
};

static inline Status to_status(cudaError_t error) {
  if (error == cudaSuccess) return {};
  cudaGetLastError();                                 // the caller is told; no later call is
  return {kCudaError, 0, static_cast<int64_t>(error)};
}

template <class T>
struct Type {
  typedef T Is;
};

// kernel<<<grid, block, shared, stream>>>(args...) on place's device.
template <class... Params>
static Status launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, Place place,
                     typename Type<Params>::Is... args) {
  const DeviceGuard guard(place.device);
  if (guard.error() != cudaSuccess) return to_status(guard.error());
  constexpr size_t kWithoutAsking = 48 << 10;
  if (shared > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (error != cudaSuccess) return to_status(error);
  }
  void* pointers[] = {&args...};
  return to_status(cudaLaunchKernel(kernel, grid, block, pointers, shared, static_cast<cudaStream_t>(place.stream)));
}

// call(Type<T>{}) with the T of a floating dtype.
template <class Call>
static Status dispatch(int32_t dtype, Call call) {
  switch (dtype) {
    case kF32: return call(Type<float>{});
    case kF16: return call(Type<half_t>{});
    case kBF16: return call(Type<bfloat16_t>{});
    default: return {kUnsupported, 0, dtype};
  }
}

}  // namespace cuda
}  // namespace fastdiff
