// How RMSNorm over the channels + SiLU cuts [B, C, S] into tiles, one a block: some positions with all their channels.
//
// A block's threads form rows and columns. Neighbouring columns hold neighbouring vectors of a line of memory: channels
// first, a channel's positions; channels last, a position's channels. A thread has the vectors of one column whose
// lines lie `rows` apart. Where the channels are more than the threads hold they come in chunks, which are read again.
// The cut, and with it the order of every sum, depends on the shape, layout and element size alone.
//
// Where it comes out even (is_whole) a tile is one piece of memory, of which a thread has every kUsualThreads-th
// vector: a kernel of its own needs no bounds, no strides and no chunks. Its sums are made in the same order.
#pragma once
#include "group_norm.cuh"

namespace fastdiff {
namespace cuda {

constexpr int kUsualThreads = 256;

// Vectors of V elements that a thread holds: single elements take more registers to find.
constexpr int held_of(int per_thread, int V) { return V == 1 ? per_thread / 4 : per_thread / V; }

struct Paging {
  int64_t S;
  int32_t C;
  int32_t vector;            // elements of an access
  int32_t last;              // lines are positions
  int32_t rows, columns;     // of threads
  int32_t lines, width;      // of a full tile: lines, elements of each
  int32_t span, channels;    // the same as positions and channels of a chunk
  int32_t chunks, tiles;     // of a tile's channels; of a sample
  int32_t threads;
  int32_t lanes_along, lanes_across;   // that add up a line, and an element of all lines; powers of two
  float share;                         // of a channel in a mean over them: 1 / C
  int32_t in_warps;                    // positions' sums are made by shuffles: a line is a power of two of threads
};

static inline int32_t lanes_for(const Paging& p, int64_t outputs) {
  int32_t lanes = kWarp;
  while (lanes > 1 && lanes * outputs > p.threads) lanes /= 2;
  return lanes;
}

static inline void page_positions(Paging& p, int held) {
  p.columns = int32_t(at_most(divide_up(p.C, p.vector), kMaxThreads));
  p.rows = int32_t(at_least(1, at_most(kUsualThreads / p.columns, divide_up(p.S, held))));
  p.lines = p.span = p.rows * held;
  p.width = p.channels = p.columns * p.vector;
}

static inline void page_channels(Paging& p, int held, int size) {
  const int64_t sector = at_least(1, kSector / (p.vector * size)), needed = divide_up(p.C, held);
  p.columns = int32_t(at_most(at_least(1, kLine / (p.vector * size)), divide_up(p.S, p.vector)));
  while (p.columns > sector && p.columns * needed > kMaxThreads) p.columns = (p.columns + 1) / 2;
  p.rows = int32_t(at_most(needed, kMaxThreads / p.columns));
  p.lines = p.channels = p.rows * held;
  p.width = p.span = p.columns * p.vector;
}

// per_thread: elements that a thread holds.
static inline Paging make_paging(int64_t C, int64_t S, int32_t layout, int size, int per_thread) {
  Paging p = {};
  p.S = S, p.C = int32_t(C), p.last = layout == kChannelsLast || S == 1, p.vector = 16 / size;
  if ((p.last ? C : S) % p.vector != 0) p.vector = 1;
  const int held = held_of(per_thread, p.vector);
  p.last ? page_positions(p, held) : page_channels(p, held, size);
  p.share = 1.0f / float(C);
  p.chunks = int32_t(divide_up(C, p.channels)), p.tiles = int32_t(divide_up(S, p.span));
  p.threads = int32_t(round_up(p.rows * p.columns, kWarp));
  p.lanes_along = lanes_for(p, p.lines), p.lanes_across = lanes_for(p, p.width);
  p.in_warps = p.last && (p.columns & (p.columns - 1)) == 0 && at_most(p.columns, kWarp) >= held;
  return p;
}

// Of vectors, for else a line is no power of two, and of one chunk, for more would be of kMaxThreads.
static inline bool is_whole(const Paging& p) {
  return p.in_warps && p.S % p.span == 0 && p.rows * p.columns == kUsualThreads;
}

// Room for one addend a thread and line or a thread and element of a line, in rows of odd pitch.
static inline int64_t entries_of(const Paging& p) {
  return at_least(int64_t(p.lines) * (p.columns | 1), int64_t(p.width) * (p.rows | 1));
}

// The same for the sums of positions alone.
static inline int64_t pixel_entries_of(const Paging& p) {
  if (p.in_warps) return int64_t(p.threads) / kWarp * (p.lines / p.rows);
  return p.last ? int64_t(p.lines) * (p.columns | 1) : int64_t(p.width) * (p.rows | 1);
}

// This block's tile. kWhole: is_whole(p), and all tensors aligned to vectors. T: of all tensors, perhaps Any or Narrow.
template <class T, int V, bool kLast, int kPerThread, bool kWhole = false>
struct Page {
  static constexpr int kHeld = held_of(kPerThread, V), kPixels = kLast ? kHeld : V, kOwn = kLast ? V : kHeld,
                       kTerms = kLast ? V : 1;
  typedef Words<T, V> Raw[kHeld];
  typedef float Values[kHeld][V];
  typedef float Pixels[1][kPixels];       // a value for each of the thread's positions
  typedef float Channels[kOwn];           // and channels

  const Paging& p;
  int64_t b, first;                       // sample, position
  int32_t tile, row, column;
  bool exists;
  int32_t dtype;

  FD_MEMBER Page(const Paging& p, int32_t dtype) : p(p), dtype(dtype) {
    b = blockIdx.x / uint32_t(p.tiles), tile = blockIdx.x % uint32_t(p.tiles), first = int64_t(tile) * p.span;
    row = int32_t(threadIdx.x) / p.columns, column = int32_t(threadIdx.x) - row * p.columns;
    exists = kWhole || row < p.rows;
  }

  FD_MEMBER static constexpr int pixel(int i, int j) { return kLast ? i : j; }
  FD_MEMBER static constexpr int own(int i, int j) { return kLast ? j : i; }
  FD_MEMBER int line(int i) const { return row + i * p.rows; }

  // Of the thread's i-th position, and channel, in the tile.
  FD_MEMBER int pixel_index(int i) const { return kLast ? line(i) : column * V + i; }
  FD_MEMBER int channel_index(int i) const { return kLast ? column * V + i : line(i); }

  FD_MEMBER int positions() const { return p.S - first < p.span ? int(p.S - first) : p.span; }
  FD_MEMBER int channels(int chunk) const {
    if (kWhole) return p.channels;
    return p.C - chunk * p.channels < p.channels ? p.C - chunk * p.channels : p.channels;
  }

  // The thread's vectors in a chunk: the first one's offset, and from one to the next; and the lines from the first on.
  struct Part {
    int64_t first, apart;
    int32_t lines;
  };

  FD_MEMBER Part part(int chunk) const {
    if (kWhole) return {(int64_t(blockIdx.x) * (kHeld * kUsualThreads) + int(threadIdx.x)) * V, kUsualThreads * V, 0};
    const int lines = kLast ? positions() : channels(chunk), width = kLast ? channels(chunk) : positions();
    const int c = chunk * p.channels;
    const int64_t length = kLast ? p.C : p.S, line = kLast ? b * p.S + first + row : b * p.C + (c + row);
    return {line * length + (kLast ? c + column * V : first + column * V), p.rows * length,
            exists && column * V < width ? lines - row : 0};
  }

  // body(i, offset) for each of them. kAll: the thread has kHeld.
  template <bool kAll, class Body>
  FD_MEMBER void each(const Part& part, const Body& body) const {
    FD_UNROLL
    for (int i = 0; i < kHeld; ++i)
      if (kAll || i * p.rows < part.lines) body(i, part.first + i * part.apart);
  }

  FD_MEMBER bool in_warps() const { return kWhole || (kLast && p.in_warps); }

  // Whether a chunk's vectors are all there, and can be reached as such.
  FD_MEMBER bool is_plain(const Part& part, bool aligned) const {
    if (kWhole) return true;
    return V > 1 && aligned && part.lines > (kHeld - 1) * p.rows;
  }

  // 0 where there is nothing.
  FD_MEMBER void load(const Part& part, const void* data, bool aligned, Raw& raw) const {
    with_size<T>(dtype, [&](auto type) {
      typedef typename decltype(type)::Is U;
      const auto at = [&](int64_t offset) { return static_cast<const U*>(element<T>(data, dtype, offset)); };
      if (is_plain(part, aligned)) {
        each<true>(part, [&](int i, int64_t offset) { raw[i] = load_words<U, V>(at(offset)); });
        return;
      }
      FD_UNROLL
      for (int i = 0; i < kHeld; ++i) raw[i] = {};
      each<false>(part, [&](int i, int64_t offset) {
        raw[i] = V == 1 || aligned ? load_words<U, V>(at(offset)) : gather_words<U, V>(at(offset));
      });
    });
  }

  // One vector.
  FD_MEMBER void widen(const Words<T, V>& words, float (&v)[V]) const {
    with_dtype<T>(dtype, [&](auto type) { cuda::widen<typename decltype(type)::Is, V>(words, v); });
  }

  FD_MEMBER void widen(const Raw& raw, Values& v) const {
    with_dtype<T>(dtype, [&](auto type) {
      FD_UNROLL
      for (int i = 0; i < kHeld; ++i) cuda::widen<typename decltype(type)::Is, V>(raw[i], v[i]);
    });
  }

  FD_MEMBER static void add_squares(const Values& v, Pixels& sums) {
    FD_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      FD_UNROLL
      for (int j = 0; j < V; ++j) sums[0][pixel(i, j)] = fmaf(v[i][j], v[i][j], sums[0][pixel(i, j)]);
    }
  }

  FD_MEMBER void add_squares(const Raw& raw, Pixels& sums) const {
    Values v;
    widen(raw, v);
    add_squares(v, sums);
  }

  // A number of each of the thread's positions, from shared memory, where sum_pixels placed it.
  FD_MEMBER void take_pixels(Shared<float> numbers, float (&v)[kPixels]) const {
    if (in_warps()) {
      const Shared<Vec<float, 4>> at = seen_as<Vec<float, 4>>(numbers + row * kPixels);
      FD_UNROLL
      for (int i = 0; i < kPixels; ++i) v[i] = Vec<float, 4>(at[i / 4]).at[i % 4];
      return;
    }
    Shared<float> at = numbers + (kLast ? row : column * V);
    const int apart = kLast ? afresh(p.rows) : 1;
    FD_UNROLL
    for (int i = 0; i < kPixels; ++i, at = at + apart) v[i] = at[0];
  }

  // What load_terms put there of its channels: channels last of all, first of its i-th vector's.
  FD_MEMBER void take_terms(Shared<float> terms, int i, float (&gain)[kTerms], float (&shift)[kTerms]) const {
    FD_UNROLL
    for (int j = 0; j < kTerms; ++j) {
      const int c = channel_index(kLast ? j : i);
      gain[j] = terms[2 * c], shift[j] = terms[2 * c + 1];
    }
  }

  // The thread's i-th vector, where it exists. plain: is_plain(part, aligned).
  FD_MEMBER void store(const Part& part, void* data, bool plain, bool aligned, int i, const float (&v)[V]) const {
    Words<T, V> words;
    void* const at = element<T>(data, dtype, part.first + i * part.apart);
    with_dtype<T>(dtype, [&](auto type) { narrow<typename decltype(type)::Is, V>(v, words); });
    with_size<T>(dtype, [&](auto type) {
      typedef typename decltype(type)::Is U;
      U* const to = static_cast<U*>(at);
      if (plain) return store_words<U, V>(to, words);
      if (i * p.rows >= part.lines) return;
      if (V == 1 || aligned) store_words<U, V>(to, words);
      else scatter_words<U, V>(to, words);
    });
  }

  // Of a tile that is in_warps: the sum of the thread's lane % kPixels-th position. The whole block calls this.
  FD_MEMBER float sum_in_warps(const Pixels& mine, Shared<float> entries) const {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = int32_t(uint32_t(p.columns) / kWarp);
    float sum = sum_to_lanes(mine[0]);
    FD_UNROLL
    for (int distance = kPixels; distance < kWarp; distance *= 2)
      if (distance < p.columns) sum += across(sum, distance);
    if (warps <= 1) return sum;
    if (lane < kPixels) entries[warp * kPixels + lane] = sum;
    __syncthreads();
    Shared<float> at = entries + ((warp & -warps) * kPixels + lane % kPixels);
    sum = at[0];
    FD_ROLLED
    for (int left = warps - 1; left > 0; --left) at = at + kPixels, sum += at[0];
    return sum;
  }

  // emit(place, sum) of each position of a tile, from what the threads have of them; the places are its own in shared
  // memory. The whole block calls this, and has the sums after its next barrier.
  template <class Emit>
  FD_MEMBER void sum_pixels(const Pixels& mine, Shared<float> entries, const Emit& emit) const {
    if (in_warps()) {
      const float sum = sum_in_warps(mine, entries);
      if (exists && column < kPixels) emit(row * kPixels + column, sum);
      return;
    }
    sum<1, kPixels>(kLast, mine, entries, [&](int i, const float (&sums)[1]) { emit(i, sums[0]); });
  }

  // emit(channel, sums) likewise.
  template <int N, class Emit>
  FD_MEMBER void sum_channels(const Channels (&mine)[N], Shared<float> entries, const Emit& emit) const {
    sum<N, kOwn>(!kLast, mine, entries, emit);
  }

  // along: over the columns of each line, else over the rows of each element of a line.
  template <int N, int kCount, class Emit>
  FD_MEMBER void sum(bool along, const float (&mine)[N][kCount], Shared<float> entries, const Emit& emit) const {
    const int outputs = along ? p.lines : p.width, length = along ? p.columns : p.rows, pitch = length | 1;
    if (exists) {
      const int apart = afresh(along ? p.rows * pitch : pitch);
      FD_UNROLL
      for (int n = 0; n < N; ++n) {
        Shared<float> at = entries + ((n * outputs + (along ? row : column * V)) * pitch + (along ? column : row));
        FD_UNROLL
        for (int i = 0; i < kCount; ++i, at = at + apart) at[0] = mine[n][i];
      }
    }
    __syncthreads();
    const int lanes = along ? p.lanes_along : p.lanes_across, lane = int(threadIdx.x) & (lanes - 1);
    const int plane = afresh(outputs * pitch);
    FD_ROLLED
    for (int first = 0; first < outputs; first += blockDim.x / lanes) {
      const int k = first + int32_t(threadIdx.x) / lanes;
      float sums[N] = {};
      Shared<float> at = entries + (k * pitch + lane);
#pragma unroll 4
      for (int left = k < outputs ? length - lane : 0; left > 0; left -= lanes, at = at + lanes) {
        FD_UNROLL
        for (int n = 0; n < N; ++n) sums[n] += at[n * plane];
      }
      FD_ROLLED
      for (int distance = lanes / 2; distance > 0; distance /= 2) {
        FD_UNROLL
        for (int n = 0; n < N; ++n) sums[n] += across(sums[n], distance);
      }
      if (k < outputs && lane == 0) emit(k, sums);
    }
  }
};

// h / (1 + e^-h) of z = -h log2(e), within a few ulp.
FD_DEVICE float silu_of_exponent(float z) {
  return approximate_quotient(z, fmaf(exp2_of(z), kMinusLog2E, kMinusLog2E));
}

// 1 / sqrt(mean of squares + eps) of a position; finite.
FD_DEVICE float deviation_of(float squares, float share, float eps) {
  const float mean = fmaf(squares, share, eps), least = 1.17549435e-38f;
  return reciprocal_sqrt(mean < least ? least : mean);
}

// gain and shift of a chunk's channels, h = n * gain + shift, times a factor; 0 where there is no channel.
template <class P>
FD_DEVICE void load_terms(const P& p, const Paging& t, int64_t b, int chunk, int channels, float factor,
                          Shared<float> terms) {
  FD_ROLLED
  for (int i = threadIdx.x; i < t.channels; i += blockDim.x) {
    const int c = chunk * t.channels + i;
    float gain = 0.0f, shift = 0.0f;
    if (i < channels) {
      gain = gain_of(p, b, c) * factor;
      shift = number(p.shift, p.shift_dtype, b * p.shift_stride + c, 0.0f) * factor;
    }
    terms[2 * i] = gain, terms[2 * i + 1] = shift;
  }
}

}  // namespace cuda
}  // namespace fastdiff
