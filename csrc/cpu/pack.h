// Vectors of any dtype, several of them worked on together.
#pragma once
#include "../arithmetic.h"
#include "simd.h"

namespace fastdiff {
namespace FD_LEVEL {

// Arithmetic of a dtype: float32 lanes, or float64 one at a time.
template <class T> struct Arithmetic { typedef float Scalar; typedef vfloat Vector; };
template <> struct Arithmetic<double> { typedef double Scalar; typedef double Vector; };
template <class T> using Scalar = typename Arithmetic<T>::Scalar;
template <class T> using Vector = typename Arithmetic<T>::Vector;
template <class T> constexpr int32_t kArithmetic = sizeof(Scalar<T>) == 4 ? kF32 : kF64;
template <class T> constexpr int kLanes = sizeof(Vector<T>) / sizeof(Scalar<T>);

FD_SIMD double load(const double* p) { return *p; }
FD_SIMD void store(double* p, double v) { *p = v; }
FD_SIMD double sum(double v) { return v; }
FD_SIMD vfloat broadcast(float v) { return set1(v); }
FD_SIMD double broadcast(double v) { return v; }

// Whether common combinations get code of their own, a third of what there is to compile: not float64, nor processors from
// before AVX2.
#if defined(FD_X86) && !defined(__AVX2__)
template <class S> constexpr bool kSpecial = false;
#else
template <class S> constexpr bool kSpecial = sizeof(S) == sizeof(float);
#endif

// N vectors worked on together, so that their latencies overlap; N is even, or 1 at the end of a run.
template <class V, int N> struct Pack { V v[N]; };
template <class T, int N> using PackOf = Pack<Vector<T>, N>;
template <class T> constexpr int kStep = 2 * kLanes<T>;   // elements of the smallest Pack

template <class V, int N> FD_SIMD Pack<V, N> operator+(Pack<V, N> a, Pack<V, N> b) {
  FD_UNROLL
  for (int k = 0; k < N; ++k) a.v[k] += b.v[k];
  return a;
}

template <class V, int N> FD_SIMD Pack<V, N> operator-(Pack<V, N> a, Pack<V, N> b) {
  FD_UNROLL
  for (int k = 0; k < N; ++k) a.v[k] -= b.v[k];
  return a;
}

template <class V, int N> FD_SIMD Pack<V, N> operator*(Pack<V, N> a, Pack<V, N> b) {
  FD_UNROLL
  for (int k = 0; k < N; ++k) a.v[k] *= b.v[k];
  return a;
}

template <class V, int N> FD_SIMD Pack<V, N> operator/(Pack<V, N> a, Pack<V, N> b) {
  FD_UNROLL
  for (int k = 0; k < N; ++k) a.v[k] /= b.v[k];
  return a;
}

template <class V, int N> FD_SIMD Pack<V, N> madd(Pack<V, N> a, Pack<V, N> b, Pack<V, N> c) {
  FD_UNROLL
  for (int k = 0; k < N; ++k) a.v[k] = madd(a.v[k], b.v[k], c.v[k]);
  return a;
}

template <int N, class S> FD_SIMD PackOf<S, N> broadcast_pack(S v) {
  PackOf<S, N> r;
  FD_UNROLL
  for (int k = 0; k < N; ++k) r.v[k] = broadcast(v);
  return r;
}

template <class V> FD_SIMD auto sum(Pack<V, 2> a) { return sum(a.v[0] + a.v[1]); }

template <class V> FD_SIMD Pack<V, 4> join(Pack<V, 2> a, Pack<V, 2> b) { return {{a.v[0], a.v[1], b.v[0], b.v[1]}}; }
template <class V> FD_SIMD Pack<V, 2> half(Pack<V, 4> a, int i) { return {{a.v[2 * i], a.v[2 * i + 1]}}; }

// Lane by lane.
template <class V, int N> FD_SIMD V vector_sum(Pack<V, N> a) {
  if constexpr (N == 2) return a.v[0] + a.v[1];
  else return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]);
}

// N vectors of consecutive elements. Two bfloat16 share a 32-bit lane: the even ones go to the first vector of a pair,
// the odd ones to the second, which costs no shuffle. Sums over elements do not mind; per-column terms are laid out alike
// (to_columns).
template <int N, class T> FD_SIMD PackOf<T, N> load_pack(const T* p) {
  PackOf<T, N> r;
  FD_UNROLL
  for (int k = 0; k < N; ++k) r.v[k] = load(p + k * kLanes<T>);
  return r;
}

template <int N> FD_SIMD Pack<vfloat, N> load_pack(const bfloat16_t* p) {
  Pack<vfloat, N> r;
  if constexpr (N == 1) return {{load(p)}};
  FD_UNROLL
  for (int k = 0; N > 1 && k < N; k += 2) {
    vuint u;
    memcpy(&u, p + k * kWidth, sizeof u);
    r.v[k] = as_float(u << 16);
    r.v[k + 1] = as_float(u & 0xffff0000u);
  }
  return r;
}

template <class T> constexpr bool kInOrder = true;
template <> constexpr bool kInOrder<bfloat16_t> = false;

// kStep consecutive scalars in the order in which load_pack leaves kStep elements of T; and back.
template <class T> FD_SIMD PackOf<T, 2> to_columns(const Scalar<T>* p) {
  const PackOf<T, 2> v = load_pack<2>(p);
  if constexpr (kInOrder<T>) return v;
  else return {{even_lanes(v.v[0], v.v[1]), odd_lanes(v.v[0], v.v[1])}};
}

template <class T> FD_SIMD void from_columns(PackOf<T, 2> v, Scalar<T>* p) {
  if constexpr (!kInOrder<T>) v = {{lower_pairs(v.v[0], v.v[1]), upper_pairs(v.v[0], v.v[1])}};
  store(p, v.v[0]);
  store(p + kLanes<T>, v.v[1]);
}

template <class T, class V, int N> FD_SIMD void store_pack(T* p, Pack<V, N> a) {
  FD_UNROLL
  for (int k = 0; k < N; ++k) store(p + k * kLanes<T>, a.v[k]);
}

template <int N> FD_SIMD void store_pack(bfloat16_t* p, Pack<vfloat, N> a) {
  if constexpr (N == 1) store(p, a.v[0]);
  FD_UNROLL
  for (int k = 0; N > 1 && k < N; k += 2) {
    const vuint u = round_pair(a.v[k], a.v[k + 1]);
    memcpy(p + k * kWidth, &u, sizeof u);
  }
}

// A NaN whose last digits are 0, as is that of any 16 bits, and of what is computed from such: round_plain keeps it.
FD_SIMD vfloat plain(vfloat v) { return v == v ? v : set1(__builtin_nanf("")); }
FD_SIMD double plain(double v) { return v; }

// Places in a run of n elements, where vectors are loaded and stored. Whole: N vectors from element i on.
template <class T, int N> struct Whole {
  static constexpr int kPack = N;
  int64_t i;
  FD_INLINE int64_t first() const { return i; }
  FD_INLINE PackOf<T, N> load(const T* run) const { return load_pack<N>(run + i); }
  FD_INLINE void store(T* run, PackOf<T, N> v) const { store_pack(run + i, v); }
  FD_INLINE PackOf<T, N> term(const Scalar<T>* columns) const { return load_pack<N>(columns + i); }
  FD_INLINE void set_term(Scalar<T>* columns, PackOf<T, N> v) const { store_pack(columns + i, v); }
  FD_INLINE auto keep_new(PackOf<T, N> v) const {
    if constexpr (N > 1) return v;
    else return PackOf<T, 2>{{v.v[0], {}}};
  }
};

// A run shorter than kStep is padded in front.
template <class T> FD_SIMD PackOf<T, 2> load_short(const T* run, int64_t n) {
  T padded[kStep<T>] = {};
  memcpy(padded + kStep<T> - n, run, n * sizeof(T));
  return load_pack<2>(padded);
}

template <class T> FD_SIMD void store_short(T* run, PackOf<T, 2> v, int64_t n) {
  T padded[kStep<T>];
  store_pack(padded, v);
  memcpy(run, padded + kStep<T> - n, n * sizeof(T));
}

// The last kStep elements, of which n mod kStep are new; the others are worked out twice, to the same bits.
template <class T> struct End {
  static constexpr int kPack = 2;
  int64_t n;
  int64_t first() const { return n - kStep<T>; }
  FD_INLINE PackOf<T, 2> load(const T* run) const {
    return n >= kStep<T> ? load_pack<2>(run + first()) : load_short(run, n);
  }
  FD_INLINE void store(T* run, PackOf<T, 2> v) const {
    n >= kStep<T> ? store_pack(run + first(), v) : store_short(run, v, n);
  }
  // Columns keep the end's terms after those of the whole steps.
  FD_INLINE PackOf<T, 2> term(const Scalar<T>* columns) const { return load_pack<2>(columns + n / kStep<T> * kStep<T>); }
  FD_INLINE void set_term(Scalar<T>* columns, PackOf<T, 2> v) const { store_pack(columns + n / kStep<T> * kStep<T>, v); }
  FD_INLINE PackOf<T, 2> keep_new(PackOf<T, 2> v) const {
    Scalar<T> is_new[kStep<T>];
    for (int i = 0; i < kStep<T>; ++i) is_new[i] = i >= kStep<T> - n % kStep<T>;
    const PackOf<T, 2> mask = to_columns<T>(is_new), zero = broadcast_pack<2>(Scalar<T>(0));
    FD_UNROLL
    for (int k = 0; k < 2; ++k) v.v[k] = mask.v[k] != zero.v[k] ? v.v[k] : zero.v[k];
    return v;
  }
};

// body(place) over a run of n elements, N vectors at a time, then two, then the end.
template <class T, int N, class Body> FD_SIMD void sweep(int64_t n, const Body& body) {
  int64_t i = 0;
  if constexpr (N > 2)
    for (; i + N * kLanes<T> <= n; i += N * kLanes<T>) body(Whole<T, N>{i});
  for (; i + kStep<T> <= n; i += kStep<T>) body(Whole<T, 2>{i});
  if (i < n) body(End<T>{n});
}

// The same where one vector may be the end: the lanes of a Pack all meet the same terms, so their order is free.
template <class T, int N, class Body> FD_SIMD void sweep_run(int64_t n, const Body& body) {
  const int64_t last = n % kStep<T> == kLanes<T> ? kLanes<T> : 0;
  sweep<T, N>(n - last, body);
  if (last) body(Whole<T, 1>{n - last});
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
