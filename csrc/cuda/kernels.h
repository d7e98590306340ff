// The CUDA half's functions: the same params as cpu/kernels.h with device pointers. Nothing here synchronises or reads a
// device value on the host; an out-of-range t or row makes that sample NaN.
#pragma once
#include "../params.h"

namespace fastdiff {
namespace cuda {

struct Place {
  int device;     // ordinal; the call makes it current for its duration
  void* stream;   // cudaStream_t
};

Status normal(const NormalParams& p, Place place);
Status q_sample(const QSampleParams& p, Place place);
Status reverse_step(const ReverseStepParams& p, Place place);
Status group_norm_silu(const GroupNormSiluParams& p, Place place);
Status group_norm_silu_backward(const GroupNormSiluBackwardParams& p, Place place);
Status diffusion_loss(const DiffusionLossParams& p, Place place);
Status diffusion_loss_backward(const DiffusionLossParams& p, Place place);
Status vlb_terms(const VlbTermsParams& p, Place place);
Status vlb_terms_backward(const VlbTermsParams& p, Place place);
Status rms_norm_silu(const RmsNormSiluParams& p, Place place);
Status rms_norm_silu_backward(const RmsNormSiluBackwardParams& p, Place place);

// Floats of workspace that a call needs, of which B, C, S, G, dtype and layout decide.
int64_t group_norm_silu_workspace(const GroupNormSiluParams& p);
int64_t group_norm_silu_backward_workspace(const GroupNormSiluBackwardParams& p);
int64_t rms_norm_silu_backward_workspace(const RmsNormSiluBackwardParams& p);

// The same of diffusion_loss and vlb_terms, of which B, C and S decide; 0: none.
int64_t loss_workspace(int64_t B, int64_t C, int64_t S);

// cudaGetErrorString of Status::value.
const char* error_string(int64_t error);

// Compute capability of a device as 10 * major + minor, or a negative cudaError_t.
int device_arch(int device);

}  // namespace cuda
}  // namespace fastdiff
