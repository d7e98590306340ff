// fastdiff._C: positional addresses and extents in, None or a status (code, where, value) out. The only file that knows
// Python. Each op takes (device, stream, fields of its params struct in order); device -1 is the CPU.
#include <pybind11/pybind11.h>

#include <string>
#include <type_traits>

#include "cpu/kernels.h"
#ifdef FD_CUDA
#include "cuda/kernels.h"
#endif
#ifndef FD_CUDA_ARCHS
#define FD_CUDA_ARCHS
#endif

namespace py = pybind11;

namespace fastdiff {
namespace {

// A params field from a Python number: pointers come as addresses.
template <class Field>
struct Argument {
  using type = std::conditional_t<std::is_pointer<Field>::value, uintptr_t, Field>;
  static Field get(type value) {
    if constexpr (std::is_pointer<Field>::value) return reinterpret_cast<Field>(value);
    else return value;
  }
};

// Below this many elements a kernel is over before another thread could take the GIL.
constexpr int64_t kLarge = 1 << 15;

py::object result(const Status& status) {
  if (status.code == kOk) return py::none();
  return py::make_tuple(status.code, status.where, status.value);
}

template <class Params>
Status run(Status (*kernel)(const Params&), const Params& params, int64_t elements) {
  if (elements < kLarge) return kernel(params);
  py::gil_scoped_release release;
  return kernel(params);
}

#ifdef FD_CUDA
#define FD_RUN(op, params, elements)                                                                       \
  device < 0 ? run(kernels().op, params, elements) : cuda::op(params, {device, reinterpret_cast<void*>(stream)})
#else
#define FD_RUN(op, params, elements) run(kernels().op, params, elements)
#endif

// Defines `op`, whose arguments are the listed fields: FD_FIELDS builds the struct by brace initialisation, in order.
template <class Params, class... Fields>
struct Binding {
  template <class Launch>
  static auto make(Launch launch) {
    return [launch](int device, uintptr_t stream, typename Argument<Fields>::type... values) {
      return result(launch(device, stream, Params{Argument<Fields>::get(values)...}));
    };
  }
};

using In = const void*;
using Out = void*;
using Index = const int64_t*;
using Floats = const float*;

using Normal = Binding<NormalParams, Out, Index, Index, int64_t, int64_t, int64_t, int32_t, int32_t, uint32_t, int32_t>;

using QSample = Binding<QSampleParams, In, Index, In, In, In, Index, Index, const uint8_t*, Out, Out, int64_t, int64_t,
                        int64_t, int64_t, int64_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, uint32_t, int32_t>;

using ReverseStep = Binding<ReverseStepParams, In, Out, In, In, In, In, In, Out, In, Out, Floats, Floats, Floats, In, Index,
                            Index, Index, int64_t, int64_t, int64_t, int64_t, int32_t, int32_t, int32_t, int32_t, int32_t,
                            int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t>;

using GroupNormSilu = Binding<GroupNormSiluParams, In, In, In, In, In, In, Out, Out, Out, int64_t, int64_t, int64_t, int64_t,
                              int64_t, int64_t, int64_t, double, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t,
                              int32_t, int32_t>;

using GroupNormSiluBackward =
    Binding<GroupNormSiluBackwardParams, In, In, In, In, In, In, In, In, In, Out, Out, Out, Out, Out, Out, Out, int64_t,
            int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t,
            int32_t, int32_t>;

#define FD_DEFINE(module, op, Op, elements)                                                                     \
  module.def(#op, Op::make([]([[maybe_unused]] int device, [[maybe_unused]] uintptr_t stream, const auto& p) {  \
               return FD_RUN(op, p, elements);                                                                  \
             }))

}  // namespace
}  // namespace fastdiff

PYBIND11_MODULE(_C, module) {
  using namespace fastdiff;
  FD_DEFINE(module, normal, Normal, p.B * p.C * p.S);
  FD_DEFINE(module, q_sample, QSample, p.B * p.C * p.H * p.W);
  FD_DEFINE(module, reverse_step, ReverseStep, p.B * p.C * p.S);
  FD_DEFINE(module, group_norm_silu, GroupNormSilu, p.B * p.C * p.S);
  FD_DEFINE(module, group_norm_silu_backward, GroupNormSiluBackward, p.B * p.C * p.S);

  module.attr("INDEX_OUT_OF_RANGE") = int(kIndexOutOfRange);
  module.attr("MISSING_INPUT") = int(kMissingInput);
  module.attr("CUDA_ERROR") = int(kCudaError);
  module.attr("ROW_COLUMNS") = int(kRowColumns);
  module.def("simd_level", [] { return kernels().level; });
  module.def("set_simd_level", [](const std::string& level) { return set_simd_level(level.c_str()); });

  py::list architectures;
  for (int arch : std::initializer_list<int>{FD_CUDA_ARCHS}) architectures.append(arch);
  module.attr("cuda_architectures") = py::tuple(architectures);
#ifdef FD_CUDA
  module.def("error_string", cuda::error_string);
  module.def("device_arch", cuda::device_arch);
#endif
}
