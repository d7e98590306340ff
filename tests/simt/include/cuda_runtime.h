// CUDA's execution model for a host compiler: with this file found first, csrc/cuda/*.cu compile unchanged and run on the
// CPU, one fiber a thread (scheduler.cpp), every access to memory watched (memory.cpp).
//
// Kernels are launched through cudaLaunchKernel, never <<<>>>. A finding ends the launch with a std::runtime_error.
#pragma once
#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace simt {

// ---- Shared memory ----

// One array of the block: the same for each of its threads. site: whose array it is, NULL for the dynamic one.
struct Array {
  const char* name;
  unsigned char* begin;
  size_t bytes;
};

Array shared_array(const void* site, const char* name, size_t bytes, size_t alignment);
void check_shared(const Array& array, const void* p, size_t bytes, size_t alignment, bool store);

// A pointer into an array that checks what is reached through it.
template <class T>
class Shared {
 public:
  class Reference {
   public:
    Reference(const Array& array, T* p) : array_(array), p_(p) {}
    operator T() const {
      check_shared(array_, p_, sizeof(T), alignof(T), false);
      return *p_;
    }
    const Reference& operator=(T value) const {
      check_shared(array_, p_, sizeof(T), alignof(T), true);
      *p_ = value;
      return *this;
    }
    const Reference& operator=(const Reference& other) const { return *this = T(other); }
    const Reference& operator+=(T value) const { return *this = T(*this) + value; }

   private:
    const Array& array_;
    T* p_;
  };

  explicit Shared(const Array& array) : array_(array), p_(reinterpret_cast<T*>(array.begin)) {}
  Shared(const Array& array, T* p) : array_(array), p_(p) {}
  Reference operator*() const { return {array_, p_}; }
  Reference operator[](ptrdiff_t i) const { return {array_, p_ + i}; }
  Shared operator+(ptrdiff_t i) const { return {array_, p_ + i}; }

  template <class U>
  Shared<U> seen_as() const { return {array_, reinterpret_cast<U*>(p_)}; }

  // bytes from here on, in one access.
  T* checked(size_t bytes, bool store) const {
    check_shared(array_, p_, bytes, bytes, store);
    return p_;
  }

 private:
  Array array_;
  T* p_;
};

// Called before each access to global memory.
void check_global(const void* p, size_t bytes, bool store);

// ---- What the threads of a warp or block do together ----

enum class Together { kSync, kVote, kShuffle };

// Waits for the lanes in mask, then returns: of a shuffle the value that lane `source` gave, of a vote the lanes that gave
// a value other than 0.
uint64_t meet(Together kind, uint32_t mask, uint64_t value, int source);
void barrier();
int lane();

template <class T>
T shuffle(uint32_t mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t word = 0;
  memcpy(&word, &value, sizeof value);
  word = meet(Together::kShuffle, mask, word, source);
  memcpy(&value, &word, sizeof value);
  return value;
}

}  // namespace simt

#define FD_SHARED(type, name, count)   \
  static const char name##_site = 0;   \
  const simt::Shared<type> name(simt::shared_array(&name##_site, #name, sizeof(type) * (count), alignof(type)))
#define FD_DYNAMIC_SHARED(type, name) const simt::Shared<type> name(simt::shared_array(nullptr, #name, 0, 16))

inline void __syncthreads() { simt::barrier(); }
inline void __syncwarp(uint32_t mask = ~0u) { simt::meet(simt::Together::kSync, mask, 0, 0); }
inline uint32_t __ballot_sync(uint32_t mask, bool value) { return simt::meet(simt::Together::kVote, mask, value, 0); }
inline bool __any_sync(uint32_t mask, bool value) { return __ballot_sync(mask, value) != 0; }
inline bool __all_sync(uint32_t mask, bool value) { return __ballot_sync(mask, value) == mask; }

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = warpSize) {
  return simt::shuffle(mask, value, (simt::lane() & ~(width - 1)) | (source & (width - 1)));
}

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int distance, int width = warpSize) {
  const int lane = simt::lane(), other = lane ^ distance;
  return simt::shuffle(mask, value, other / width > lane / width ? lane : other);
}

template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned distance, int width = warpSize) {
  const int lane = simt::lane(), other = lane + int(distance);
  return simt::shuffle(mask, value, other / width > lane / width ? lane : other);
}

template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned distance, int width = warpSize) {
  const int lane = simt::lane();
  return simt::shuffle(mask, value, lane % width < int(distance) ? lane : lane - int(distance));
}

// ---- The runtime's functions ----

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9, cudaErrorInvalidDevice = 101 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
typedef struct CUstream_st* cudaStream_t;

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

namespace simt {

cudaError_t allow_shared(const void* kernel, int bytes);

// arguments: the bytes of each. thread runs the kernel as the current one.
cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared, const std::vector<std::string>& arguments,
                   const std::function<void()>& thread);

template <class... Params, size_t... I>
std::vector<std::string> bytes_of(void (*)(Params...), void** arguments, std::index_sequence<I...>) {
  return {std::string(static_cast<const char*>(arguments[I]), sizeof(Params))...};
}

template <class... Params, size_t... I>
void call(void (*kernel)(Params...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<Params*>(arguments[I])...);
}

}  // namespace simt

template <class... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute, int value) {
  return simt::allow_shared(reinterpret_cast<const void*>(kernel), value);
}

template <class... Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params...), dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t) {
  const std::index_sequence_for<Params...> each;
  return simt::launch(reinterpret_cast<const void*>(kernel), grid, block, shared, simt::bytes_of(kernel, arguments, each),
                      [=] { simt::call(kernel, arguments, each); });
}
