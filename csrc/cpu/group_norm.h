// What the forward and the backward pass of GroupNorm + SiLU share: vectors of any dtype, SiLU, and the per-channel terms.
//
// Both passes walk memory in one of two ways. "Runs": a channel is S consecutive elements and its terms are broadcast.
// "Columns": memory is [rows, C * repeat], each row meets the same terms, lane by lane; this is channels last (repeat 1),
// and channels first where S is shorter than a vector (one row, repeat S).
#pragma once
#include "../arithmetic.h"
#include "kernels.h"
#include "parallel.h"
#include "simd.h"

#define FD_INLINE __attribute__((always_inline))   // for lambdas and members that pass vectors
#define FD_SHARED_CODE __attribute__((noinline))   // where a copy for each caller would be compiled and not felt

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

// SiLU is worked out from t = k h with k = -log2 e, which comes for nothing with the terms of h: exp(-h) = 2^t, and with
// a polynomial for k 2^t the factor goes where a 1 would stand: h / (1 + exp(-h)) = t / (k + k 2^t). (h > 2.3e38
// overflows.)
constexpr double kLog2E = 1.44269504088896341;
template <class V> constexpr float kFactor = float(-kLog2E);
template <> constexpr double kFactor<double> = -kLog2E;

// k 2^r within 2^-26 (degree 6), 2^-23 (5) or 2^-18 (4), minimax: of r in [0, 1] where 2^floor(t) is one instruction,
// else of |r| <= 1/2.
template <int kDegree, int N> FD_SIMD Pack<vfloat, N> exp2_fraction(Pack<vfloat, N> r) {
#if defined(__AVX512F__)
  constexpr float kTerms[3][7] = {
      {-1.44269872f, -0.999793172f, -0.348328263f, -0.0750366747f, -0.019525677f},
      {-1.4426949f, -1.00000846f, -0.346468419f, -0.0805403516f, -0.0129688764f, -0.00270877057f},
      {-1.44269502f, -0.999999702f, -0.346578389f, -0.0800455436f, -0.0139636155f, -0.00179466757f, -3.13097349e-4f},
  };
#else
  constexpr float kTerms[3][7] = {
      {-1.44269395f, -0.999963403f, -0.346603811f, -0.0806724206f, -0.013806738f},
      {-1.44269514f, -0.999999702f, -0.346565932f, -0.080079861f, -0.0139588555f, -0.00191539002f},
      {-1.44269502f, -1.0f, -0.346573532f, -0.0800743178f, -0.0138765462f, -0.00193320145f, -2.2139326e-4f},
  };
#endif
  Pack<vfloat, N> q = broadcast_pack<N>(kTerms[kDegree - 4][kDegree]);
  FD_UNROLL
  for (int i = kDegree - 1; i >= 0; --i) q = madd(q, r, broadcast_pack<N>(kTerms[kDegree - 4][i]));
  return q;
}

// k (1 + 2^t); NaN passes. Vectors go through in step: one after the other they would fill the scheduler with waiting.
template <int kDegree, int N> FD_SIMD Pack<vfloat, N> one_and_exp2(Pack<vfloat, N> t) {
  Pack<vfloat, N> r, power;
#if defined(__AVX512F__)
  FD_UNROLL
  for (int k = 0; k < N; ++k) r.v[k] = (vfloat)_mm512_reduce_ps((__m512)t.v[k], _MM_FROUND_TO_NEG_INF);
  power = exp2_fraction<kDegree>(r);
  FD_UNROLL
  for (int k = 0; k < N; ++k) power.v[k] = (vfloat)_mm512_scalef_ps((__m512)power.v[k], (__m512)t.v[k]);
#else
  const vfloat magic = set1(12582912.0f);                              // 1.5 * 2^23: adding it rounds to an integer
  Pack<vfloat, N> shifted;
  FD_UNROLL
  for (int k = 0; k < N; ++k) {
    const vfloat limited = limit(t.v[k], -125.0f, 125.0f);             // 2^n stays a number
    shifted.v[k] = limited + magic;
    r.v[k] = limited - (shifted.v[k] - magic);
  }
  power = exp2_fraction<kDegree>(r);
  FD_UNROLL
  for (int k = 0; k < N; ++k) power.v[k] = as_float(as_uint(power.v[k]) + (as_uint(shifted.v[k]) << 23));
#endif
  return power + broadcast_pack<N>(kFactor<vfloat>);
}

template <int kDegree, int N> FD_SIMD Pack<double, N> one_and_exp2(Pack<double, N> t) {
  FD_UNROLL
  for (int k = 0; k < N; ++k) t.v[k] = -kLog2E * (1 + __builtin_exp2(t.v[k]));
  return t;
}

// h sigmoid(h) of k h.
template <int kDegree, class V, int N> FD_SIMD Pack<V, N> silu(Pack<V, N> t) {
  return t / one_and_exp2<kDegree>(t);
}

template <int kDegree, class V, int N> FD_SIMD Pack<V, N> sigmoid(Pack<V, N> h) {
  const Pack<V, N> factor = broadcast_pack<N>(kFactor<V>);
  return factor / one_and_exp2<kDegree>(h * factor);
}

// As good as a result that is rounded to T once more needs.
template <class T> constexpr int kDegree = 6;
template <> constexpr int kDegree<half_t> = 5;
template <> constexpr int kDegree<bfloat16_t> = 4;

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

// Channels whose terms are held at a time, and columns.
constexpr int kChannels = 512;

// Mean (in two parts: low is what rounding took) and reciprocal deviation of a group.
template <class S> struct Stats { S mean, low, rstd; };

// One value per channel; vectors may be stored over the end.
template <class S> struct ChannelsOf {
  S v[kChannels + kStep<S>];
};
template <class T> using Channels = ChannelsOf<Scalar<T>>;

// With n = (x - center) * rstd + offset the output is act(n * gain + shift).
template <class S> struct Terms { ChannelsOf<S> center, rstd, offset, gain, shift; };

// Up to a vector's elements; lanes past them are 0.
template <class T> FD_SIMD Vector<T> load_lanes(const T* p, int n) {
  if constexpr (kLanes<T> == 1) return load(p);
  else return n == kLanes<T> ? load(p) : load_first(p, n);
}

template <class T> FD_SIMD void store_lanes(T* p, Vector<T> v, int n) {
  if constexpr (kLanes<T> == 1) store(p, v);
  else n == kLanes<T> ? store(p, v) : store_first(p, v, n);
}

// n <= kLanes values from index i on of an array of any dtype.
template <class S> struct Any;

template <> struct Any<float> {
  FD_INLINE static vfloat get(const void* base, int32_t dtype, int64_t i, int n) {
    return dtype == kF32 ? load_lanes(static_cast<const float*>(base) + i, n) : converted(base, dtype, i, n);
  }
  FD_SHARED_CODE static vfloat converted(const void* base, int32_t dtype, int64_t i, int n) {
    if (dtype == kBF16) return load_lanes(static_cast<const bfloat16_t*>(base) + i, n);
    if (dtype == kF16) return load_lanes(static_cast<const half_t*>(base) + i, n);
    float lane[kWidth] = {};
    for (int k = 0; k < n; ++k) lane[k] = float(static_cast<const double*>(base)[i + k]);
    return load(lane);
  }
  FD_SHARED_CODE static void set(void* base, int32_t dtype, int64_t i, int n, vfloat v) {
    if (dtype == kF32) return store_lanes(static_cast<float*>(base) + i, v, n);
    if (dtype == kBF16) return store_lanes(static_cast<bfloat16_t*>(base) + i, v, n);
    if (dtype == kF16) return store_lanes(static_cast<half_t*>(base) + i, v, n);
    for (int k = 0; k < n; ++k) static_cast<double*>(base)[i + k] = v[k];
  }
};

template <> struct Any<double> {
  FD_SHARED_CODE static double get(const void* base, int32_t dtype, int64_t i, int) {
    if (dtype == kF32) return static_cast<const float*>(base)[i];
    if (dtype == kBF16) return to_float(static_cast<const bfloat16_t*>(base)[i]);
    if (dtype == kF16) return to_float(static_cast<const half_t*>(base)[i]);
    return static_cast<const double*>(base)[i];
  }
  FD_SHARED_CODE static void set(void* base, int32_t dtype, int64_t i, int, double v) {
    if (dtype == kF32) static_cast<float*>(base)[i] = float(v);
    else if (dtype == kBF16) static_cast<bfloat16_t*>(base)[i] = to_bfloat16(float(v));
    else if (dtype == kF16) static_cast<half_t*>(base)[i] = to_half(float(v));
    else static_cast<double*>(base)[i] = v;
  }
};

// body(i, lanes) over n channels, a vector at a time.
template <class T, class Body> FD_SIMD void each_vector(int64_t n, const Body& body) {
  for (int64_t i = 0; i < n; i += kLanes<T>) body(i, n - i < kLanes<T> ? int(n - i) : kLanes<T>);
}

// Sum of n scalars in a fixed order.
template <class S> static S sum_of(const S* p, int64_t n) {
  S total = 0;
  int64_t i = 0;
  if (n >= kLanes<S>) {
    Vector<S> lanes = load(p);
    for (i = kLanes<S>; i + kLanes<S> <= n; i += kLanes<S>) lanes += load(p + i);
    total = sum(lanes);
  }
  for (; i < n; ++i) total += p[i];
  return total;
}

// Lane j is the sum of vector j of kWidth in a row, neighbours added first.
FD_SIMD vfloat sum_rows(const float* p) {
  vfloat v[kWidth];
  FD_UNROLL
  for (int i = 0; i < kWidth; ++i) v[i] = load(p + i * kWidth);
  FD_UNROLL
  for (int n = kWidth / 2; n; n /= 2) {
    FD_UNROLL
    for (int i = 0; i < n; ++i) v[i] = add_pairs(v[2 * i], v[2 * i + 1]);
  }
  return v[0];
}

FD_SIMD double sum_rows(const double* p) { return *p; }

// p[0..n) = v; up to a vector more is overwritten.
template <class S> FD_SIMD void fill(S* p, int64_t n, S v) {
  for (int64_t i = 0; i < n; i += kLanes<S>) store(p + i, broadcast(v));
}

FD_SIMD float first_lane(vfloat v) { return v[0]; }
FD_SIMD double first_lane(double v) { return v; }

// What rounding takes of a - b.
template <class V> FD_SIMD V rounded_off(V a, V b) {
  const V difference = a - b, subtracted = a - difference;
  return (a - (difference + subtracted)) + (subtracted - b);
}

// A gradient that is a sum over nothing.
FD_SIMD void clear(void* gradient, int64_t n, int32_t dtype) {
  if (gradient) memset(gradient, 0, n * dtype_size(dtype));
}

// n values of a plain type, not initialised.
template <class V> struct Scratch {
  V* const data;
  explicit Scratch(int64_t n) : data(new V[n]) {}
  ~Scratch() { delete[] data; }
  Scratch(const Scratch&) = delete;
};

// Fewer threads where there is little to do: a parallel region costs as much as some ten thousand elements.
FD_SIMD int useful_threads(int64_t elements, int num_threads) {
  const int64_t most = elements / 16384;
  return most < 1 ? 1 : most < num_threads ? int(most) : num_threads;
}

// The extents of a tensor in groups, and how they are cut, for either pass; S is what is computed in. A unit of work is
// `batch` groups of a sample, a block at most `most` channels of it: all of them, or a part of one large group.
template <class S, class Params> struct Extents {
  static constexpr int64_t kRunsUnit = 8192, kColumnsUnit = 16384;   // elements of a unit of smaller groups, of a block
  static constexpr int64_t kPanel = 128;   // columns that end the search for groups that fill whole steps

  const Params& p;
  int64_t D, N;            // channels, elements of a group
  bool by_columns;
  int64_t rows, repeat;    // columns: memory is [B, rows, C * repeat]
  int64_t batch, most;

  explicit Extents(const Params& params) : p(params), D(p.C / p.G), N(D * p.S) {
    by_columns = p.layout == kChannelsLast || p.S < kLanes<S>;
    rows = p.layout == kChannelsLast ? p.S : 1;
    repeat = p.layout == kChannelsLast ? 1 : p.S;
    const int64_t held = kChannels / (by_columns ? repeat : 1), unit = by_columns ? kColumnsUnit : kRunsUnit;
    const int64_t panel = by_columns ? panel_groups() : 1;
    batch = panel * (N * panel < unit ? unit / (N * panel) : 1);
    if (batch > p.G) batch = p.G;
    if (batch * D > held && batch > 1) batch = D < held ? held / D : 1;
    most = batch > 1 ? held : part(unit) < held ? part(unit) : held;
  }

  // Groups that fill whole steps of columns, if few do.
  int64_t panel_groups() const {
    int64_t groups = 1;
    while (groups * D * repeat % kStep<S> && groups * D * repeat < kPanel) ++groups;
    return groups;
  }

  // Channels of a part of a large group.
  int64_t part(int64_t unit) const {
    const int64_t n = unit / (by_columns ? rows * repeat : p.S), least = by_columns ? (kPanel + repeat - 1) / repeat : 1;
    return n > least ? n : least;
  }

  int64_t parts() const { return (p.G + batch - 1) / batch; }
  int64_t width() const { return p.C * repeat; }

  // unit(b, g0, g1, threads) for all units, side by side where there are enough of them.
  template <class Unit> void each_unit(int threads, const Unit& unit) const {
    const bool by_unit = p.B * parts() >= 2 * threads;
    parallel_for(p.B * parts(), by_unit ? threads : 1, [&](int64_t u) {
      const int64_t b = u / parts(), g0 = u % parts() * batch, g1 = g0 + batch < p.G ? g0 + batch : p.G;
      unit(b, g0, g1, by_unit ? 1 : threads);
    });
  }

  // body(c0, c1) over [begin, end) in blocks of at most `most` channels: whole groups, or a part of one. begin starts a group.
  template <class Body> void each_block(int64_t begin, int64_t end, int64_t most, const Body& body) const {
    for (int64_t c = begin; c < end;) {
      const int64_t group_end = (c / D + 1) * D;
      int64_t next = D <= most ? c + most / D * D : c + most < group_end ? c + most : group_end;
      if (next > end) next = end;
      body(c, next);
      c = next;
    }
  }

  // body(g, i0, i1) for the groups that meet channels [c0, c1), i counted from c0.
  template <class Body> FD_INLINE void each_group(int64_t c0, int64_t c1, const Body& body) const {
    for (int64_t c = c0; c < c1;) {
      const int64_t g = c / D, next = (g + 1) * D < c1 ? (g + 1) * D : c1;
      body(g, c - c0, next - c0);
      c = next;
    }
  }

  FD_INLINE Vector<S> get(const void* base, int32_t dtype, int64_t i, int lanes) const {
    return Any<S>::get(base, dtype, i, lanes);
  }

  // Terms of channels [c0, c1) of sample b; stats are those of c0's group and the following.
  FD_SHARED_CODE void terms(int64_t b, int64_t c0, int64_t c1, const Stats<S>* stats, Terms<S>& t) const {
    typedef Vector<S> V;
    each_group(c0, c1, [&](int64_t g, int64_t i0, int64_t i1) FD_INLINE {
      const Stats<S>& s = stats[g - c0 / D];
      fill(t.center.v + i0, i1 - i0, s.mean);
      fill(t.offset.v + i0, i1 - i0, s.low);
      fill(t.rstd.v + i0, i1 - i0, s.rstd);
    });
    each_vector<S>(c1 - c0, [&](int64_t i, int lanes) FD_INLINE {
      V low = load(t.offset.v + i);
      if (p.add) {
        const V center = load(t.center.v + i), add = get(p.add, p.add_dtype, b * p.add_stride + c0 + i, lanes);
        low += rounded_off(center, add);
        store(t.center.v + i, center - add);
      }
      store(t.offset.v + i, -low * load(t.rstd.v + i));
      V gain = p.weight ? get(p.weight, p.weight_dtype, c0 + i, lanes) : broadcast(S(1));
      V shift = p.bias ? get(p.bias, p.weight_dtype, c0 + i, lanes) : broadcast(S(0));
      if (p.scale) {
        const V scale = 1 + get(p.scale, p.scale_dtype, b * p.scale_stride + c0 + i, lanes);
        gain *= scale, shift *= scale;
      }
      if (p.shift) shift += get(p.shift, p.shift_dtype, b * p.shift_stride + c0 + i, lanes);
      store(t.center.v + i, plain(load(t.center.v + i)));
      store(t.gain.v + i, plain(gain));
      store(t.shift.v + i, plain(shift));
    });
  }
};

// The same, Base, with elements of T.
template <class T, class Base> struct Geometry : Base {
  using Base::p; using Base::repeat;
  using Base::Base;

  const T* sample(const void* base, int64_t b) const { return static_cast<const T*>(base) + b * p.C * p.S; }
  T* sample(void* base, int64_t b) const { return static_cast<T*>(base) + b * p.C * p.S; }

  // Per-channel values repeated for each column, in place: in load_pack's order, the end's after the whole steps'.
  FD_SHARED_CODE void spread(Channels<T>& values, int64_t channels) const {
    if (repeat == 1 && channels % kStep<T> == 0 && kInOrder<T>) return;
    Scalar<T> padded[kStep<T> + kChannels + kStep<T>] = {};
    Scalar<T>* const column = padded + kStep<T>;
    if (repeat == 1) memcpy(column, values.v, channels * sizeof(Scalar<T>));
    else for (int64_t c = 0; c < channels; ++c) fill(column + c * repeat, repeat, values.v[c]);
    sweep<T, 2>(channels * repeat, [&](auto at) FD_INLINE { at.set_term(values.v, to_columns<T>(column + at.first())); });
  }
};

}  // namespace FD_LEVEL
}  // namespace fastdiff
