// Gradients of group_norm_silu. With n = (x + add - mean) * rstd, h = n * gain + shift', dh = drop(grad_y) * act'(h),
// and per sample and channel P = sum dh, Q = sum dh n, R = sum n:
//
//     grad_x = rstd (gain dh - A / N - n B / N)   A = sum of gain P over the group, B = sum of gain Q, N elements in it
//
// and every other gradient is a combination of P, Q and R. A unit of work is some groups of a sample: the first walk makes
// their sums and keeps dh, the second grad_x. Partitions depend on the extents and the layout alone.
#include "dropout.h"
#include "group_norm_gradients.h"
#include "short_runs.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

constexpr int64_t kPiece = 64;         // rows, or steps of a run, of one float32 sum

// n = d rstd + offset with d = x - center, so that the sums over n follow from those over d. dh is k times what it is
// called (factor_of), and so are P and Q; the workspace's gain is divided by k instead.
template <class T, int N> struct Element { PackOf<T, N> d, dh; };

// What follows the norm, known to the compiler where that is worth code of its own; kAny is all of it.
enum Form { kSilu, kAny };

// dh, from t = k h and k (1 + 2^t).
template <class T, int N>
FD_SIMD PackOf<T, N> pass_back(PackOf<T, N> grad_y, PackOf<T, N> t, PackOf<T, N> divisor) {
  const PackOf<T, N> one = broadcast_pack<N>(Scalar<T>(1)), factor = broadcast_pack<N>(kFactor<Vector<T>>);
  const PackOf<T, N> open = factor / divisor;
  return grad_y * (open * madd(t, one - open, factor));
}

template <class T, Form kForm, int N>
FD_SIMD Element<T, N> differentiate(PackOf<T, N> x, PackOf<T, N> grad_y, PackOf<T, N> center, PackOf<T, N> slope,
                                    PackOf<T, N> shift, bool silu) {
  const PackOf<T, N> d = x - center;
  if (kForm == kAny && !silu) return {d, grad_y};
  const PackOf<T, N> t = madd(d, slope, shift);
  return {d, pass_back<T, N>(grad_y, t, one_and_exp2<6>(t))};
}

// second(i, first(i)) for i < n. Where registers are many, each after the next one's first: the exponential's chain and the
// divisions are worked on together, which no processor looks far enough ahead for.
template <class First, class Second> FD_SIMD void in_stages(int64_t n, const First& first, const Second& second) {
#if defined(__AVX512F__)
  if (n == 0) return;
  auto ready = first(int64_t(0));
  for (int64_t i = 0; i < n; ++i) {
    const auto next = first(i + 1 < n ? i + 1 : i);
    second(i, ready);
    ready = next;
  }
#else
  for (int64_t i = 0; i < n; ++i) second(i, first(i));
#endif
}

// Channels [c0, c1) of a unit and their dh. Terms: center, slope and shift of k h = (x - center) slope + shift; then
// slope, tilt and level of grad_x = dh slope + ((x - center) tilt + level).
template <class T> struct Block {
  int64_t c0, c1;
  Scalar<T>* dh;
  T* mask;                           // dropout's, laid out as x: a channel after the other, or a row
  Channels<T> center, slope, shift, tilt, level;
};

template <class T> struct Backward : Geometry<T, Gradients<Scalar<T>>> {
  typedef Geometry<T, Gradients<Scalar<T>>> Base;
  typedef Scalar<T> S;
  typedef Vector<T> V;
  // A block's sums, and its dh.
  typedef void (Backward::*Sum)(int64_t b, const Block<T>& k) const;
  using Base::p; using Base::D; using Base::rows; using Base::repeat; using Base::most; using Base::plane;

  const Sum sum;

  explicit Backward(const GroupNormSiluBackwardParams& params) : Base(params), sum(choose()) {}

  bool silu_alone() const { return kSpecial<S> && p.silu && !p.drop.rng; }

  Sum choose() const {
    if constexpr (kSpecial<S>)
      if (silu_alone()) return sum_as<kSilu>();
    return sum_as<kAny>();
  }
  template <Form kForm> Sum sum_as() const {
    return this->by_columns ? &Backward::template sum_columns<kForm> : &Backward::template sum_runs<kForm>;
  }

  // Between the walks dh lies where grad_x will, if that is of dh's dtype and no end is worked out twice.
  static constexpr bool kSame = sizeof(T) == sizeof(S);
  bool whole(int64_t channels) const { return channels * repeat % kStep<T> == 0; }
  bool in_place() const {
    if (!kSame) return false;
    if (!this->by_columns) return p.S % kLanes<T> == 0;
    return whole(p.C) && whole(this->batch * D) && (this->batch > 1 || whole(most));
  }

  // Else in places of its own: those of a run or of a row of columns, and the end's.
  static int64_t padded(int64_t n) { return n / kStep<T> * kStep<T> + kStep<T>; }
  int64_t kept(int64_t channels) const {
    if (!p.grad_x || in_place()) return 0;
    return this->by_columns ? rows * padded(channels * repeat) : channels * padded(p.S);
  }

  // The dh of a channel's run, or of a block's first row, and from row to row.
  S* dh_of(int64_t b, const Block<T>& k, int64_t i) const {
    const int64_t places = this->by_columns ? repeat : p.S;
    if constexpr (kSame) if (in_place()) return this->sample(p.grad_x, b) + (k.c0 + i) * places;
    return k.dh + i * padded(p.S);
  }
  int64_t dh_row(const Block<T>& k) const { return in_place() ? this->width() : padded((k.c1 - k.c0) * repeat); }

  // grad_y of the forward pass before its dropout; mask begins where the run does.
  template <Form kForm, class Place>
  FD_INLINE PackOf<T, Place::kPack> load_grad_y(Place place, int64_t b, const T* grad_y, const T* mask) const {
    const PackOf<T, Place::kPack> v = place.load(grad_y);
    return kForm == kAny && p.drop.rng ? Mask<T>(p.drop, b, p.S).apply(v, place.load(mask)) : v;
  }

  void draw(int64_t b, const Block<T>& k) const {
    const Mask<T> drawn(p.drop, b, p.S);
    if (this->by_columns && rows > 1) drawn.columns(k.c0, k.c1, 0, rows, k.mask);
    else drawn.run(k.c0, 0, (k.c1 - k.c0) * p.S, k.mask);
  }

  // ---- Terms ----

  void begin(int64_t b, Block<T>& k) const {
    Stats<S> stats[kChannels];
    Terms<S> t;
    const int64_t g0 = k.c0 / D, g1 = (k.c1 - 1) / D, channels = k.c1 - k.c0;
    for (int64_t g = g0; g <= g1; ++g)
      stats[g - g0] = {static_cast<const S*>(p.mean)[b * p.G + g], 0, static_cast<const S*>(p.rstd)[b * p.G + g]};
    this->terms(b, k.c0, k.c1, stats, t);
    memcpy(plane(b, kOffset) + k.c0, t.offset.v, channels * sizeof(S));
    memcpy(k.center.v, t.center.v, channels * sizeof(S));
    const S factor = factor_of<S>(p.silu);
    each_vector<T>(channels, [&](int64_t i, int lanes) FD_INLINE {
      const V gain = load(t.gain.v + i), shift = madd(load(t.offset.v + i), gain, load(t.shift.v + i));
      this->set(b, kGain, k.c0 + i, lanes, gain * broadcast(1 / factor));
      store(k.slope.v + i, load(t.rstd.v + i) * (gain * broadcast(factor)));
      store(k.shift.v + i, shift * broadcast(factor));
    });
    if (!this->by_columns) return;
    Channels<T>* const all[] = {&k.center, &k.slope, &k.shift};
    for (Channels<T>* values : all) this->spread(*values, channels);
  }

  void begin_second(int64_t b, Block<T>& k, int64_t g0, const S* means) const {
    Channels<T> rstds, tilts;
    this->each_group(k.c0, k.c1, [&](int64_t g, int64_t i0, int64_t i1) FD_INLINE {
      const S rstd = static_cast<const S*>(p.rstd)[b * p.G + g], tilt = -rstd * means[2 * (g - g0) + 1];
      fill(rstds.v + i0, i1 - i0, rstd);
      fill(tilts.v + i0, i1 - i0, tilt);
      fill(k.tilt.v + i0, i1 - i0, rstd * tilt);
      fill(k.level.v + i0, i1 - i0, -rstd * means[2 * (g - g0)]);
    });
    each_vector<T>(k.c1 - k.c0, [&](int64_t i, int lanes) FD_INLINE {
      store(k.slope.v + i, load(rstds.v + i) * this->at(b, kGain, k.c0 + i, lanes));
      store(k.level.v + i, madd(this->at(b, kOffset, k.c0 + i, lanes), load(tilts.v + i), load(k.level.v + i)));
    });
    if (!this->by_columns) return;
    Channels<T>* const all[] = {&k.slope, &k.tilt, &k.level};
    for (Channels<T>* values : all) this->spread(*values, k.c1 - k.c0);
  }

  // ---- Runs ----

  template <Form kForm, int M, class Place>
  FD_INLINE Element<T, M> at_run(Place place, int64_t b, const T* x, const T* grad_y, const T* mask, const Block<T>& k,
                                 int64_t i) const {
    return differentiate<T, kForm, M>(place.load(x), load_grad_y<kForm>(place, b, grad_y, mask),
                                      broadcast_pack<M>(k.center.v[i]), broadcast_pack<M>(k.slope.v[i]),
                                      broadcast_pack<M>(k.shift.v[i]), p.silu);
  }

  // A channel's sums, lane by lane, into a row of each of the three.
  template <Form kForm> void sum_run(int64_t b, const Block<T>& k, int64_t i, S* const (&row)[3]) const {
    const T* x = this->sample(p.x, b) + (k.c0 + i) * p.S;
    const T* grad_y = this->sample(p.grad_y, b) + (k.c0 + i) * p.S;
    const T* mask = kForm == kAny && p.drop.rng ? k.mask + i * p.S : nullptr;
    S* dh = p.grad_x ? dh_of(b, k, i) : nullptr;
    constexpr int64_t kLong = kPiece * kStep<T>;
    V total[3] = {};
    for (int64_t begin = 0; begin < p.S; begin += kLong) {
      V P = {}, Q = {}, R = {};
      sweep_run<T, 4>(p.S - begin < kLong ? p.S - begin : kLong, [&](auto place) FD_INLINE {
        const auto e = at_run<kForm, decltype(place)::kPack>(place, b, x + begin, grad_y + begin, mask + begin, k, i);
        if (p.grad_x) place.set_term(dh + begin, e.dh);
        const auto dh_new = place.keep_new(e.dh), d = place.keep_new(e.d);
        P += vector_sum(dh_new), Q += vector_sum(dh_new * d);
        if (p.grad_add) R += vector_sum(d);
      });
      total[kP] += P, total[kQ] += Q, total[kR] += R;
    }
    FD_UNROLL
    for (int s = 0; s < 3; ++s)
      if (s < this->sums()) store(row[s], total[s]);
  }

  // A short channel's vectors added up, into a row for each.
  template <int M, int kPer> static void set_rows(S* row, PackOf<T, M> v) {
    FD_UNROLL
    for (int m = 0; m < M; m += kPer) store(row + m / kPer * kLanes<T>, kPer == 1 ? v.v[m] : v.v[m] + v.v[m + 1]);
  }

  // Lane by lane, the sums of the channels of one vector, or of the block's last.
  struct Lanes {
    S v[3][kLanes<T> * kLanes<T>] = {};
    static int64_t row(int64_t j) { return j % kLanes<T> * kLanes<T>; }
  };

  // Adds the lanes up where channel j - 1 of the block was the last one to be kept in them.
  FD_INLINE void add_lanes(int64_t b, const Block<T>& k, int64_t j, const Lanes& lanes) const {
    if (j % kLanes<T> && k.c0 + j < k.c1) return;
    const int64_t i = (j - 1) / kLanes<T> * kLanes<T>;
    for (int s = 0; s < this->sums(); ++s) this->set(b, s, k.c0 + i, int(j - i), sum_rows(lanes.v[s]));
  }

  // Such channels of a block.
  template <int kPer> void sum_vectors(int64_t b, const Block<T>& k, Lanes& lanes) const {
    const T *x = this->sample(p.x, b) + k.c0 * p.S, *grad_y = this->sample(p.grad_y, b) + k.c0 * p.S;
    S* const dh = p.grad_x ? dh_of(b, k, 0) : nullptr;
    const int64_t length = p.S, stride = in_place() ? length : padded(length), n = k.c1 - k.c0;
    const bool adds = p.grad_add;
    const auto distance = [&](int64_t j, auto size) FD_INLINE {
      constexpr int M = decltype(size)::value;
      return vectors<T, M, kPer>(x + j * length, length) - each<T, M, kPer>(k.center.v + j);
    };
    const auto t_of = [&](int64_t j, auto size, auto d) FD_INLINE {
      constexpr int M = decltype(size)::value;
      return madd(d, each<T, M, kPer>(k.slope.v + j), each<T, M, kPer>(k.shift.v + j));
    };
    const auto keep = [&](int64_t j, auto size, auto d, auto divisor) FD_INLINE {
      constexpr int M = decltype(size)::value;
      const auto found = pass_back<T, M>(vectors<T, M, kPer>(grad_y + j * length, length), t_of(j, size, d), divisor);
      const int64_t row = lanes.row(j);
      if (dh) set_vectors<kPer>(dh + j * stride, found, stride);
      set_rows<M, kPer>(lanes.v[kP] + row, found), set_rows<M, kPer>(lanes.v[kQ] + row, found * d);
      if (adds) set_rows<M, kPer>(lanes.v[kR] + row, d);
      add_lanes(b, k, j + M / kPer, lanes);
    };
    constexpr int64_t kMany = 4 / kPer;
    const int64_t fours = n / kMany;
    in_stages(fours, [&](int64_t q) FD_INLINE {
      const int64_t j = q * kMany;
      return one_and_exp2<6>(t_of(j, Size<4>(), distance(j, Size<4>())));
    }, [&](int64_t q, const PackOf<T, 4>& divisor) FD_INLINE {
      const int64_t j = q * kMany;
      keep(j, Size<4>(), distance(j, Size<4>()), divisor);
    });
    for (int64_t j = fours * kMany; j < n; ++j) {
      const auto d = distance(j, Size<kPer>());
      keep(j, Size<kPer>(), d, one_and_exp2<6>(t_of(j, Size<kPer>(), d)));
    }
  }

  // The same of whole packs: short channels would wait for sum_run to begin.
  void sum_packs(int64_t b, const Block<T>& k, Lanes& lanes) const {
    constexpr int64_t kFour = 4 * kLanes<T>;
    const T *x = this->sample(p.x, b) + k.c0 * p.S, *grad_y = this->sample(p.grad_y, b) + k.c0 * p.S;
    S* const dh = p.grad_x ? dh_of(b, k, 0) : nullptr;
    const int64_t length = p.S, stride = in_place() ? length : padded(length);
    const bool adds = p.grad_add;
    const auto distance = [&](int64_t q, int64_t j) FD_INLINE {
      return load_pack<4>(x + q * kFour) - broadcast_pack<4>(k.center.v[j]);
    };
    struct Ready { PackOf<T, 4> t, divisor; };
    int64_t ahead = 0, j = 0;          // the channels of either stage
    V P = {}, Q = {}, R = {};
    in_stages((k.c1 - k.c0) * length / kFour, [&](int64_t q) FD_INLINE {
      if (q * kFour == (ahead + 1) * length) ++ahead;
      const PackOf<T, 4> slope = broadcast_pack<4>(k.slope.v[ahead]), shift = broadcast_pack<4>(k.shift.v[ahead]),
                         t = madd(distance(q, ahead), slope, shift);
      return Ready{t, one_and_exp2<6>(t)};
    }, [&](int64_t q, const Ready& ready) FD_INLINE {
      const PackOf<T, 4> d = distance(q, j);
      const PackOf<T, 4> found = pass_back<T, 4>(load_pack<4>(grad_y + q * kFour), ready.t, ready.divisor);
      if (dh) store_pack(dh + j * stride + (q * kFour - j * length), found);
      P += vector_sum(found), Q += vector_sum(found * d);
      if (adds) R += vector_sum(d);
      if ((q + 1) * kFour < (j + 1) * length) return;
      const int64_t row = lanes.row(j);
      store(lanes.v[kP] + row, P), store(lanes.v[kQ] + row, Q), store(lanes.v[kR] + row, R);
      P = V{}, Q = V{}, R = V{};
      add_lanes(b, k, ++j, lanes);
    });
  }

  template <Form kForm> void sum_runs(int64_t b, const Block<T>& k) const {
    Lanes lanes;
    if constexpr (kForm == kSilu) {
      if (p.S == kLanes<T>) return sum_vectors<1>(b, k, lanes);
      if (p.S == kStep<T>) return sum_vectors<2>(b, k, lanes);
      if (in_packs() && p.S <= kPiece * kStep<T>) return sum_packs(b, k, lanes);
    }
    for (int64_t j = 0; j < k.c1 - k.c0; ++j) {
      const int64_t row = lanes.row(j);
      sum_run<kForm>(b, k, j, {lanes.v[kP] + row, lanes.v[kQ] + row, lanes.v[kR] + row});
      add_lanes(b, k, j + 1, lanes);
    }
  }

  // Whether a channel is whole packs of four vectors.
  bool in_packs() const { return p.S % (4 * kLanes<T>) == 0; }

  void apply_runs(int64_t b, const Block<T>& k) const {
    if constexpr (kSpecial<S>) {       // as sum_runs has left dh
      if (silu_alone() && p.S == kLanes<T>) return apply_vectors<1>(b, k);
      if (silu_alone() && p.S == kStep<T>) return apply_vectors<2>(b, k);
      if (in_packs()) return apply_packs(b, k);
    }
    for (int64_t i = 0; i < k.c1 - k.c0; ++i) apply_run(b, k, i);
  }

  template <int kPer> void apply_vectors(int64_t b, const Block<T>& k) const {
    const T* x = this->sample(p.x, b) + k.c0 * p.S;
    T* grad_x = this->sample(p.grad_x, b) + k.c0 * p.S;
    const S* dh = dh_of(b, k, 0);
    const int64_t stride = in_place() ? p.S : padded(p.S);
    each_four<kPer>(k.c1 - k.c0, [&](int64_t i, auto size) FD_INLINE {
      constexpr int M = decltype(size)::value;
      const PackOf<T, M> d = vectors<T, M, kPer>(x + i * p.S, p.S) - each<T, M, kPer>(k.center.v + i);
      const PackOf<T, M> rest = madd(d, each<T, M, kPer>(k.tilt.v + i), each<T, M, kPer>(k.level.v + i));
      const PackOf<T, M> upstream = vectors<T, M, kPer>(dh + i * stride, stride);
      set_vectors<kPer>(grad_x + i * p.S, madd(upstream, each<T, M, kPer>(k.slope.v + i), rest), p.S);
    });
  }

  void apply_run(int64_t b, const Block<T>& k, int64_t i) const {
    const T* x = this->sample(p.x, b) + (k.c0 + i) * p.S;
    T* grad_x = this->sample(p.grad_x, b) + (k.c0 + i) * p.S;
    const S* dh = dh_of(b, k, i);
    sweep_run<T, 4>(p.S, [&](auto place) FD_INLINE { apply_at(place, x, dh, grad_x, k, i); });
  }

  template <class Place>
  FD_INLINE void apply_at(Place place, const T* x, const S* dh, T* grad_x, const Block<T>& k, int64_t i) const {
    constexpr int M = Place::kPack;
    const PackOf<T, M> d = place.load(x) - broadcast_pack<M>(k.center.v[i]);
    const auto rest = madd(d, broadcast_pack<M>(k.tilt.v[i]), broadcast_pack<M>(k.level.v[i]));
    place.store(grad_x, madd(place.term(dh), broadcast_pack<M>(k.slope.v[i]), rest));
  }

  void apply_packs(int64_t b, const Block<T>& k) const {
    const T* x = this->sample(p.x, b) + k.c0 * p.S;
    T* grad_x = this->sample(p.grad_x, b) + k.c0 * p.S;
    const S* dh = dh_of(b, k, 0);
    const int64_t length = p.S, stride = in_place() ? length : padded(length), n = k.c1 - k.c0;
    for (int64_t i = 0; i < n; ++i, x += length, grad_x += length, dh += stride)
      for (int64_t j = 0; j < length; j += 4 * kLanes<T>) apply_at(Whole<T, 4>{j}, x, dh, grad_x, k, i);
  }

  // ---- Columns ----

  // A column's sums, piece by piece of its rows.
  template <Form kForm, class Place>
  FD_INLINE void sum_columns_at(Place place, int64_t b, const Block<T>& k, Channels<T> (&sums)[3]) const {
    const int64_t width = this->width(), pad = dh_row(k);
    const T* x = this->sample(p.x, b) + k.c0 * repeat;
    const T* grad_y = this->sample(p.grad_y, b) + k.c0 * repeat;
    S* const dh = p.grad_x ? dh_of(b, k, 0) : nullptr;
    const PackOf<T, 2> center = place.term(k.center.v), slope = place.term(k.slope.v), shift = place.term(k.shift.v),
                       zero = broadcast_pack<2>(S(0));
    const auto input = [&](int64_t row) FD_INLINE { return place.load(x + row * width); };
    const auto upstream = [&](int64_t row) FD_INLINE {
      const T* mask = kForm == kAny && p.drop.rng ? k.mask + row * (k.c1 - k.c0) * repeat : nullptr;
      return load_grad_y<kForm>(place, b, grad_y + row * width, mask);
    };
    PackOf<T, 2> total[3] = {zero, zero, zero};
    for (int64_t begin = 0; begin < rows; begin += kPiece) {
      PackOf<T, 2> P = zero, Q = zero, R = zero;
      const auto take = [&](int64_t row, PackOf<T, 2> d, PackOf<T, 2> dh_row) FD_INLINE {
        if (p.grad_x) place.set_term(dh + row * pad, dh_row);
        P = P + dh_row, Q = madd(dh_row, d, Q);
        if (p.grad_add) R = R + d;
      };
      const int64_t end = begin + kPiece < rows ? begin + kPiece : rows;
      int64_t row = begin;
      for (; row + 2 <= end; row += 2) {  // two rows in step, so that latencies overlap
        const auto e = differentiate<T, kForm, 4>(join(input(row), input(row + 1)), join(upstream(row), upstream(row + 1)),
                                                  join(center, center), join(slope, slope), join(shift, shift), p.silu);
        take(row, half(e.d, 0), half(e.dh, 0)), take(row + 1, half(e.d, 1), half(e.dh, 1));
      }
      if (row < end) {
        const auto e = differentiate<T, kForm, 2>(input(row), upstream(row), center, slope, shift, p.silu);
        take(row, e.d, e.dh);
      }
      total[kP] = total[kP] + P, total[kQ] = total[kQ] + Q, total[kR] = total[kR] + R;
    }
    FD_UNROLL
    for (int s = 0; s < 3; ++s) place.set_term(sums[s].v, total[s]);
  }

  template <Form kForm> void sum_columns(int64_t b, const Block<T>& k) const {
    Channels<T> sums[3];
    sweep<T, 2>((k.c1 - k.c0) * repeat, [&](auto place) FD_INLINE { sum_columns_at<kForm>(place, b, k, sums); });
    for (int s = 0; s < this->sums(); ++s) gather(sums[s], k.c0, k.c1, plane(b, s));
  }

  // Columns summed to channels [c0, c1).
  void gather(Channels<T>& values, int64_t c0, int64_t c1, S* channel) const {
    this->in_order(values, (c1 - c0) * repeat);
    for (int64_t c = c0; c < c1; ++c)
      channel[c] = repeat == 1 ? values.v[c - c0] : sum_of(values.v + (c - c0) * repeat, repeat);
  }

  void apply_columns(int64_t b, const Block<T>& k) const {
    const int64_t width = this->width(), pad = dh_row(k);
    const T* x = this->sample(p.x, b) + k.c0 * repeat;
    const S* dh = dh_of(b, k, 0);
    T* grad_x = this->sample(p.grad_x, b) + k.c0 * repeat;
    sweep<T, 2>((k.c1 - k.c0) * repeat, [&](auto place) FD_INLINE {
      const PackOf<T, 2> center = place.term(k.center.v), slope = place.term(k.slope.v), tilt = place.term(k.tilt.v),
                         level = place.term(k.level.v);
      for (int64_t row = 0; row < rows; ++row) {
        const PackOf<T, 2> rest = madd(place.load(x + row * width) - center, tilt, level);
        place.store(grad_x + row * width, madd(place.term(dh + row * pad), slope, rest));
      }
    });
  }

  // ---- Units ----

  void first_walk(int64_t b, Block<T>& k) const {
    begin(b, k);
    if (p.drop.rng) draw(b, k);
    (this->*sum)(b, k);
    this->finish(b, k.c0, k.c1);
  }

  void second_walk(int64_t b, Block<T>& k, int64_t g0, const S* means) const {
    begin_second(b, k, g0, means);
    this->by_columns ? apply_columns(b, k) : apply_runs(b, k);
  }

  // Groups [g0, g1) of sample b.
  void unit(int64_t b, int64_t g0, int64_t g1, int threads) const {
    const int64_t c0 = g0 * D, c1 = g1 * D, blocks = (c1 - c0 + most - 1) / most;
    Scratch<Block<T>> block(blocks);
    Scratch<S> dh(blocks * kept(most)), means(2 * (g1 - g0));
    Scratch<T> masks(p.drop.rng ? blocks * most * p.S : 0);
    for (int64_t i = 0; i < blocks; ++i) {
      Block<T>& k = block.data[i];
      k.c0 = c0 + i * most, k.c1 = k.c0 + most < c1 ? k.c0 + most : c1, k.dh = dh.data + i * kept(most);
      k.mask = p.drop.rng ? masks.data + i * most * p.S : nullptr;
    }
    parallel_for(blocks, threads, [&](int64_t i) { first_walk(b, block.data[i]); });
    if (!p.grad_x && !p.grad_add) return;
    this->group_means(b, g0, g1, means.data);
    if (p.grad_x) parallel_for(blocks, threads, [&](int64_t i) { second_walk(b, block.data[i], g0, means.data); });
    if (p.grad_add) this->set_grad_add(b, g0, g1, means.data);
  }

  void run() const {
    this->each_unit(useful_threads(p.B * p.C * p.S, p.num_threads),
                    [&](int64_t b, int64_t g0, int64_t g1, int threads) { unit(b, g0, g1, threads); });
    if (p.grad_scale || p.grad_shift)
      for (int64_t b = 0; b < p.B; ++b) this->per_sample(b);
    if (p.grad_weight || p.grad_bias) this->per_channel();
  }
};

void clear_all(const GroupNormSiluBackwardParams& p) {
  clear(p.grad_weight, p.C, p.weight_dtype);
  clear(p.grad_bias, p.C, p.weight_dtype);
  clear(p.grad_add, p.B * p.C, p.add_dtype);
  clear(p.grad_scale, p.B * p.C, p.scale_dtype);
  clear(p.grad_shift, p.B * p.C, p.shift_dtype);
}

template <class T> Status run(GroupNormSiluBackwardParams p) {
  Scratch<Scalar<T>> planes(p.B * kPlanes * p.C);
  p.workspace = planes.data;
  Backward<T>(p).run();
  return {};
}

}  // namespace

Status group_norm_silu_backward(const GroupNormSiluBackwardParams& p) {
  if (p.B == 0 || p.C == 0 || p.S == 0) {
    clear_all(p);
    return {};
  }
  switch (p.dtype) {
    case kBF16: return run<bfloat16_t>(p);
#if defined(__AVX512BF16__)
    default: return avx512::group_norm_silu_backward(p);
#else
    case kF32: return run<float>(p);
    case kF16: return run<half_t>(p);
    case kF64: return FD_FLOAT64(group_norm_silu_backward, p, run<double>(p));
#endif
  }
  return {kUnsupported, 0, p.dtype};
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
