#include "kernels.h"

#include <cstdlib>
#include <cstring>

namespace fastdiff {
namespace {

// Of `name` are those functions that the level compiles itself, whatever it is; the others may be a narrower level's.
#define FD_TABLE(name, level)                                                               \
  {#name, level::normal, level::q_sample, level::reverse_step, name::group_norm_silu,       \
   name::group_norm_silu_backward,                                                          \
   level::diffusion_loss, level::diffusion_loss_backward,                                   \
   level::vlb_terms, level::vlb_terms_backward, level::conv3x3, level::conv3x3_pack,        \
   level::conv3x3_backward, name::convolution, name::convolution_pack,                      \
   level::rms_norm_silu, level::rms_norm_silu_backward}

// Widest first.
const Kernels kTables[] = {
#ifdef FD_X86
    FD_TABLE(avx512bf16, avx512),
    FD_TABLE(avx512, avx512),
    FD_TABLE(avx2, avx2),
#endif
    FD_TABLE(baseline, baseline),
};

bool runs_here(const char* level) {
#ifdef FD_X86
  __builtin_cpu_init();
  if (!strcmp(level, "avx512bf16")) return runs_here("avx512") && __builtin_cpu_supports("avx512bf16");
  if (!strcmp(level, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2");
  if (!strcmp(level, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return !strcmp(level, "baseline");
}

const Kernels* widest() {
  for (const Kernels& table : kTables)
    if (runs_here(table.level)) return &table;
  return nullptr;  // unreachable: baseline always runs
}

const Kernels* current = widest();

}  // namespace

const Kernels& kernels() { return *current; }

const char* set_simd_level(const char* level) {
  if (!strcmp(level, "auto")) {
    current = widest();
    return nullptr;
  }
  for (const Kernels& table : kTables) {
    if (strcmp(table.level, level)) continue;
    if (!runs_here(level)) return "this processor lacks its instructions";
    current = &table;
    return nullptr;
  }
  return "this build has no such level";
}

}  // namespace fastdiff
