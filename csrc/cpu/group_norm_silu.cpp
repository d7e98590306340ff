// y = drop(act(((x + add - mean) * rstd * weight + bias) * (1 + scale) + shift)) + residual, statistics per sample and
// group.
//
// Statistics are two-pass: an eighth of the group gives a pivot, then sum and sum of squares of x - pivot are taken of all
// of it. The pivot is the mean of a fraction f >= 1/8 of the group, so (pivot - mean)^2 <= variance / f, and subtracting the
// squared mean of x - pivot costs at most a factor 1 + 1/f in precision, whatever the mean. Float32 sums are of bounded
// length and are added up in float64. Partitions depend on the extents and the layout alone.
#include "dropout.h"
#include "short_runs.h"

namespace fastdiff {
namespace FD_LEVEL {
namespace {

constexpr int kGroups = 64;            // groups taken together in one unit of work
constexpr int64_t kUnit = 8192;        // elements of such a unit, and of one float32 sum of a run
constexpr int64_t kPieceRows = 64;     // rows of one float32 sum of a column
constexpr int64_t kMaskRun = 2048, kMaskRows = 64;   // elements of a run, and rows, whose mask is drawn at a time
template <class T> constexpr int64_t kPiece = 32 * kStep<T>;   // elements of a run summed at a time

// A pivot as T holds it: what is subtracted has then as few digits as x, and no sum rounds always to the same side.
FD_SIMD float as_stored(float v, float) { return v; }
FD_SIMD float as_stored(float v, half_t) { return to_float(to_half(v)); }
FD_SIMD float as_stored(float v, bfloat16_t) { return to_float(to_bfloat16(v)); }
FD_SIMD double as_stored(double v, double) { return v; }

struct Totals { double sum, squares; };   // of x + add - pivot

template <class T> struct Forward : Geometry<T, Extents<Scalar<T>, GroupNormSiluParams>> {
  typedef Geometry<T, Extents<Scalar<T>, GroupNormSiluParams>> Base;
  typedef Scalar<T> S;
  // Writes channels [c0, c1), at most kChannels; stats from the group of c0 on. Which one it is does not matter to the rest.
  typedef void (Forward::*Apply)(int64_t b, int64_t c0, int64_t c1, const Stats<S>* stats) const;
  using Base::p; using Base::D; using Base::N; using Base::rows; using Base::repeat; using Base::most;

  const Apply apply;
  const double share;                // of an element in its group's mean

  explicit Forward(const GroupNormSiluParams& params) : Base(params), apply(choose()), share(1 / double(N)) {}

  // SiLU and no more is worth code of its own, but for float64 and old processors.
  Apply choose() const {
    const bool last = this->by_columns;
    if constexpr (kSpecial<S>)
      if (p.silu && !p.residual && !p.drop.rng) return last ? &Forward::apply_columns : &Forward::apply_runs;
    return last ? &Forward::finish_columns : &Forward::finish_runs;
  }

  S add_of(int64_t b, int64_t c) const {
    return p.add ? first_lane(this->get(p.add, p.add_dtype, b * p.add_stride + c, 1)) : S(0);
  }

  Stats<S> finish(int64_t b, int64_t g, S pivot, Totals total) const {
    const double shift = total.sum * share, mean = pivot + shift;
    double variance = total.squares * share - shift * shift;
    if (variance < 0) variance = 0;
    const S rounded = S(mean), rstd = S(1 / __builtin_sqrt(variance + p.eps));
    if (p.mean) {
      static_cast<S*>(p.mean)[b * p.G + g] = rounded;
      static_cast<S*>(p.rstd)[b * p.G + g] = rstd;
    }
    return {rounded, S(mean - rounded), rstd};
  }

  // h, or k h, is (x - center) * scale + shift: terms folded into center, rstd (the scale) and shift.
  void folded_terms(int64_t b, int64_t c0, int64_t c1, const Stats<S>* stats, Terms<S>& t) const {
    const Vector<T> factor = broadcast(p.silu ? S(kFactor<Vector<T>>) : S(1));
    this->terms(b, c0, c1, stats, t);
    each_vector<T>(c1 - c0, [&](int64_t i, int) FD_INLINE {
      const Vector<T> gain = load(t.gain.v + i);
      store(t.shift.v + i, madd(load(t.offset.v + i), gain, load(t.shift.v + i)) * factor);
      store(t.rstd.v + i, load(t.rstd.v + i) * gain * factor);
    });
  }

  // ---- Runs ----

  // Adds the totals of a run of n elements, piece by piece.
  void add_run(const T* x, int64_t n, S center, PackOf<T, 2>& sums, PackOf<T, 2>& squares) const {
    const PackOf<T, 2> zero = broadcast_pack<2>(S(0));
    for (int64_t begin = 0; begin < n; begin += kPiece<T>) {
      PackOf<T, 2> s = zero, q = zero;
      sweep_run<T, 2>(n - begin < kPiece<T> ? n - begin : kPiece<T>, [&](auto at) FD_INLINE {
        const PackOf<T, 2> d = at.keep_new(at.load(x + begin) - broadcast_pack<decltype(at)::kPack>(center));
        s = s + d;
        q = madd(d, d, q);
      });
      sums = sums + s, squares = squares + q;
    }
  }

  S pivot_of(const T* x, int64_t b, int64_t g) const {
    double total = 0;
    int64_t count = 0;
    for (int64_t c = g * D; c < (g + 1) * D; c += 8, count += p.S) {
      PackOf<T, 2> sums = broadcast_pack<2>(S(0));
      sweep_run<T, 2>(p.S, [&](auto at) FD_INLINE { sums = sums + at.keep_new(at.load(x + c * p.S)); });
      total += double(sum(sums)) + double(p.S) * add_of(b, c);
    }
    return as_stored(S(total / double(count)), T());
  }

  // Blocks of channels whose elements make one float32 sum.
  int64_t block_channels() const { return p.S < kUnit ? kUnit / p.S : 1; }
  int64_t blocks() const { return (D + block_channels() - 1) / block_channels(); }

  Totals block_totals(const T* x, int64_t b, int64_t g, int64_t block, S pivot) const {
    const int64_t c0 = g * D + block * block_channels(), rest = (g + 1) * D - c0;
    const int64_t count = rest < block_channels() ? rest : block_channels();
    if (!p.add) return run_totals(x + c0 * p.S, count * p.S, pivot, 0);
    Totals total = {0, 0};
    for (int64_t c = c0; c < c0 + count; ++c) {
      const S add = add_of(b, c);
      const Totals run = run_totals(x + c * p.S, p.S, pivot - add, -rounded_off(pivot, add));
      total.sum += run.sum, total.squares += run.squares;
    }
    return total;
  }

  // Of x - center + off.
  Totals run_totals(const T* x, int64_t n, S center, double off) const {
    Totals total = {0, 0};
    for (int64_t begin = 0; begin < n; begin += kUnit) {
      PackOf<T, 2> sums = broadcast_pack<2>(S(0)), squares = sums;
      add_run(x + begin, n - begin < kUnit ? n - begin : kUnit, center, sums, squares);
      total.sum += sum(sums), total.squares += sum(squares);
    }
    return {total.sum + double(n) * off, total.squares + off * (2 * total.sum + double(n) * off)};
  }

  // Of groups [g0, g1), at most kGroups: a step of all of them after the other, so that latencies overlap.
  void group_stats(int64_t b, int64_t g0, int64_t g1, int threads, Totals* partial, Stats<S>* stats) const {
    const T* x = this->sample(p.x, b);
    S pivot[kGroups];
    Totals total[kGroups];
    for (int64_t g = g0; g < g1; ++g) pivot[g - g0] = pivot_of(x, b, g);
    for (int64_t g = g0; g < g1; ++g) {
      parallel_for(blocks(), threads, [&](int64_t i) { partial[i] = block_totals(x, b, g, i, pivot[g - g0]); });
      Totals& all = total[g - g0] = partial[0];
      for (int64_t i = 1; i < blocks(); ++i) all.sum += partial[i].sum, all.squares += partial[i].squares;
    }
    for (int64_t g = g0; g < g1; ++g) stats[g - g0] = finish(b, g, pivot[g - g0], total[g - g0]);
  }

  // Channels of runs.
  void apply_runs(int64_t b, int64_t c0, int64_t c1, const Stats<S>* stats) const {
    Terms<S> t;
    folded_terms(b, c0, c1, stats, t);
    if (p.S == kLanes<T>) return apply_vectors<1>(b, c0, c1, t);
    if (p.S == kStep<T>) return apply_vectors<2>(b, c0, c1, t);
    for (int64_t c = c0; c < c1; ++c) {
      const T* x = this->sample(p.x, b) + c * p.S;
      T* y = this->sample(p.y, b) + c * p.S;
      const S center = t.center.v[c - c0], scale = t.rstd.v[c - c0], shift = t.shift.v[c - c0];
      sweep_run<T, 4>(p.S, [&](auto at) FD_INLINE {
        constexpr int n = decltype(at)::kPack;
        const PackOf<T, n> d = at.load(x) - broadcast_pack<n>(center);
        at.store(y, silu<kDegree<T>>(madd(d, broadcast_pack<n>(scale), broadcast_pack<n>(shift))));
      });
    }
  }

  template <int kPer> void apply_vectors(int64_t b, int64_t c0, int64_t c1, const Terms<S>& t) const {
    const T* x = this->sample(p.x, b) + c0 * p.S;
    T* y = this->sample(p.y, b) + c0 * p.S;
    each_four<kPer>(c1 - c0, [&](int64_t i, auto size) FD_INLINE {
      constexpr int M = decltype(size)::value;
      const PackOf<T, M> center = each<T, M, kPer>(t.center.v + i), scale = each<T, M, kPer>(t.rstd.v + i),
                         shift = each<T, M, kPer>(t.shift.v + i);
      const PackOf<T, M> d = vectors<T, M, kPer>(x + i * p.S, p.S) - center;
      set_vectors<kPer>(y + i * p.S, silu<kDegree<T>>(madd(d, scale, shift)), p.S);
    });
  }

  // The activation and what follows, of what lies in a run as x does; kept and residual begin where it does.
  template <class Place, class P>
  FD_INLINE P finish(Place at, P h, const Mask<T>& mask, const T* kept, const T* residual) const {
    P v = p.silu ? silu<kDegree<T>>(h) : h;
    if (p.drop.rng) v = mask.apply(v, at.load(kept));
    return p.residual ? v + at.load(residual) : v;
  }

  // The same with dropout, a residual or no SiLU, a piece of a run at a time.
  void finish_runs(int64_t b, int64_t c0, int64_t c1, const Stats<S>* stats) const {
    Terms<S> t;
    folded_terms(b, c0, c1, stats, t);
    const Mask<T> mask(p.drop, b, p.S);
    T kept[kMaskRun];
    for (int64_t c = c0; c < c1; ++c) {
      const T* x = this->sample(p.x, b) + c * p.S;
      T* y = this->sample(p.y, b) + c * p.S;
      const T* residual = p.residual ? this->sample(p.residual, b) + c * p.S : nullptr;
      const S center = t.center.v[c - c0], scale = t.rstd.v[c - c0], shift = t.shift.v[c - c0];
      for (int64_t begin = 0; begin < p.S; begin += kMaskRun) {
        const int64_t length = p.S - begin < kMaskRun ? p.S - begin : kMaskRun;
        mask.run(c, begin, length, kept);
        sweep_run<T, 4>(length, [&](auto at) FD_INLINE {
          constexpr int n = decltype(at)::kPack;
          const PackOf<T, n> d = at.load(x + begin) - broadcast_pack<n>(center);
          const PackOf<T, n> h = madd(d, broadcast_pack<n>(scale), broadcast_pack<n>(shift));
          at.store(y + begin, finish(at, h, mask, kept, residual + begin));
        });
      }
    }
  }

  void runs(int threads) const {
    const int64_t fit = N < kUnit ? kUnit / N : 1, narrow = D < kChannels ? kChannels / D : 1;
    const int64_t most = fit < narrow ? fit : narrow, batch = most < kGroups ? most : kGroups;
    const int64_t units = (p.G + batch - 1) / batch;
    Scratch<Totals> partial(blocks() * (threads > 1 ? p.B * units : 1));
    if (threads == 1 || p.B * units >= 2 * threads)
      return parallel_for(p.B * units, threads, [&](int64_t u) {
        const int64_t b = u / units, g0 = u % units * batch, g1 = g0 + batch < p.G ? g0 + batch : p.G;
        Totals* mine = partial.data + (threads > 1 ? u * blocks() : 0);
        Stats<S> stats[kGroups];
        group_stats(b, g0, g1, 1, mine, stats);
        this->each_block(g0 * D, g1 * D, kChannels, [&](int64_t c0, int64_t c1) {
          (this->*apply)(b, c0, c1, stats + (c0 / D - g0));
        });
      });
    for (int64_t u = 0; u < p.B * p.G; ++u) {
      const int64_t b = u / p.G, g = u % p.G, step = block_channels() < kChannels ? block_channels() : kChannels;
      Stats<S> stats;
      group_stats(b, g, g + 1, threads, partial.data, &stats);
      parallel_for((D + step - 1) / step, threads, [&](int64_t i) {
        const int64_t c0 = g * D + i * step, c1 = c0 + step < (g + 1) * D ? c0 + step : (g + 1) * D;
        (this->*apply)(b, c0, c1, &stats);
      });
    }
  }

  // ---- Columns ----

  // Sums of every eighth row of x + add, of each group from g0 on.
  void pivot_sums(int64_t b, int64_t c0, int64_t c1, int64_t g0, double* total) const {
    Channels<T> sums;
    const T* x = this->sample(p.x, b) + c0 * repeat;
    sweep<T, 2>((c1 - c0) * repeat, [&](auto at) FD_INLINE {
      PackOf<T, 2> s = broadcast_pack<2>(S(0));
      for (int64_t row = 0; row < rows; row += 8) s = s + at.load(x + row * this->width());
      at.set_term(sums.v, s);
    });
    this->in_order(sums, (c1 - c0) * repeat);
    this->each_group(c0, c1, [&](int64_t g, int64_t i0, int64_t i1) {
      total[g - g0] += sum_of(sums.v + i0 * repeat, (i1 - i0) * repeat);
    });
    if (!p.add) return;
    for (int64_t c = c0; c < c1; ++c) total[c / D - g0] += double((rows + 7) / 8 * repeat) * add_of(b, c);
  }

  // center -= add of channels [c0, c1), and what rounding put on it, for each column.
  void subtract_add(int64_t b, int64_t c0, int64_t c1, Channels<T>& center, Channels<T>& off) const {
    for (int64_t c = c0; c < c1; ++c) {
      const S add = add_of(b, c), pivot = center.v[c - c0];
      center.v[c - c0] = pivot - add;
      off.v[c - c0] = -rounded_off(pivot, add);
    }
    this->spread(off, c1 - c0);
  }

  // Sums over the rows of d to those of d + off.
  void restore(const Channels<T>& off, int64_t columns, Channels<T>& sums, Channels<T>& squares) const {
    const PackOf<T, 2> count = broadcast_pack<2>(S(rows));
    sweep<T, 2>(columns, [&](auto at) FD_INLINE {
      const PackOf<T, 2> o = at.term(off.v), s = at.term(sums.v);
      at.set_term(squares.v, madd(o, s + madd(count, o, s), at.term(squares.v)));
      at.set_term(sums.v, madd(count, o, s));
    });
  }

  // Sums over all rows at a place, piece by piece.
  template <class Place>
  FD_INLINE void sum_rows_at(Place at, const T* x, PackOf<T, 2> center, Channels<T>& sums, Channels<T>& squares) const {
    const PackOf<T, 2> zero = broadcast_pack<2>(S(0));
    PackOf<T, 2> sum = zero, square = zero;
    for (int64_t begin = 0; begin < rows; begin += kPieceRows) {
      PackOf<T, 2> s = zero, q = zero;
      for (int64_t row = begin; row < rows && row < begin + kPieceRows; ++row) {
        const PackOf<T, 2> d = at.load(x + row * this->width()) - center;
        s = s + d, q = madd(d, d, q);
      }
      sum = sum + s, square = square + q;
    }
    at.set_term(sums.v, sum), at.set_term(squares.v, square);
  }

  void block_totals(int64_t b, int64_t c0, int64_t c1, int64_t g0, const S* pivot, Totals* total) const {
    Channels<T> center, off, sums, squares;
    const T* x = this->sample(p.x, b) + c0 * repeat;
    this->each_group(c0, c1, [&](int64_t g, int64_t i0, int64_t i1) { fill(center.v + i0, i1 - i0, pivot[g - g0]); });
    if (p.add) subtract_add(b, c0, c1, center, off);
    this->spread(center, c1 - c0);
    sweep<T, 2>((c1 - c0) * repeat,
                [&](auto at) FD_INLINE { sum_rows_at(at, x, at.term(center.v), sums, squares); });
    if (p.add) restore(off, (c1 - c0) * repeat, sums, squares);
    this->in_order(sums, (c1 - c0) * repeat), this->in_order(squares, (c1 - c0) * repeat);
    this->each_group(c0, c1, [&](int64_t g, int64_t i0, int64_t i1) {
      const int64_t first = i0 * repeat, n = (i1 - i0) * repeat;
      total[g - g0] = {sum_of(sums.v + first, n), sum_of(squares.v + first, n)};
    });
  }

  // The terms of columns.
  void column_terms(int64_t b, int64_t c0, int64_t c1, const Stats<S>* stats, Terms<S>& t) const {
    folded_terms(b, c0, c1, stats, t);
    Channels<T>* const all[] = {&t.center, &t.rstd, &t.shift};
    for (Channels<T>* values : all) this->spread(*values, c1 - c0);
  }

  void apply_columns(int64_t b, int64_t c0, int64_t c1, const Stats<S>* stats) const {
    Terms<S> t;
    column_terms(b, c0, c1, stats, t);
    const T* x = this->sample(p.x, b) + c0 * repeat;
    T* y = this->sample(p.y, b) + c0 * repeat;
    const int64_t width = this->width();
    sweep<T, 2>((c1 - c0) * repeat, [&](auto at) FD_INLINE {
      const PackOf<T, 2> center = at.term(t.center.v), slope = at.term(t.rstd.v), shift = at.term(t.shift.v);
      const auto h = [&](int64_t row) FD_INLINE { return madd(at.load(x + row * width) - center, slope, shift); };
      int64_t row = 0;
      for (; row + 2 <= rows; row += 2) {  // two rows in step, so that latencies overlap
        const PackOf<T, 4> both = silu<kDegree<T>>(join(h(row), h(row + 1)));
        at.store(y + row * width, half(both, 0)), at.store(y + (row + 1) * width, half(both, 1));
      }
      if (row < rows) at.store(y + row * width, silu<kDegree<T>>(h(row)));
    });
  }

  // The same with dropout, a residual or no SiLU, some rows at a time.
  void finish_columns(int64_t b, int64_t c0, int64_t c1, const Stats<S>* stats) const {
    Terms<S> t;
    column_terms(b, c0, c1, stats, t);
    const int64_t columns = (c1 - c0) * repeat, width = this->width();
    const T *x = this->sample(p.x, b) + c0 * repeat, *residual = p.residual ? this->sample(p.residual, b) + c0 * repeat : nullptr;
    T* y = this->sample(p.y, b) + c0 * repeat;
    const Mask<T> mask(p.drop, b, p.S);
    Scratch<T> kept(p.drop.rng ? columns * (rows < kMaskRows ? rows : kMaskRows) : 0);
    for (int64_t begin = 0; begin < rows; begin += kMaskRows) {
      const int64_t end = begin + kMaskRows < rows ? begin + kMaskRows : rows;
      rows == 1 ? mask.run(c0, 0, columns, kept.data) : mask.columns(c0, c1, begin, end - begin, kept.data);
      sweep<T, 2>(columns, [&](auto at) FD_INLINE {
        const PackOf<T, 2> center = at.term(t.center.v), slope = at.term(t.rstd.v), shift = at.term(t.shift.v);
        for (int64_t row = begin; row < end; ++row) {
          const PackOf<T, 2> h = madd(at.load(x + row * width) - center, slope, shift);
          at.store(y + row * width, finish(at, h, mask, kept.data + (row - begin) * columns, residual + row * width));
        }
      });
    }
  }

  // Groups [g0, g1) of sample b; where they are several there is one block.
  void columns_unit(int64_t b, int64_t g0, int64_t g1, int threads) const {
    const int64_t groups = g1 - g0, c1 = g1 * D, blocks = (groups * D + most - 1) / most;
    Scratch<double, kGroups> sums(blocks * groups);
    Scratch<Totals, kGroups> totals(blocks * groups);
    Scratch<S, kGroups> pivot(groups);
    Scratch<Stats<S>, kGroups> stats(groups);
    const auto each_block = [&](const auto& body) {
      parallel_for(blocks, threads, [&](int64_t i) {
        const int64_t c0 = g0 * D + i * most;
        body(i, c0, c0 + most < c1 ? c0 + most : c1);
      });
    };
    for (int64_t i = 0; i < blocks * groups; ++i) sums.data[i] = 0;
    each_block([&](int64_t i, int64_t c0, int64_t c1) { pivot_sums(b, c0, c1, g0, sums.data + i * groups); });
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t i = 1; i < blocks; ++i) sums.data[g] += sums.data[i * groups + g];
      pivot.data[g] = as_stored(S(sums.data[g] / double((rows + 7) / 8 * repeat * D)), T());
    }
    each_block([&](int64_t i, int64_t c0, int64_t c1) {
      block_totals(b, c0, c1, g0, pivot.data, totals.data + i * groups);
    });
    for (int64_t g = 0; g < groups; ++g) {
      Totals& total = totals.data[g];
      for (int64_t i = 1; i < blocks; ++i)
        total.sum += totals.data[i * groups + g].sum, total.squares += totals.data[i * groups + g].squares;
      stats.data[g] = finish(b, g0 + g, pivot.data[g], total);
    }
    each_block([&](int64_t, int64_t c0, int64_t c1) { (this->*apply)(b, c0, c1, stats.data + (c0 / D - g0)); });
  }

  void columns(int threads) const {
    this->each_unit(threads, [&](int64_t b, int64_t g0, int64_t g1, int inner) { columns_unit(b, g0, g1, inner); });
  }

  void run() const {
    const int threads = useful_threads(p.B * p.C * p.S, p.num_threads);
    this->by_columns ? columns(threads) : runs(threads);
  }
};

template <class T> Status run(const GroupNormSiluParams& p) {
  Forward<T>(p).run();
  return {};
}

}  // namespace

Status group_norm_silu(const GroupNormSiluParams& p) {
  if (p.B == 0 || p.C == 0 || p.S == 0) return {};
  switch (p.dtype) {
    case kBF16: return run<bfloat16_t>(p);
#if defined(__AVX512BF16__)
    default: return avx512::group_norm_silu(p);
#else
    case kF32: return run<float>(p);
    case kF16: return run<half_t>(p);
    case kF64: return FD_FLOAT64(group_norm_silu, p, run<double>(p));
#endif
  }
  return {kUnsupported, 0, p.dtype};
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
