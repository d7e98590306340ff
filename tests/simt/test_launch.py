"""What `launch` of common.cuh asks of CUDA's runtime: the harness has one device and knows no streams."""

import subprocess

import pytest

from tests.simt import build, harness

if harness.unavailable():
    pytest.skip(harness.unavailable(), allow_module_level=True)

PROGRAM = """
#include <cuda_runtime.h>
#include <cstdio>
int current = 2;
struct Runtime {
  static cudaError_t launch(cudaStream_t s) { return printf("%d %zx\\n", current, size_t(s)), cudaSuccess; }
};
#define cudaLaunchKernel(kernel, grid, block, pointers, shared, stream) Runtime::launch(stream)
#include "common.cuh"
cudaError_t cudaGetDevice(int* device) { return *device = current, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return current = device, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t simt::allow_shared(const void*, int) { return cudaSuccess; }
void kernel(int) {}
int main() {
  const fastdiff::Status status = fastdiff::cuda::launch(kernel, 1, 1, 0, fastdiff::cuda::Place{5, (void*)0x70}, 3);
  printf("%d %d\\n", current, int(status.code));
}
"""


def test_kernels_run_on_their_device_and_stream_and_the_device_is_put_back(tmp_path):
    (tmp_path / "launch.cpp").write_text(PROGRAM)
    command = [*build.compiler(), *build.FLAGS, "-I", str(build.HERE / "include"), "-I", "csrc/cuda"]
    subprocess.run([*command, str(tmp_path / "launch.cpp"), "-o", str(tmp_path / "launch")], cwd=build.ROOT, check=True)
    result = subprocess.run([str(tmp_path / "launch")], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["5", "70", "2", "0"]
