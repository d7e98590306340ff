// Gradients of group_norm_silu. With n = (x + add - mean) * rstd, h = n * a + shift', dh = grad_y * act'(h), and per sample and
// channel P = sum dh, Q = sum dh n, R = sum n:
//
//     grad_x = rstd (a dh - A / N - n B / N)      A = sum of a P over the group, B = sum of a Q, N elements in it
//
// and every other gradient is a combination of P, Q and R (see `finish`). The first walk makes the sums, the second, which
// works dh out again, grad_x. Partitions depend on the extents and the layout alone.
#include "group_norm.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

constexpr int64_t kUnit = 8192;        // elements of a unit of groups, and of one float32 sum of a run
constexpr int64_t kChunk = 16384;      // elements of a chunk of rows
constexpr int64_t kChunkRows = 128;    // rows of one float32 sum of a column
enum Sum { kP, kQ, kR, kSums };

// h = n gain + shift, n = (x - center) rstd + offset, of the elements at a place.
template <class T, int N> struct Element { PackOf<T, N> n, dh; };

template <class T, bool kSilu, int N>
FD_SIMD Element<T, N> differentiate(PackOf<T, N> x, PackOf<T, N> grad_y, PackOf<T, N> center, PackOf<T, N> rstd,
                                    PackOf<T, N> offset, PackOf<T, N> gain, PackOf<T, N> shift) {
  const PackOf<T, N> n = madd(x - center, rstd, offset);
  if (!kSilu) return {n, grad_y};
  const PackOf<T, N> h = madd(n, gain, shift), one = broadcast_pack<N>(Scalar<T>(1));
  const PackOf<T, N> gate = one / one_plus_exp_minus(h);
  return {n, grad_y * gate * madd(h, one - gate, one)};
}

// grad_x = dh slope + (n tilt + level).
template <class T> struct Share { Channels<T> slope, tilt, level; };

template <class T, bool kSilu> struct Backward : Geometry<T, GroupNormSiluBackwardParams> {
  typedef Geometry<T, GroupNormSiluBackwardParams> Base;
  typedef Scalar<T> S;
  using Base::p; using Base::D; using Base::N; using Base::rows; using Base::repeat;

  explicit Backward(const GroupNormSiluBackwardParams& params) : Base(params) {}

  S* sums(int64_t b, int64_t c) const { return static_cast<S*>(p.workspace) + (b * p.C + c) * 4; }

  // Terms of channels [c0, c1).
  void terms_of(int64_t b, int64_t c0, int64_t c1, Terms<T>& t) const {
    Stats<S> stats[kChannels];
    const int64_t g0 = c0 / D, g1 = (c1 - 1) / D;
    for (int64_t g = g0; g <= g1; ++g)
      stats[g - g0] = {static_cast<const S*>(p.mean)[b * p.G + g], 0, static_cast<const S*>(p.rstd)[b * p.G + g]};
    this->terms(b, c0, c1, stats, t);
  }

  // Adds the sums of channels [c0, c1) to A and B of their groups, counted from group g0.
  void add_to_groups(int64_t b, int64_t c0, int64_t c1, const Terms<T>& t, int64_t g0, double* group) const {
    for (int64_t c = c0; c < c1; ++c) {
      double* total = group + 2 * (c / D - g0);
      const double gain = t.gain.v[c - c0];
      total[0] += gain * sums(b, c)[kP];
      total[1] += gain * sums(b, c)[kQ];
    }
  }

  // What grad_x of channels [c0, c1) needs, and their grad_add.
  void finish(int64_t b, int64_t c0, int64_t c1, const Terms<T>& t, int64_t g0, const double* group, Share<T>& share) const {
    for (int64_t c = c0; c < c1; ++c) {
      const double* total = group + 2 * (c / D - g0);
      const double rstd = t.rstd.v[c - c0], slope = rstd * t.gain.v[c - c0];
      const double level = -rstd * total[0] / double(N), tilt = -rstd * total[1] / double(N);
      share.slope.v[c - c0] = S(slope), share.tilt.v[c - c0] = S(tilt), share.level.v[c - c0] = S(level);
      if (!p.grad_add) continue;
      const S* sum = sums(b, c);
      put(p.grad_add, p.add_dtype, b * p.C + c, slope * sum[kP] + tilt * sum[kR] + level * double(p.S));
    }
  }

  static void put(void* base, int32_t dtype, int64_t i, double v) {
    Any<S>::set(base, dtype, i, 1, broadcast(S(v)));
  }

  static double at(const void* base, int32_t dtype, int64_t i, double absent) {
    return base ? double(first_lane(Any<S>::get(base, dtype, i, 1))) : absent;
  }

  // ---- Runs ----

  void sum_run(int64_t b, int64_t c, const Terms<T>& t, int64_t i) const {
    const T* x = this->sample(p.x, b) + c * p.S;
    const T* grad_y = this->sample(p.grad_y, b) + c * p.S;
    double total[kSums] = {};
    for (int64_t begin = 0; begin < p.S; begin += kUnit) {
      PackOf<T, 2> P = broadcast_pack<2>(S(0)), Q = P, R = P;
      sweep<T, 2>(p.S - begin < kUnit ? p.S - begin : kUnit, [&](auto place) FD_INLINE {
        const auto e = at_run<2>(place, x + begin, grad_y + begin, t, i);
        const PackOf<T, 2> dh = place.keep_new(e.dh), n = place.keep_new(e.n);
        P = P + dh, Q = madd(dh, n, Q), R = R + n;
      });
      total[kP] += sum(P), total[kQ] += sum(Q), total[kR] += sum(R);
    }
    for (int k = 0; k < kSums; ++k) sums(b, c)[k] = S(total[k]);
  }

  template <int M, class Place>
  FD_INLINE Element<T, M> at_run(Place place, const T* x, const T* grad_y, const Terms<T>& t, int64_t i) const {
    return differentiate<T, kSilu, M>(place.load(x), place.load(grad_y), broadcast_pack<M>(t.center.v[i]),
                                      broadcast_pack<M>(t.rstd.v[i]), broadcast_pack<M>(t.offset.v[i]),
                                      broadcast_pack<M>(t.gain.v[i]), broadcast_pack<M>(t.shift.v[i]));
  }

  void apply_run(int64_t b, int64_t c, const Terms<T>& t, const Share<T>& share, int64_t i) const {
    const T* x = this->sample(p.x, b) + c * p.S;
    const T* grad_y = this->sample(p.grad_y, b) + c * p.S;
    T* grad_x = this->sample(p.grad_x, b) + c * p.S;
    sweep<T, 4>(p.S, [&](auto place) FD_INLINE {
      constexpr int M = decltype(place)::kPack;
      const auto e = at_run<M>(place, x, grad_y, t, i);
      const PackOf<T, M> rest = madd(e.n, broadcast_pack<M>(share.tilt.v[i]), broadcast_pack<M>(share.level.v[i]));
      place.store(grad_x, madd(e.dh, broadcast_pack<M>(share.slope.v[i]), rest));
    });
  }

  // Groups [g0, g1) of sample b; group has room for their A and B.
  void run_groups(int64_t b, int64_t g0, int64_t g1, int threads, double* group) const {
    for (int64_t i = 0; i < 2 * (g1 - g0); ++i) group[i] = 0;
    this->each_block(g0 * D, g1 * D, kChannels, [&](int64_t c0, int64_t c1) {
      Terms<T> t;
      terms_of(b, c0, c1, t);
      parallel_for(c1 - c0, threads, [&](int64_t i) { sum_run(b, c0 + i, t, i); });
      add_to_groups(b, c0, c1, t, g0, group);
    });
    if (!p.grad_x && !p.grad_add) return;
    this->each_block(g0 * D, g1 * D, kChannels, [&](int64_t c0, int64_t c1) {
      Terms<T> t;
      Share<T> share;
      terms_of(b, c0, c1, t);
      finish(b, c0, c1, t, g0, group, share);
      if (p.grad_x) parallel_for(c1 - c0, threads, [&](int64_t i) { apply_run(b, c0 + i, t, share, i); });
    });
  }

  void runs(int threads) const {
    const int64_t fit = N < kUnit ? kUnit / N : 1, narrow = D < kChannels ? kChannels / D : 1;
    const int64_t batch = fit < narrow ? fit : narrow, units = (p.G + batch - 1) / batch;
    const bool by_unit = p.B * units >= 2 * threads;
    parallel_for(p.B * units, by_unit ? threads : 1, [&](int64_t u) {
      const int64_t b = u / units, g0 = u % units * batch, g1 = g0 + batch < p.G ? g0 + batch : p.G;
      double group[2 * kChannels];
      run_groups(b, g0, g1, by_unit ? 1 : threads, group);
    });
  }

  // ---- Columns ----

  int64_t chunk_rows() const {
    const int64_t n = kChunk / (p.C * repeat);
    return n < 1 ? 1 : n < kChunkRows ? n : kChunkRows;
  }
  int64_t chunks() const { return (rows + chunk_rows() - 1) / chunk_rows(); }

  template <class Body> void each_column_block(const Body& body) const {
    this->each_block(0, p.C, kChannels / repeat, body);
  }

  void spread_terms(Terms<T>& t, int64_t channels) const {
    Channels<T>* const all[] = {&t.center, &t.rstd, &t.offset, &t.gain, &t.shift};
    for (Channels<T>* values : all) this->spread(*values, channels);
  }

  template <int M, class Place>
  FD_INLINE Element<T, M> at_columns(Place place, const T* x, const T* grad_y, const Terms<T>& t) const {
    return differentiate<T, kSilu, M>(place.load(x), place.load(grad_y), place.term(t.center.v), place.term(t.rstd.v),
                                      place.term(t.offset.v), place.term(t.gain.v), place.term(t.shift.v));
  }

  // body(x, grad_y, offset) over the rows of a chunk, columns from channel c0 on.
  template <class Body> void each_row(int64_t b, int64_t chunk, int64_t c0, const Body& body) const {
    const int64_t row0 = chunk * chunk_rows(), row1 = row0 + chunk_rows() < rows ? row0 + chunk_rows() : rows;
    for (int64_t row = row0; row < row1; ++row) {
      const int64_t offset = row * p.C * repeat + c0 * repeat;
      body(this->sample(p.x, b) + offset, this->sample(p.grad_y, b) + offset, offset);
    }
  }

  // Sums of a chunk, [kSums, C].
  void sum_chunk(int64_t b, int64_t chunk, S* partial) const {
    each_column_block([&](int64_t c0, int64_t c1) {
      const int64_t columns = (c1 - c0) * repeat;
      Terms<T> t;
      Channels<T> P, Q, R;
      terms_of(b, c0, c1, t);
      spread_terms(t, c1 - c0);
      Channels<T>* const all[] = {&P, &Q, &R};
      for (Channels<T>* values : all) fill(values->v, columns + kStep<T>, S(0));
      each_row(b, chunk, c0, [&](const T* x, const T* grad_y, int64_t) {
        sweep<T, 2>(columns, [&](auto place) FD_INLINE {
          const auto e = at_columns<2>(place, x, grad_y, t);
          place.set_term(P.v, place.term(P.v) + e.dh);
          place.set_term(Q.v, madd(e.dh, e.n, place.term(Q.v)));
          place.set_term(R.v, place.term(R.v) + e.n);
        });
      });
      gather(P, c0, c1, partial + kP * p.C);
      gather(Q, c0, c1, partial + kQ * p.C);
      gather(R, c0, c1, partial + kR * p.C);
    });
  }

  // Columns summed to channels [c0, c1).
  void gather(const Channels<T>& values, int64_t c0, int64_t c1, S* channel) const {
    S padded[kStep<T> + kChannels + kStep<T>], *column = padded + kStep<T>;
    sweep<T, 2>((c1 - c0) * repeat,
                [&](auto place) FD_INLINE { from_columns<T>(place.term(values.v), column + place.first()); });
    for (int64_t c = c0; c < c1; ++c) channel[c] = repeat == 1 ? column[c - c0] : sum_of(column + (c - c0) * repeat, repeat);
  }

  void apply_chunk(int64_t b, int64_t chunk, const double* group) const {
    each_column_block([&](int64_t c0, int64_t c1) {
      Terms<T> t;
      Share<T> share;
      terms_of(b, c0, c1, t);
      finish(b, c0, c1, t, 0, group, share);
      spread_terms(t, c1 - c0);
      Channels<T>* const all[] = {&share.slope, &share.tilt, &share.level};
      for (Channels<T>* values : all) this->spread(*values, c1 - c0);
      if (!p.grad_x) return;
      each_row(b, chunk, c0, [&](const T* x, const T* grad_y, int64_t offset) {
        T* grad_x = this->sample(p.grad_x, b) + offset;
        sweep<T, 2>((c1 - c0) * repeat, [&](auto place) FD_INLINE {
          const auto e = at_columns<2>(place, x, grad_y, t);
          const auto rest = madd(e.n, place.term(share.tilt.v), place.term(share.level.v));
          place.store(grad_x, madd(e.dh, place.term(share.slope.v), rest));
        });
      });
    });
  }

  void columns_of_sample(int64_t b, int threads, S* partial, double* group) const {
    parallel_for(chunks(), threads, [&](int64_t i) { sum_chunk(b, i, partial + i * kSums * p.C); });
    for (int64_t c = 0; c < p.C; ++c)
      for (int k = 0; k < kSums; ++k) {
        double total = 0;
        for (int64_t i = 0; i < chunks(); ++i) total += partial[(i * kSums + k) * p.C + c];
        sums(b, c)[k] = S(total);
      }
    for (int64_t i = 0; i < 2 * p.G; ++i) group[i] = 0;
    this->each_block(0, p.C, kChannels, [&](int64_t c0, int64_t c1) {
      Terms<T> t;
      terms_of(b, c0, c1, t);
      add_to_groups(b, c0, c1, t, 0, group);
    });
    if (p.grad_x || p.grad_add)
      parallel_for(p.grad_x ? chunks() : 1, threads, [&](int64_t i) { apply_chunk(b, i, group); });
  }

  void columns(int threads) const {
    const bool by_sample = p.B >= threads;
    Scratch<S> partial(p.B * chunks() * kSums * p.C);
    Scratch<double> group(p.B * 2 * p.G);
    parallel_for(p.B, by_sample ? threads : 1, [&](int64_t b) {
      columns_of_sample(b, by_sample ? 1 : threads, partial.data + b * chunks() * kSums * p.C, group.data + b * 2 * p.G);
    });
  }

  // ---- Gradients of [C] and [B, C] ----

  // grad_scale = weight Q + bias P, grad_shift = P.
  void per_sample(int64_t b) const {
    for (int64_t c = 0; c < p.C; ++c) {
      const S* sum = sums(b, c);
      if (p.grad_shift) put(p.grad_shift, p.shift_dtype, b * p.C + c, sum[kP]);
      if (!p.grad_scale) continue;
      const double weight = at(p.weight, p.weight_dtype, c, 1), bias = at(p.bias, p.weight_dtype, c, 0);
      put(p.grad_scale, p.scale_dtype, b * p.C + c, weight * sum[kQ] + bias * sum[kP]);
    }
  }

  // grad_weight = sum over b of (1 + scale) Q, grad_bias = sum of (1 + scale) P.
  void per_channel() const {
    for (int64_t c = 0; c < p.C; ++c) {
      double weight = 0, bias = 0;
      for (int64_t b = 0; b < p.B; ++b) {
        const double factor = 1 + at(p.scale, p.scale_dtype, b * p.scale_stride + c, 0);
        weight += factor * sums(b, c)[kQ];
        bias += factor * sums(b, c)[kP];
      }
      if (p.grad_weight) put(p.grad_weight, p.weight_dtype, c, weight);
      if (p.grad_bias) put(p.grad_bias, p.weight_dtype, c, bias);
    }
  }

  void run() const {
    const int threads = useful_threads(p.B * p.C * p.S, p.num_threads);
    this->by_columns ? columns(threads) : runs(threads);
    if (p.grad_scale || p.grad_shift)
      for (int64_t b = 0; b < p.B; ++b) per_sample(b);
    if (p.grad_weight || p.grad_bias) per_channel();
  }
};

template <class T> void backward(const GroupNormSiluBackwardParams& p) {
  p.silu ? Backward<T, true>(p).run() : Backward<T, false>(p).run();
}

// Sums over nothing.
void clear(void* gradient, int64_t n, int32_t dtype) {
  if (gradient) memset(gradient, 0, n * dtype_size(dtype));
}

void clear_all(const GroupNormSiluBackwardParams& p) {
  clear(p.grad_weight, p.C, p.weight_dtype);
  clear(p.grad_bias, p.C, p.weight_dtype);
  clear(p.grad_add, p.B * p.C, p.add_dtype);
  clear(p.grad_scale, p.B * p.C, p.scale_dtype);
  clear(p.grad_shift, p.B * p.C, p.shift_dtype);
}

}  // namespace

Status group_norm_silu_backward(const GroupNormSiluBackwardParams& p) {
  if (p.B == 0 || p.C == 0 || p.S == 0) {
    clear_all(p);
    return {};
  }
  switch (p.dtype) {
    case kF32: backward<float>(p); return {};
    case kF16: backward<half_t>(p); return {};
    case kBF16: backward<bfloat16_t>(p); return {};
    case kF64: backward<double>(p); return {};
  }
  return {kUnsupported, 0, p.dtype};
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
