// Runs the blocks of a launch one after the other, the threads of a block in turns.
//
// A thread runs until it meets its warp, reaches a barrier or ends; a warp until none of its lanes can go on. The order of
// blocks, warps and lanes is drawn from the seed: what a kernel computes must not depend on it.
#include <cstdarg>
#include <cstdio>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>

#include "simt.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {

Settings settings;
Thread* current;
std::vector<Warp> warps;
uint64_t interval;

namespace {

constexpr int64_t kMaxThreads = 1024;
constexpr size_t kMaxShared = 227 << 10, kSharedWithoutAsking = 48 << 10;

Context scheduler;
std::vector<Thread> threads;
const std::function<void()>* body;
std::string running_kernel, finding;
std::map<const void*, size_t> allowed_shared;
std::mt19937_64 shuffler;

std::vector<int64_t> order(int64_t count) {
  std::vector<int64_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  for (int64_t i = count - 1; settings.seed && i > 0; --i) std::swap(numbers[i], numbers[shuffler() % (i + 1)]);
  return numbers;
}

void wait(State state) {
  Thread& me = *current;
  me.state = state;
  turn(me.context, scheduler);
}

void run_thread() {
  (*body)();
  wait(State::kDone);
}

void resume(Thread& thread) {
  current = &thread;
  threadIdx = thread.index;
  turn(scheduler, thread.context);
  current = nullptr;
  if (!finding.empty()) throw std::runtime_error(finding);
}

std::string block_text() {
  return text(" (kernel %s, block (%u, %u, %u)", running_kernel.c_str(), blockIdx.x, blockIdx.y, blockIdx.z);
}

std::string thread_text(const Thread& thread) {
  return text("thread (%u, %u, %u)", thread.index.x, thread.index.y, thread.index.z);
}

[[noreturn]] void fail_block(const std::string& found) { throw std::runtime_error(found + block_text() + ")"); }

const char* name_of(Together kind) {
  return kind == Together::kSync ? "__syncwarp" : kind == Together::kVote ? "a vote" : "a shuffle";
}

void run_warp(Warp& warp) {
  for (bool progress = true; progress;) {
    progress = false;
    for (int64_t lane : order(warp.lanes.size())) {
      if (warp.lanes[lane]->state != State::kReady) continue;
      resume(*warp.lanes[lane]);
      progress = true;
    }
  }
  for (const Thread* thread : warp.lanes)
    if (thread->state == State::kAtMeeting)
      fail_block(thread_text(*thread) + text(" waits in %s for lanes of mask 0x%08x that never come",
                                             name_of(thread->meeting.kind), thread->meeting.mask));
}

// Whether the block is to go on behind a barrier.
bool pass_barrier() {
  const Thread *waiting = nullptr, *done = nullptr;
  for (const Thread& thread : threads) (thread.state == State::kDone ? done : waiting) = &thread;
  if (waiting && done) fail_block(thread_text(*waiting) + " waits at a barrier, " + thread_text(*done) + " has ended");
  for (Thread& thread : threads)
    if (waiting) thread.state = State::kReady;
  return waiting;
}

void arrange_threads(dim3 block) {
  static const Stacks stacks;
  const int count = int(block.x * block.y * block.z);
  threads.resize(count);
  warps.assign((count + warpSize - 1) / warpSize, {});
  for (int i = 0; i < count; ++i) {
    const uint3 index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    threads[i] = {{}, State::kReady, index, i, i % warpSize, i / warpSize, {}, 0};
    prepare(threads[i].context, stacks[i], Stacks::kBytes, run_thread);
    warps[i / warpSize].lanes.push_back(&threads[i]);
  }
}

void run_block(int64_t block) {
  blockIdx = {unsigned(block % gridDim.x), unsigned(block / gridDim.x % gridDim.y),
              unsigned(block / gridDim.x / gridDim.y)};
  arrange_threads(blockDim);
  begin_block_memory();
  do {
    ++interval;
    for (int64_t warp : order(warps.size())) run_warp(warps[warp]);
  } while (pass_barrier());
  end_block_memory();
}

void run_grid(int64_t blocks) {
  if (!settings.only_blocks.empty()) {
    for (int64_t block : settings.only_blocks) run_block(block < 0 ? block + blocks : block);
  } else if (settings.seed) {
    for (int64_t block : order(blocks)) run_block(block);
  } else {
    for (int64_t block = 0; block < blocks; ++block) run_block(block);
  }
}

void answer(const Warp& warp, uint32_t mask, Together kind) {
  uint32_t votes = 0;
  for (int i = 0; i < warpSize; ++i) {
    if (!(mask >> i & 1)) continue;
    const Thread& thread = *warp.lanes[i];
    if (thread.meeting.kind != kind || thread.meeting.mask != mask)
      fail(text("lane %d is in %s with mask 0x%08x, this lane in %s with mask 0x%08x", i, name_of(thread.meeting.kind),
                thread.meeting.mask, name_of(kind), mask));
    if (kind == Together::kShuffle && !(mask >> thread.meeting.source & 1))
      fail(text("lane %d shuffles from lane %d, which mask 0x%08x lacks", i, thread.meeting.source, mask));
    votes |= uint32_t(thread.meeting.value != 0) << i;
  }
  for (int i = 0; i < warpSize; ++i) {
    if (!(mask >> i & 1)) continue;
    Thread& thread = *warp.lanes[i];
    thread.answer = kind == Together::kShuffle ? warp.lanes[thread.meeting.source]->meeting.value : votes;
    thread.state = State::kReady;
  }
}

}  // namespace

std::string text(const char* format, ...) {
  char buffer[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

void fail(const std::string& found) {
  finding = found + block_text() + ", " + thread_text(*current) + ")";
  turn(current->context, scheduler);
  __builtin_unreachable();
}

int lane() { return current->lane; }

void barrier() { wait(State::kAtBarrier); }

uint64_t meet(Together kind, uint32_t mask, uint64_t value, int source) {
  Thread& me = *current;
  Warp& warp = warps[me.warp];
  if (!(mask >> me.lane & 1)) fail(text("%s with mask 0x%08x, which lacks the calling lane", name_of(kind), mask));
  me.meeting = {kind, mask, value, source};
  me.state = State::kAtMeeting;
  bool complete = true;
  for (int i = 0; i < warpSize; ++i)
    if (mask >> i & 1) complete &= i < int(warp.lanes.size()) && warp.lanes[i]->state == State::kAtMeeting;
  if (complete) {
    answer(warp, mask, kind);
    warp.syncs += kind == Together::kSync && mask == uint32_t((uint64_t(1) << warp.lanes.size()) - 1);
  } else {
    wait(State::kAtMeeting);
  }
  return me.answer;
}

cudaError_t allow_shared(const void* kernel, int bytes) {
  if (bytes < 0 || size_t(bytes) > kMaxShared) return cudaErrorInvalidValue;
  allowed_shared[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared, const std::vector<std::string>& arguments,
                   const std::function<void()>& thread) {
  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z, count = int64_t(block.x) * block.y * block.z;
  const bool fits = grid.x < 1u << 31 && grid.y < 1 << 16 && grid.z < 1 << 16 && count <= kMaxThreads;
  if (!blocks || !count || !fits) return cudaErrorInvalidConfiguration;
  if (shared > kSharedWithoutAsking && shared > allowed_shared[kernel]) return cudaErrorInvalidValue;
  running_kernel = kernel_name(kernel);
  if (settings.elsewhere) {
    settings.elsewhere(running_kernel, grid, block, shared, arguments);
    return cudaSuccess;
  }
  gridDim = grid;
  blockDim = block;
  body = &thread;
  finding.clear();
  shuffler.seed(settings.seed);
  begin_launch_memory(shared);
  run_grid(blocks);
  if (settings.counting) reports.push_back({running_kernel, grid, block, shared, take_traffic()});
  return cudaSuccess;
}

}  // namespace simt

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : error == cudaErrorInvalidDevice ? "invalid device ordinal"
         : error == cudaSuccess         ? "no error" : "invalid configuration argument";
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

// Those of compute capability 9.0.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *value = attribute == cudaDevAttrMultiProcessorCount           ? simt::settings.multiprocessors
           : attribute == cudaDevAttrComputeCapabilityMajor      ? 9
           : attribute == cudaDevAttrComputeCapabilityMinor      ? 0
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 227 << 10 : 228 << 10;
  return cudaSuccess;
}
