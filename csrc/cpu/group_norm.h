// What the forward and the backward pass of GroupNorm + SiLU share: the per-channel terms, and how the work is cut.
//
// Both passes walk memory in one of two ways. "Runs": a channel is S consecutive elements and its terms are broadcast.
// "Columns": memory is [rows, C * repeat], each row meets the same terms, lane by lane; this is channels last (repeat 1),
// and channels first where S is shorter than a vector (one row, repeat S).
#pragma once
#include "arrays.h"
#include "kernels.h"
#include "parallel.h"
#include "silu.h"

namespace fastdiff {
namespace FD_LEVEL {

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
    int64_t g = c0 / D, end = (g + 1) * D;
    for (int64_t c = c0; c < c1; c = end, end += D, ++g) body(g, c - c0, (end < c1 ? end : c1) - c0);
  }

  FD_INLINE Vector<S> get(const void* base, int32_t dtype, int64_t i, int lanes) const {
    return Any<S>::get(base, dtype, i, lanes);
  }

  // Terms of channels [c0, c1) of sample b; stats are those of c0's group and the following.
  FD_SHARED_CODE void terms(int64_t b, int64_t c0, int64_t c1, const Stats<S>* stats, Terms<S>& t) const {
    typedef Vector<S> V;
    const int64_t g0 = c0 / D;
    each_group(c0, c1, [&](int64_t g, int64_t i0, int64_t i1) FD_INLINE {
      const Stats<S>& s = stats[g - g0];
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
    if (repeat == 1 && channels % kStep<T> == 0) {
      if constexpr (!kInOrder<T>)
        for (int64_t c = 0; c < channels; c += kStep<T>) store_pack(values.v + c, to_columns<T>(values.v + c));
      return;
    }
    Scalar<T> padded[kStep<T> + kChannels + kStep<T>] = {};
    Scalar<T>* const column = padded + kStep<T>;
    if (repeat == 1) memcpy(column, values.v, channels * sizeof(Scalar<T>));
    else for (int64_t c = 0; c < channels; ++c) fill(column + c * repeat, repeat, values.v[c]);
    sweep<T, 2>(channels * repeat, [&](auto at) FD_INLINE { at.set_term(values.v, to_columns<T>(column + at.first())); });
  }

  // Column sums of a block, in place from load_pack's order into that of memory.
  FD_SHARED_CODE void in_order(Channels<T>& sums, int64_t columns) const {
    if (kInOrder<T> && columns % kStep<T> == 0) return;
    sweep<T, 2>(columns, [&](auto at) FD_INLINE {
      Scalar<T> both[kStep<T>];
      from_columns<T>(at.term(sums.v), both);
      const int64_t before = at.first() < 0 ? -at.first() : 0;
      memcpy(sums.v + at.first() + before, both + before, (kStep<T> - before) * sizeof(Scalar<T>));
    });
  }
};

}  // namespace FD_LEVEL
}  // namespace fastdiff
