// Stacks that take turns. ucontext does the same everywhere, with a system call at every turn.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {

#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)
// Where a stack stopped: its pointer, the callee-saved registers on top of it.
struct Context {
  void* stack_pointer;
};

// The System V ABI: from in rdi, to in rsi.
__attribute__((naked, noinline)) inline void exchange(Context*, const Context*) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi);"
      "movq (%rsi), %rsp; popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}

inline void turn(Context& from, Context& to) { exchange(&from, &to); }

inline void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  void** const top = reinterpret_cast<void**>(stack + bytes);
  top[-2] = reinterpret_cast<void*>(entry);  // the ABI's entry: 8 past a multiple of 16, once it is popped
  context.stack_pointer = top - 8;
}
#else
typedef ucontext_t Context;

inline void turn(Context& from, Context& to) { swapcontext(&from, &to); }

inline void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

// One stack a thread of the largest block, a guard page below each.
class Stacks {
 public:
  static constexpr size_t kCount = 1024, kGuard = 4096, kBytes = 64 << 10;

  Stacks() {
    const size_t all = kCount * (kGuard + kBytes);
    void* const memory = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<unsigned char*>(memory);
    for (size_t i = 0; i < kCount; ++i) mprotect(begin_ + i * (kGuard + kBytes), kGuard, PROT_NONE);
  }
  unsigned char* operator[](size_t i) const { return begin_ + i * (kGuard + kBytes) + kGuard; }

 private:
  unsigned char* begin_;
};

}  // namespace simt
