// What every kernel is built from: memory access, conversions, sums, launches, dispatch.
//
// Global memory is reached only through load and store, shared memory only through FD_SHARED and FD_DYNAMIC_SHARED: a
// host compiler with a cuda_runtime.h of its own can run the kernels and watch each access (tests/simt). That header
// defines the two macros itself, and simt::Shared. PTX stands only here, each time beside its host twin.
#pragma once
#include <cuda_runtime.h>

#include <cstring>
#include <type_traits>

#include "../dtype.h"
#include "kernels.h"

#define FD_DEVICE static __device__ __forceinline__
#define FD_MEMBER __device__ __forceinline__

// Before a loop beside which there is no register to spare.
#ifdef __CUDA_ARCH__
#define FD_ROLLED _Pragma("unroll 1")
#else
#define FD_ROLLED
#endif

#ifdef __CUDACC__
#define FD_SHARED(type, name, count) __shared__ type name[count]
#define FD_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(16) unsigned char fd_dynamic_shared[];  \
  type* const name = reinterpret_cast<type*>(fd_dynamic_shared)
#endif

namespace fastdiff {

// Dtypes that a kernel is told when it runs, where none would gain by a kernel of its own: float, half_t or bfloat16_t,
// whose elements are reached one by one, or either of the latter two.
struct Any {};
struct Narrow { uint16_t bits; };

namespace cuda {

template <class T>
struct Type {
  typedef T Is;
};

// What stands for T where its size alone matters to speed.
template <class T>
using Loose = std::conditional_t<sizeof(T) == 2, Narrow, T>;

// use(Type<U>{}), U the type of the dtype, one of those that T stands for.
template <class T, class Use>
FD_DEVICE void with_dtype(int32_t dtype, const Use& use) {
  if constexpr (std::is_same_v<T, Any>)
    if (dtype == kF32) return use(Type<float>{});
  if constexpr (std::is_same_v<T, Any> || std::is_same_v<T, Narrow>) {
    if (dtype == kF16) use(Type<half_t>{});
    else use(Type<bfloat16_t>{});
  } else {
    use(Type<T>{});
  }
}

// The same with any type of the dtype's size.
template <class T, class Use>
FD_DEVICE void with_size(int32_t dtype, const Use& use) {
  if constexpr (!std::is_same_v<T, Any>) use(Type<T>{});
  else if (dtype == kF32) use(Type<float>{});
  else use(Type<Narrow>{});
}

// U, constant where Void is.
template <class Void, class U>
using As = std::conditional_t<std::is_const_v<Void>, const U, U>;

// Where a tensor's i-th element is: found once, not for each size, where registers are few; and as a number, for which
// nvcc takes fewer of them.
template <class T, class Void>
FD_DEVICE Void* element(Void* data, int32_t dtype, int64_t i) {
  if constexpr (!std::is_same_v<T, Any>) return static_cast<As<Void, T>*>(data) + i;
  else return reinterpret_cast<Void*>(reinterpret_cast<uintptr_t>(data) + (i << (dtype == kF32 ? 2 : 1)));
}

template <class U, class T>
FD_DEVICE U same_bits(T v) {
  static_assert(sizeof(U) == sizeof(T));
  U u;
  memcpy(&u, &v, sizeof u);
  return u;
}

// V consecutive elements as they lie in memory.
template <class T, int V>
struct alignas(sizeof(T) * V) Vec {
  T at[V];
};

#ifdef __CUDACC__
// The register type of one access.
template <class T, int kBytes> struct Word;
template <class T> struct Word<T, 1> { typedef uint8_t Type; };
template <class T> struct Word<T, 2> { typedef uint16_t Type; };
template <class T> struct Word<T, 4> { typedef uint32_t Type; };
template <class T> struct Word<T, 8> { typedef uint2 Type; };
template <class T> struct Word<T, 16> { typedef uint4 Type; };
template <> struct Word<float, 4> { typedef float Type; };
template <> struct Word<float, 8> { typedef float2 Type; };
template <> struct Word<float, 16> { typedef float4 Type; };

// What FD_SHARED and FD_DYNAMIC_SHARED give, and what a function takes it as.
template <class T> using Shared = T*;
#else
using simt::Shared;
#endif

// The same memory as elements of another type.
template <class T, class U>
FD_DEVICE Shared<T> seen_as(const Shared<U>& p) {
#ifdef __CUDACC__
  return reinterpret_cast<T*>(p);
#else
  return p.template seen_as<T>();
#endif
}

// p[0 ... V) in one access; p is a multiple of V elements.
template <class T, int V>
FD_DEVICE Vec<T, V> load(const T* p) {
  Vec<T, V> v;
#ifdef __CUDACC__
  const auto word = *reinterpret_cast<const typename Word<T, sizeof v>::Type*>(p);
  memcpy(&v, &word, sizeof v);
#else
  simt::check_global(p, sizeof v, false);
  memcpy(&v, p, sizeof v);
#endif
  return v;
}

template <class T, int V>
FD_DEVICE void store(T* p, const Vec<T, V>& v) {
#ifdef __CUDACC__
  typename Word<uint8_t, sizeof v>::Type word;
  memcpy(&word, &v, sizeof v);
  *reinterpret_cast<decltype(word)*>(p) = word;
#else
  simt::check_global(p, sizeof v, true);
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

FD_DEVICE float widen(bfloat16_t v) {
#ifdef __CUDACC__
  float wide;
  asm("shl.b32 %0, %1, 16;" : "=f"(wide) : "r"(uint32_t(v.bits)));
  return wide;
#else
  return to_float(v);
#endif
}

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

// The words that hold V elements; two that share one are converted together.
template <class T, int V>
constexpr int kWords = (sizeof(T) * V + 3) / 4;

template <class T, int V>
using Words = Vec<uint32_t, kWords<T, V>>;

FD_DEVICE void widen(float, const uint32_t* word, float* v) { *v = bits_to_float(*word); }

FD_DEVICE void widen(bfloat16_t, const uint32_t* word, float* v) {
#ifdef __CUDACC__
  asm("shl.b32 %0, %1, 16;" : "=f"(v[0]) : "r"(*word));
  asm("and.b32 %0, %1, 0xffff0000;" : "=f"(v[1]) : "r"(*word));
#else
  v[0] = bits_to_float(*word << 16);
  v[1] = bits_to_float(*word & 0xffff0000u);
#endif
}

FD_DEVICE void widen(half_t, const uint32_t* word, float* v) {
  v[0] = widen(half_t{uint16_t(*word)});
  v[1] = widen(half_t{uint16_t(*word >> 16)});
}

FD_DEVICE void narrow(float, const float* v, uint32_t* word) { *word = float_to_bits(*v); }

FD_DEVICE void narrow(bfloat16_t, const float* v, uint32_t* word) {
#ifdef __CUDACC__
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(*word) : "f"(v[1]), "f"(v[0]));
#else
  *word = to_bfloat16(v[0]).bits | uint32_t(to_bfloat16(v[1]).bits) << 16;
#endif
}

FD_DEVICE void narrow(half_t, const float* v, uint32_t* word) {
#ifdef __CUDACC__
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(*word) : "f"(v[1]), "f"(v[0]));
#else
  *word = to_half(v[0]).bits | uint32_t(to_half(v[1]).bits) << 16;
#endif
}

template <class T, int V>
constexpr bool kFillsWords = sizeof(T) * V % 4 == 0;

template <class T, int V>
FD_DEVICE Words<T, V> load_words(const T* p) {
  if constexpr (kFillsWords<T, V>) return load<uint32_t, kWords<T, V>>(reinterpret_cast<const uint32_t*>(p));
  else return {{uint32_t(load(reinterpret_cast<const uint16_t*>(p)))}};
}

template <class T, int V>
FD_DEVICE void widen(const Words<T, V>& words, float (&v)[V]) {
  if constexpr (kFillsWords<T, V>) {
#pragma unroll
    for (int i = 0; i < kWords<T, V>; ++i) widen(T{}, &words.at[i], &v[i * 4 / sizeof(T)]);
  } else {
    v[0] = widen(T{uint16_t(words.at[0])});
  }
}

template <class T, int V>
FD_DEVICE void narrow(const float (&v)[V], Words<T, V>& words) {
  if constexpr (kFillsWords<T, V>) {
#pragma unroll
    for (int i = 0; i < kWords<T, V>; ++i) narrow(T{}, &v[i * 4 / sizeof(T)], &words.at[i]);
  } else {
    T value;
    narrow(v[0], value);
    words.at[0] = value.bits;
  }
}

template <class T, int V>
FD_DEVICE void store_words(T* p, const Words<T, V>& words) {
  if constexpr (kFillsWords<T, V>) store(reinterpret_cast<uint32_t*>(p), words);
  else store(reinterpret_cast<uint16_t*>(p), uint16_t(words.at[0]));
}

// The j-th element of words that are 0 there.
template <class T, int V>
FD_DEVICE void put_element(Words<T, V>& words, int j, const T* p) {
  words.at[j * sizeof(T) / 4] |= load_words<T, 1>(p).at[0] << j * sizeof(T) % 4 * 8;
}

// What load_words gives where p is no multiple.
template <class T, int V>
FD_DEVICE Words<T, V> gather_words(const T* p) {
  Words<T, V> words{};
#pragma unroll
  for (int j = 0; j < V; ++j) put_element<T, V>(words, j, p + j);
  return words;
}

template <class T, int V>
FD_DEVICE void store_element(const Words<T, V>& words, int j, T* p) {
  const uint32_t word = words.at[j * sizeof(T) / 4] >> j * sizeof(T) % 4 * 8;
  if constexpr (sizeof(T) == 4) store(reinterpret_cast<uint32_t*>(p), word);
  else store(reinterpret_cast<uint16_t*>(p), uint16_t(word));
}

template <class T, int V>
FD_DEVICE void scatter_words(T* p, const Words<T, V>& words) {
#pragma unroll
  for (int j = 0; j < V; ++j) store_element<T, V>(words, j, p + j);
}

// The k-th byte of a word.
FD_DEVICE float widen_byte(uint32_t word, int k) {
#ifdef __CUDACC__
  float wide;
  asm("cvt.rn.f32.u8 %0, %1;" : "=f"(wide) : "r"(word >> k * 8));
  return wide;
#else
  return float(uint8_t(word >> k * 8));
#endif
}

template <class T, int V>
FD_DEVICE void load_floats(const T* p, float (&v)[V]) {
  if constexpr (sizeof(T) == 2 && kFillsWords<T, V>) {
    widen<T, V>(load_words<T, V>(p), v);
  } else if constexpr (sizeof(T) == 1 && kFillsWords<T, V>) {
    const Words<T, V> words = load_words<T, V>(p);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = widen_byte(words.at[i / 4], i % 4);
  } else {
    const Vec<T, V> raw = load<T, V>(p);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = widen(raw.at[i]);
  }
}

template <class T, int V>
FD_DEVICE void store_floats(T* p, const float (&v)[V]) {
  if constexpr (kFillsWords<T, V>) {
    Words<T, V> raw;
    narrow<T, V>(v, raw);
    store_words<T, V>(p, raw);
  } else {
    Vec<T, V> raw;
#pragma unroll
    for (int i = 0; i < V; ++i) narrow(v[i], raw.at[i]);
    store<T, V>(p, raw);
  }
}

// 1 / v within 2 ulp, v a normal number and 1 / v as well.
FD_DEVICE float approximate_reciprocal(float v) {
#ifdef __CUDACC__
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
#else
  return 1.0f / v;
#endif
}

// The same within an ulp.
FD_DEVICE float reciprocal(float v) {
  const float r = approximate_reciprocal(v);
  return fmaf(r, fmaf(-v, r, 1.0f), r);
}

// 1 / sqrt(v) likewise.
FD_DEVICE float reciprocal_sqrt(float v) {
#ifdef __CUDACC__
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
#else
  const float r = 1.0f / sqrtf(v);
#endif
  return fmaf(0.5f * r, fmaf(-v * r, r, 1.0f), r);
}

// a / b within a few ulp; 0 for a b from 2^126 on, infinity included.
FD_DEVICE float approximate_quotient(float a, float b) {
#ifdef __CUDACC__
  float q;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(q) : "f"(a), "f"(b));
  return q;
#else
  return a / b;
#endif
}

// 2^v within a few ulp.
FD_DEVICE float exp2_of(float v) {
#ifdef __CUDACC__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v));
  return power;
#else
  return exp2f(v);
#endif
}

// v limited to [-bound, bound]; NaN passes.
FD_DEVICE float limited(float v, float bound) {
#ifdef __CUDACC__
  float limited;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(limited) : "f"(v), "f"(-bound));
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(limited) : "f"(bound));
  return limited;
#else
  return v > bound ? bound : v < -bound ? -bound : v;
#endif
}

// The lesser one; NaN of NaN.
FD_DEVICE float lesser(float v, float most) {
#ifdef __CUDACC__
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(v), "f"(most));
  return least;
#else
  return v > most ? most : v;
#endif
}

constexpr float kMinusLog2E = -1.4426950408889634f;

FD_DEVICE float exp_minus(float h) { return exp2_of(h * kMinusLog2E); }

// 1 / (1 + e^-h). The limit keeps it normal.
FD_DEVICE float sigmoid(float h) { return reciprocal(1.0f + exp2_of(fminf(h * kMinusLog2E, 126.0f))); }

// h / (1 + e^-h), as exactly as its rounding to T asks for.
template <class T>
FD_DEVICE float silu(float h) {
  return sizeof(T) == 2 ? approximate_quotient(h, 1.0f + exp_minus(h)) : h * sigmoid(h);
}

// v, of which the compiler knows nothing: what is made of it is made here, not kept in registers from an earlier use.
FD_DEVICE int afresh(int v) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(v));
#endif
  return v;
}

// v, computed here and kept: not made again wherever it is used.
FD_DEVICE int64_t settled(int64_t v) {
#ifdef __CUDACC__
  asm volatile("" : "+l"(v));
#endif
  return v;
}

// v where it is asked for: a constant that only one way leads to is else put into registers on every way.
FD_DEVICE float put_off(float v) {
#ifdef __CUDACC__
  asm volatile("" : "+f"(v));
#endif
  return v;
}

constexpr int kWarp = 32;

// The v of the lane whose number differs by `distance`, a power of two. The whole warp calls this.
FD_DEVICE float across(float v, int distance) {
#ifdef __CUDACC__
  float other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=f"(other) : "f"(v), "r"(distance));
  return other;
#else
  return __shfl_xor_sync(0xffffffffu, v, distance);
#endif
}

// The same with the distance in the instruction, which saves the one that puts it into a register.
template <int kDistance>
FD_DEVICE float across(float v) {
#ifdef __CUDACC__
  float other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=f"(other) : "f"(v), "n"(kDistance));
  return other;
#else
  return __shfl_xor_sync(0xffffffffu, v, kDistance);
#endif
}

// K sums over K lanes, a power of two, to each lane one: the k-th to lane k of these.
template <int K, int kDistance = 1>
FD_DEVICE float sum_to_lanes(const float (&v)[K]) {
  if constexpr (K == 1) {
    return v[0];
  } else {
    const bool odd = threadIdx.x & kDistance;
    float half[K / 2];
#pragma unroll
    for (int k = 0; k < K / 2; ++k)
      half[k] = (odd ? v[2 * k + 1] : v[2 * k]) + across<kDistance>(odd ? v[2 * k] : v[2 * k + 1]);
    return sum_to_lanes<K / 2, 2 * kDistance>(half);
  }
}

// The warp's sum, in every lane.
FD_DEVICE float warp_sum(float v) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) v += across(v, distance);
  return v;
}

// The block's sums, in every thread: lanes first, then warps. scratch: shared, N * kWarp floats. The block is
// one-dimensional, full warps.
template <int N>
FD_DEVICE void block_sum(float (&v)[N], Shared<float> scratch) {
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

FD_DEVICE float block_sum(float v, Shared<float> scratch) {
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
