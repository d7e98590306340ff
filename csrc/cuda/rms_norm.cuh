// How RMSNorm over the channels + SiLU cuts [B, C, S] into tiles, one a block: some positions with all their channels.
//
// A block's threads form rows and columns. Neighbouring columns hold neighbouring vectors of a line of memory: channels
// first, a channel's positions; channels last, a position's channels. A thread has the vectors of one column whose
// lines lie `rows` apart. Where the channels are more than the threads hold they come in chunks, which are read again.
// The cut, and with it the order of every sum, depends on the shape, layout and element size alone.
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
};

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
  p.chunks = int32_t(divide_up(C, p.channels)), p.tiles = int32_t(divide_up(S, p.span));
  p.threads = int32_t(round_up(p.rows * p.columns, kWarp));
  return p;
}

// Room for one addend a thread and line or a thread and element of a line, in rows of odd pitch.
static inline int64_t entries_of(const Paging& p) {
  return at_least(int64_t(p.lines) * (p.columns | 1), int64_t(p.width) * (p.rows | 1));
}

// This block's tile.
template <class T, int V, bool kLast, int kPerThread>
struct Page {
  static constexpr int kHeld = held_of(kPerThread, V), kPixels = kLast ? kHeld : V, kOwn = kLast ? V : kHeld;
  typedef Words<T, V> Raw[kHeld];
  typedef float Values[kHeld][V];
  typedef float Pixels[1][kPixels];       // a value for each of the thread's positions
  typedef float Channels[kOwn];           // and channels

  const Paging& p;
  int64_t b, first;                       // sample, position
  int32_t tile, row, column;
  bool exists;

  FD_MEMBER explicit Page(const Paging& p) : p(p) {
    b = blockIdx.x / uint32_t(p.tiles), tile = blockIdx.x % uint32_t(p.tiles), first = int64_t(tile) * p.span;
    row = int32_t(threadIdx.x) / p.columns, column = int32_t(threadIdx.x) - row * p.columns;
    exists = row < p.rows;
  }

  FD_MEMBER static constexpr int pixel(int i, int j) { return kLast ? i : j; }
  FD_MEMBER static constexpr int own(int i, int j) { return kLast ? j : i; }
  FD_MEMBER int line(int i) const { return row + i * p.rows; }

  // Of the thread's i-th position, and channel, in the tile.
  FD_MEMBER int pixel_index(int i) const { return kLast ? line(i) : column * V + i; }
  FD_MEMBER int channel_index(int i) const { return kLast ? column * V + i : line(i); }

  FD_MEMBER int positions() const { return p.S - first < p.span ? int(p.S - first) : p.span; }
  FD_MEMBER int channels(int chunk) const {
    return p.C - chunk * p.channels < p.channels ? p.C - chunk * p.channels : p.channels;
  }

  // body(i, offset) for each of the thread's vectors in a chunk.
  template <class Body>
  FD_MEMBER void each(int chunk, const Body& body) const {
    const int lines = kLast ? positions() : channels(chunk), width = kLast ? channels(chunk) : positions();
    const int count = exists && column * V < width ? lines : 0;
    const int64_t c = int64_t(chunk) * p.channels, apart = int64_t(p.rows) * (kLast ? p.C : p.S);
    const int64_t from = (kLast ? (first + row) * p.C + c : (c + row) * p.S + first) + column * V;
    const int64_t base = b * p.C * p.S + from;
    FD_UNROLL
    for (int i = 0; i < kHeld; ++i)
      if (line(i) < count) body(i, base + i * apart);
  }

  // 0 where there is nothing.
  FD_MEMBER void load(int chunk, const void* data, bool aligned, Raw& raw) const {
    const T* const from = static_cast<const T*>(data);
    FD_UNROLL
    for (int i = 0; i < kHeld; ++i) raw[i] = {};
    each(chunk, [&](int i, int64_t offset) {
      if (V == 1 || aligned) {
        raw[i] = load_words<T, V>(from + offset);
      } else {
        FD_UNROLL
        for (int j = 0; j < V; ++j) put_element<T, V>(raw[i], j, from + offset + j);
      }
    });
  }

  FD_MEMBER static void widen(const Raw& raw, Values& v) {
    FD_UNROLL
    for (int i = 0; i < kHeld; ++i) cuda::widen<T, V>(raw[i], v[i]);
  }

  FD_MEMBER static void add_squares(const Raw& raw, Pixels& sums) {
    FD_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      float v[V];
      cuda::widen<T, V>(raw[i], v);
      FD_UNROLL
      for (int j = 0; j < V; ++j) sums[0][pixel(i, j)] = fmaf(v[j], v[j], sums[0][pixel(i, j)]);
    }
  }

  FD_MEMBER void store(void* data, bool aligned, int64_t offset, const float (&v)[V]) const {
    T* const to = static_cast<T*>(data) + offset;
    if (V == 1 || aligned) {
      store_floats(to, v);
    } else {
      FD_UNROLL
      for (int j = 0; j < V; ++j) store_floats(to + j, {v[j]});
    }
  }

  // emit(pixel, sum) of each position of a tile, from what the threads have of them. The whole block calls this, and
  // has the sums after its next barrier.
  template <class Emit>
  FD_MEMBER void sum_pixels(const Pixels& mine, Shared<float> entries, const Emit& emit) const {
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
      FD_UNROLL
      for (int n = 0; n < N; ++n) {
        FD_UNROLL
        for (int i = 0; i < kCount; ++i)
          entries[(n * outputs + (along ? line(i) : column * V + i)) * pitch + (along ? column : row)] = mine[n][i];
      }
    }
    __syncthreads();
    sum_rows<N>(outputs, length, [&](int n, int k, int i) -> float { return entries[(n * outputs + k) * pitch + i]; },
                [&](int k, int lane, int, const float (&sums)[N]) {
                  if (lane == 0) emit(k, sums);
                });
  }
};

// 1 / sqrt(mean of squares + eps) of a position; finite.
FD_DEVICE float deviation_of(float squares, int32_t C, float eps) {
  const float mean = fmaf(squares, reciprocal(float(C)), eps), least = 1.17549435e-38f;
  return reciprocal_sqrt(mean < least ? least : mean);
}

// gain and shift of a chunk's channels: h = n * gain + shift.
template <class P>
FD_DEVICE void load_terms(const P& p, const Paging& t, int64_t b, int chunk, int channels, Shared<float> terms) {
  FD_ROLLED
  for (int i = threadIdx.x; i < channels; i += blockDim.x) {
    const int64_t c = int64_t(chunk) * t.channels + i;
    terms[2 * i] = gain_of(p, b, c);
    terms[2 * i + 1] = number(p.shift, p.shift_dtype, b * p.shift_stride + c, 0.0f);
  }
}

}  // namespace cuda
}  // namespace fastdiff
