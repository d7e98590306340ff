// The CPU half's table: one entry per op, one table per SIMD level, filled at load (dispatch.cpp).
//
// Every cpu/<op>.cpp is compiled once per level with FD_LEVEL = avx512bf16 | avx512 | avx2 | baseline and the level's -m
// flags, and defines its functions in namespace fastdiff::FD_LEVEL. What gains nothing by a level is not compiled for it: at
// avx512bf16 there is only what stores or multiplies pairs of bfloat16, and float64, of which a vector here is one number, is
// the baseline's (FD_FLOAT64). No standard-library template may be instantiated in such a file: the linker would merge an
// AVX-512 copy into the baseline.
#pragma once
#include "../params.h"

#define FD_DECLARE_LEVEL(level)                                                \
  namespace level {                                                            \
  Status normal(const NormalParams& p);                                        \
  Status q_sample(const QSampleParams& p);                                     \
  Status reverse_step(const ReverseStepParams& p);                             \
  Status group_norm_silu(const GroupNormSiluParams& p);                        \
  Status group_norm_silu_backward(const GroupNormSiluBackwardParams& p);       \
  Status diffusion_loss(const DiffusionLossParams& p);                         \
  Status diffusion_loss_backward(const DiffusionLossParams& p);                \
  Status vlb_terms(const VlbTermsParams& p);                                   \
  Status vlb_terms_backward(const VlbTermsParams& p);                          \
  Status conv3x3(const Conv3x3Params& p);                                      \
  Status conv3x3_pack(const Conv3x3PackParams& p);                             \
  Status conv3x3_backward(const Conv3x3BackwardParams& p);                     \
  Status convolution(const ConvolutionParams& p);                              \
  Status convolution_pack(const ConvolutionPackParams& p);                     \
  Status rms_norm_silu(const RmsNormSiluParams& p);                            \
  Status rms_norm_silu_backward(const RmsNormSiluBackwardParams& p);           \
  }

namespace fastdiff {

FD_DECLARE_LEVEL(avx512bf16)
FD_DECLARE_LEVEL(avx512)
FD_DECLARE_LEVEL(avx2)
FD_DECLARE_LEVEL(baseline)

// What an op does in float64: `own` is the baseline's.
#if defined(__AVX2__)
#define FD_FLOAT64(op, p, own) baseline::op(p)
#else
#define FD_FLOAT64(op, p, own) own
#endif

struct Kernels {
  const char* level;
  Status (*normal)(const NormalParams&);
  Status (*q_sample)(const QSampleParams&);
  Status (*reverse_step)(const ReverseStepParams&);
  Status (*group_norm_silu)(const GroupNormSiluParams&);
  Status (*group_norm_silu_backward)(const GroupNormSiluBackwardParams&);
  Status (*diffusion_loss)(const DiffusionLossParams&);
  Status (*diffusion_loss_backward)(const DiffusionLossParams&);
  Status (*vlb_terms)(const VlbTermsParams&);
  Status (*vlb_terms_backward)(const VlbTermsParams&);
  Status (*conv3x3)(const Conv3x3Params&);
  Status (*conv3x3_pack)(const Conv3x3PackParams&);
  Status (*conv3x3_backward)(const Conv3x3BackwardParams&);
  Status (*convolution)(const ConvolutionParams&);
  Status (*convolution_pack)(const ConvolutionPackParams&);
  Status (*rms_norm_silu)(const RmsNormSiluParams&);
  Status (*rms_norm_silu_backward)(const RmsNormSiluBackwardParams&);
};

// The table in use: the widest level this processor has, or the one FASTDIFF_SIMD names.
const Kernels& kernels();

// Switch level; returns NULL, or the reason why this build or processor cannot run it.
const char* set_simd_level(const char* level);

}  // namespace fastdiff
