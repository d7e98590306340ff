// Watches memory: what may be reached, what was written before it is read, who else was there since the last barrier; and
// counts the bytes and sectors of registered ranges.
#include <algorithm>
#include <map>
#include <set>

#include "simt.h"

namespace simt {

std::vector<Report> reports;

namespace {

// ---- Shared memory ----

constexpr size_t kShared = 228 << 10;

// Who was at a byte. Threads are numbered in their block, intervals between barriers over all blocks.
struct Shadow {
  uint64_t written = 0, read = 0;             // interval of the last write and read; 0: none
  uint32_t write_syncs = 0, read_syncs = 0;   // of the thread's warp, then
  uint16_t writer = 0, reader = 0;
  uint32_t reading_warps = 0;                 // in interval `read`
  bool several = false;                       // threads of the reader's warp have read it, with these read_syncs
};

struct SharedMemory {
  alignas(128) unsigned char bytes[kShared];
  Shadow shadow[kShared];
  uint64_t block_began = 0;                   // its first interval
  size_t dynamic = 0, used = 0;
  std::map<const void*, Array> arrays;
} shared;

// Whether another thread's access at `then` syncs of its warp is unordered with what this thread does now.
bool unordered(int other, uint32_t then) {
  return other != current->number && (other / warpSize != current->warp || then == warps[current->warp].syncs);
}

bool races(const Shadow& at, bool store) {
  if (at.written == interval && unordered(at.writer, at.write_syncs)) return true;
  if (!store || at.read != interval) return false;
  if (at.reading_warps & ~(1u << current->warp)) return true;
  return at.read_syncs == warps[current->warp].syncs && (at.several || at.reader != current->number);
}

void note_write(Shadow& at) {
  at.written = interval;
  at.writer = uint16_t(current->number);
  at.write_syncs = warps[current->warp].syncs;
}

void note_read(Shadow& at) {
  const uint32_t syncs = warps[current->warp].syncs;
  if (at.read != interval) at.reading_warps = 0;
  const bool together = at.reading_warps >> current->warp & 1 && at.reader / warpSize == current->warp &&
                        at.read_syncs == syncs;
  at.several = together && (at.several || at.reader != current->number);
  at.reading_warps |= 1u << current->warp;
  at.read = interval;
  at.reader = uint16_t(current->number);
  at.read_syncs = syncs;
}

// ---- Global memory ----

std::map<uintptr_t, Range> ranges;            // by their begin

Range* range_of(uintptr_t address) {
  auto after = ranges.upper_bound(address);
  if (after == ranges.begin()) return nullptr;
  return &std::prev(after)->second;
}

std::string beside(uintptr_t address, const Range* below) {
  if (below) return text("%lld bytes from the end of %s", (long long)(address - below->end), below->name.c_str());
  return ranges.empty() ? "no memory is registered" : "below all registered memory";
}

// ---- Counting ----

// The lanes of a warp that execute the same access: the same place in the code, the same time around.
struct Access {
  Range* range;
  bool store;
  std::vector<std::pair<uintptr_t, uintptr_t>> spans;
};

typedef std::pair<const void*, int> Occurrence;
struct Counted {
  std::vector<std::map<Occurrence, Access>> pending;     // by warp
  std::vector<std::map<const void*, int>> times;         // by thread
} counted;

constexpr uintptr_t kSector = 32;

void settle(Access& access) {
  Traffic& traffic = access.store ? access.range->written : access.range->read;
  std::sort(access.spans.begin(), access.spans.end());
  std::set<uintptr_t> sectors;
  uintptr_t bytes = 0, end = 0;
  for (const auto& span : access.spans) {
    for (uintptr_t sector = span.first / kSector; sector * kSector < span.second; ++sector) sectors.insert(sector);
    if (span.second > end) bytes += span.second - std::max(end, span.first);
    end = std::max(end, span.second);
  }
  traffic.sectors += int64_t(sectors.size());
  traffic.minimal_sectors += int64_t((bytes + kSector - 1) / kSector);
}

void count(const void* site, Range& range, uintptr_t address, size_t bytes, bool store) {
  Traffic& traffic = store ? range.written : range.read;
  if (traffic.touched.empty()) traffic.touched.resize(range.end - range.begin);
  std::fill_n(traffic.touched.begin() + ptrdiff_t(address - range.begin), bytes, true);
  auto& pending = counted.pending[current->warp];
  const Occurrence key = {site, counted.times[current->number][site]++};
  Access& access = pending.try_emplace(key, Access{&range, store, {}}).first->second;
  if (access.range != &range) {                          // lanes in several rows of one strided tensor
    settle(access);
    access = {&range, store, {}};
  }
  access.spans.emplace_back(address, address + bytes);
  if (access.spans.size() < warps[current->warp].lanes.size()) return;
  settle(access);
  pending.erase(key);
}

}  // namespace

void begin_launch_memory(size_t dynamic_shared) {
  shared.arrays.clear();
  shared.dynamic = shared.used = dynamic_shared;
  for (auto& each : ranges) each.second.read = each.second.written = {};
}

void begin_block_memory() {
  shared.block_began = interval + 1;
  if (!settings.counting) return;
  counted.pending.assign(warps.size(), {});
  counted.times.assign(warps.size() * warpSize, {});
}

void end_block_memory() {
  if (!settings.counting) return;
  for (auto& pending : counted.pending)
    for (auto& each : pending) settle(each.second);
}

Array shared_array(const void* site, const char* name, size_t bytes, size_t alignment) {
  if (!site) return {name, shared.bytes, shared.dynamic};
  const auto found = shared.arrays.find(site);
  if (found != shared.arrays.end()) return found->second;
  const size_t begin = (shared.used + alignment - 1) / alignment * alignment;
  if (begin + bytes > kShared) fail(text("%s does not fit into shared memory", name));
  shared.used = begin + bytes;
  return shared.arrays[site] = {name, shared.bytes + begin, bytes};
}

void check_shared(const Array& array, const void* p, size_t bytes, size_t alignment, bool store) {
  const char* const verb = store ? "write" : "read";
  const ptrdiff_t first = static_cast<const unsigned char*>(p) - array.begin;
  if (first < 0 || size_t(first) + bytes > array.bytes)
    fail(text("out of bounds: a %s of %zu bytes at byte %td of the %zu of shared array %s", verb, bytes, first, array.bytes,
              array.name));
  if (reinterpret_cast<uintptr_t>(p) % alignment)
    fail(text("misaligned: a %s of %zu bytes at byte %td of shared array %s", verb, bytes, first, array.name));
  Shadow* const shadow = shared.shadow + (array.begin - shared.bytes) + first;
  for (size_t i = 0; i < bytes; ++i) {
    Shadow& at = shadow[i];
    if (!store && at.written < shared.block_began)
      fail(text("uninitialised: byte %zu of shared array %s is read and was not written", first + i, array.name));
    if (races(at, store))
      fail(text("race: a %s of byte %zu of shared array %s with an access by thread number %d, no barrier between", verb,
                first + i, array.name, at.written == interval && at.writer != current->number ? at.writer : at.reader));
    store ? note_write(at) : note_read(at);
  }
}

// Not inlined: the return address tells the accesses of a kernel apart.
__attribute__((noinline)) void check_global(const void* p, size_t bytes, bool store) {
  const void* const site = __builtin_return_address(0);
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  const char* const verb = store ? "write" : "read";
  Range* const range = range_of(address);
  if (!range || address + bytes > range->end)
    fail(text("out of bounds: a %s of %zu bytes at %p, ", verb, bytes, p) + beside(address, range));
  if (address % bytes) fail(text("misaligned: a %s of %zu bytes at %p in %s", verb, bytes, p, range->name.c_str()));
  if (store && !range->writable) fail(text("read-only: a write of %zu bytes at %p in %s", bytes, p, range->name.c_str()));
  if (settings.counting) count(site, *range, address, bytes, store);
}

void add_range(const std::string& name, uintptr_t begin, size_t bytes, bool writable) {
  if (!bytes) return;
  Range& range = ranges.try_emplace(begin, Range{name, begin, begin + bytes, writable, {}, {}}).first->second;
  range.writable |= writable;                            // a tensor updated in place is an input and an output
  range.end = std::max(range.end, begin + bytes);
}

void clear_ranges() { ranges.clear(); }

std::vector<Range> take_traffic() {
  std::vector<Range> taken;
  for (auto& each : ranges) taken.push_back(each.second);
  return taken;
}

}  // namespace simt
