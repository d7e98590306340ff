// What scheduler.cpp, memory.cpp and module.cpp share.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "fiber.h"
#include "include/cuda_runtime.h"

namespace simt {

enum class State { kReady, kAtMeeting, kAtBarrier, kDone };

struct Meeting {
  Together kind;
  uint32_t mask;
  uint64_t value;
  int source;
};

struct Thread {
  Context context;
  State state;
  uint3 index;
  int number, lane, warp;
  Meeting meeting;
  uint64_t answer;
};

struct Warp {
  std::vector<Thread*> lanes;
  uint32_t syncs;               // __syncwarp's of the whole warp
};

// What the caller asks of every launch to come.
struct Settings {
  uint64_t seed = 0;            // order of blocks, warps and lanes; 0: ascending
  bool counting = false;
  int multiprocessors = 132;
  std::vector<int64_t> only_blocks;   // linear indices, negative from the end; empty: all
  // What a launch does instead: kernel, grid, block, dynamic shared memory, bytes of each argument. Empty: it runs here.
  std::function<void(const std::string&, dim3, dim3, size_t, const std::vector<std::string>&)> elsewhere;
};

extern Settings settings;
extern Thread* current;         // NULL between the threads' turns
extern std::vector<Warp> warps;
extern uint64_t interval;       // counts what lies between two barriers, over all blocks

// Ends the launch from within a thread.
[[noreturn]] void fail(const std::string& finding);

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- memory.cpp ----

void begin_launch_memory(size_t dynamic_shared);
void begin_block_memory();
void end_block_memory();

// What a launch did to one registered range.
struct Traffic {
  std::vector<bool> touched;    // by byte
  int64_t sectors = 0, minimal_sectors = 0;
};

struct Range {
  std::string name;
  uintptr_t begin, end;
  bool writable;
  Traffic read, written;
};

struct Report {
  std::string kernel;
  dim3 grid, block;
  size_t shared;
  std::vector<Range> ranges;
};

extern std::vector<Report> reports;

void add_range(const std::string& name, uintptr_t begin, size_t bytes, bool writable);
void clear_ranges();
std::vector<Range> take_traffic();

// ---- module.cpp ----

std::string kernel_name(const void* kernel);

}  // namespace simt
