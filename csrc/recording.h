// Calls of CPU kernels, kept to be made again: the parameters of each, and the tensors whose memory they name.
#pragma once
#include <pybind11/pybind11.h>

#include <functional>
#include <memory>
#include <vector>

#include "params.h"

namespace fastdiff {
namespace {

struct Recording {
  std::vector<std::function<Status()>> calls;
  std::vector<pybind11::object> tensors;
  int64_t elements = 0;
};

thread_local std::unique_ptr<Recording> recording;  // what this thread's calls are added to, NULL: nothing

}  // namespace
}  // namespace fastdiff
