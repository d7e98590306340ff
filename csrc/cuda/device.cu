// What the host asks about devices and errors.
#include "common.cuh"

namespace fastdiff {
namespace cuda {

const char* error_string(int64_t error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int device_arch(int device) {
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error == cudaSuccess) return 10 * major + minor;
  cudaGetLastError();                                 // the caller is told; no later call is
  return -static_cast<int>(error);
}

}  // namespace cuda
}  // namespace fastdiff
