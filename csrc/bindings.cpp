// fastdiff._C: tensors in, None or a status (code, where, value) out. With arguments.h all that knows Python.
//
// Each op takes (device, stream, threads) and then the arguments of the backend contract; device -1 is the CPU.
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "conforms.h"
#include "replay.h"
#ifndef FD_CUDA_ARCHS
#define FD_CUDA_ARCHS
#endif

namespace fastdiff {
namespace {

PyObject* normal(Arguments a) {
  const Call call(a);
  const Tensor out = a.tensor();
  const Shape shape(out);
  NormalParams p = {};
  p.out = out, p.rng = a.tensor(), p.sample_ids = a.tensor(), p.stream = uint32_t(a.integer());
  p.B = shape[0], p.C = shape[1], p.S = shape.positions();
  p.dtype = out.dtype(), p.layout = out.layout(), p.num_threads = call.threads;
  return FD_RUN(normal, p, p.B * p.C * p.S);
}

PyObject* q_sample(Arguments a) {
  const Call call(a);
  const Tensor x_start = a.tensor(), t = a.tensor(), alpha = a.tensor(), sigma = a.tensor(), noise = a.tensor();
  QSampleParams p = {};
  p.x_start = x_start, p.t = t, p.alpha = alpha, p.sigma = sigma, p.noise = noise;
  p.rng = a.tensor(), p.sample_ids = a.tensor(), p.flip = a.tensor(), p.stream = uint32_t(a.integer());
  const Tensor x_t = a.tensor();
  p.x_t = x_t, p.noise_out = a.tensor();
  const Shape shape(x_t);
  const int64_t rank = shape.rank();
  p.B = shape[0], p.C = shape[1], p.W = rank > 2 ? shape[rank - 1] : 1, p.H = shape.product(2, rank - 1);
  p.T = Shape(alpha)[0];
  p.x_start_dtype = x_start.dtype(), p.x_start_layout = x_start.layout();
  p.noise_dtype = noise.dtype(), p.noise_layout = noise.layout();
  p.x_t_dtype = x_t.dtype(), p.x_t_layout = x_t.layout(), p.num_threads = call.threads;
  return FD_RUN(q_sample, p, p.B * p.C * p.H * p.W);
}

ReverseStepParams reverse_step_arguments(const Call& call, Arguments& a) {
  const Tensor x = a.tensor(), model_output = a.tensor(), rows = a.tensor(), row = a.tensor();
  ReverseStepParams p = {};
  p.x = x, p.model_output = model_output, p.rows = rows, p.row = row, p.out = a.tensor();
  const Tensor model_input = a.tensor();
  p.model_input = model_input, p.history = a.tensor(), p.noise = a.tensor(), p.rng = a.tensor();
  p.sample_ids = a.tensor(), p.extra = a.tensor();
  const Tensor mask = a.tensor();
  p.mask = mask, p.known = a.tensor(), p.known_noise = a.tensor(), p.gain = a.tensor(), p.bound = a.tensor();
  p.shrink = a.tensor();

  const Shape shape(x), row_shape(row);
  p.B = shape[0], p.C = shape[1], p.S = shape.positions(), p.R = Shape(rows)[0];
  p.state_dtype = x.dtype(), p.state_layout = x.layout();
  p.row_stride = row_shape.product(0, row_shape.rank()) > 1, p.num_threads = call.threads;
  if (model_output) {
    const Shape extents(model_output);
    p.model_dtype = model_output.dtype(), p.model_layout = model_output.layout();
    p.guided = extents[0] != p.B, p.learned = extents[1] != p.C;
  }
  if (model_input) {
    p.input_dtype = model_input.dtype(), p.input_layout = model_input.layout();
    p.input_copies = p.B ? int32_t(Shape(model_input)[0] / p.B) : 1;
  }
  if (mask) {
    const Shape extents(mask);
    p.mask_B = int32_t(extents[0]), p.mask_C = int32_t(extents[1]);
  }
  return p;
}

PyObject* reverse_step(Arguments a) {
  const Call call(a);
  const ReverseStepParams p = reverse_step_arguments(call, a);
  return FD_RUN(reverse_step, p, p.B * p.C * p.S);
}

// reverse_step of many rows on tensors that stay where they are: only the output's memory, the row and its noise change.
struct Steps {
  int device;
  ReverseStepParams params;  // of row 0
  int64_t count, row_step, rng_step;
  py::object output_device, output_dtype, output_shape, output_stride;
  int64_t output_bytes;
  std::vector<std::pair<uintptr_t, uintptr_t>> written;  // [begin, end) of memory that an output must be apart from

  bool takes(py::handle output) const {
    return attribute(output, names().dtype).ptr() == output_dtype.ptr() &&
           equal(attribute(output, names().shape), output_shape) &&
           equal(called(output, names().stride), output_stride) && equal(attribute(output, names().device), output_device);
  }

  bool apart(const Tensor& output) const {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(output.data), end = begin + uintptr_t(output_bytes);
    for (const auto& [first, last] : written)
      if (begin < last && first < end) return false;
    return true;
  }
};

constexpr char kSteps[] = "fastdiff._C.steps";

// (device, stream, threads, arguments of reverse_step, but row [S, 1] and rng [S, 2] or None) -> a capsule for `steps_row`.
// The caller keeps the tensors, and their memory where it is.
PyObject* steps(Arguments a) {
  const Call call(a);
  auto steps = std::make_unique<Steps>();
  Arguments named = a;
  const Tensor x = named.tensor(), output = named.tensor();
  named.object();  // rows
  const Tensor row = named.tensor();
  named.object();  // out
  const Tensor model_input = named.tensor(), history = named.tensor();
  named.object();  // noise
  const Tensor rng = named.tensor();
  for (const Tensor* tensor : {&x, &model_input, &history}) {
    if (!*tensor) continue;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor->data);
    steps->written.emplace_back(begin, begin + uintptr_t(tensor->bytes()));
  }
  steps->output_bytes = output.bytes();
  const py::handle like = output.object;
  steps->output_device = attribute(like, names().device), steps->output_dtype = attribute(like, names().dtype);
  steps->output_shape = attribute(like, names().shape), steps->output_stride = called(like, names().stride);
  steps->device = call.device, steps->count = Shape(row)[0];
  steps->row_step = row.row_stride(), steps->rng_step = rng.row_stride();
  steps->params = reverse_step_arguments(call, a);
  steps->params.row_stride = 0;
  return py::capsule(steps.release(), kSteps, [](PyObject* capsule) {
           delete static_cast<Steps*>(PyCapsule_GetPointer(capsule, kSteps));
         }).release().ptr();
}

// (capsule, stream, threads, i, model_output): row i, as reverse_step; False where the output is not like that of row 0.
PyObject* steps_row(Arguments a) {
  const auto* steps = static_cast<const Steps*>(PyCapsule_GetPointer(a.object().ptr(), kSteps));
  if (!steps) throw py::error_already_set();
  const Call call(steps->device, a);
  const int64_t i = a.integer();
  if (i < 0 || i >= steps->count) throw py::index_error("i must be in [0, " + std::to_string(steps->count) + ")");
  const py::handle given = a.object();
  if (!steps->takes(given)) Py_RETURN_FALSE;  // before its memory is asked for, which it may not have
  const Tensor output(given);
  if (!steps->apart(output)) Py_RETURN_FALSE;
  ReverseStepParams p = steps->params;
  p.model_output = output, p.row += i * steps->row_step, p.num_threads = call.threads;
  if (p.rng) p.rng += i * steps->rng_step;
  return FD_RUN(reverse_step, p, p.B * p.C * p.S);
}

// What the two structs of group_norm_silu share.
template <class Params>
void normalization(Params& p, const Call& call, const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t groups,
                   const Tensor& add, const Tensor& scale, const Tensor& shift, bool silu) {
  const Shape shape(x);
  p.x = x, p.weight = weight, p.bias = bias, p.add = add, p.scale = scale, p.shift = shift;
  p.B = shape[0], p.C = shape[1], p.S = shape.positions(), p.G = groups;
  p.add_stride = add.row_stride(), p.scale_stride = scale.row_stride(), p.shift_stride = shift.row_stride();
  p.dtype = x.dtype(), p.layout = x.layout(), p.weight_dtype = (weight ? weight : bias).dtype();
  p.add_dtype = add.dtype(), p.scale_dtype = scale.dtype(), p.shift_dtype = shift.dtype();
  p.silu = silu, p.num_threads = call.threads;
}

// rng, sample_ids, threshold, factor, stream.
Dropout dropout(Arguments& a) {
  Dropout drop = {};
  drop.rng = a.tensor(), drop.sample_ids = a.tensor(), drop.threshold = uint32_t(a.integer());
  drop.factor = a.number(), drop.stream = uint32_t(a.integer());
  return drop;
}

PyObject* group_norm_silu(Arguments a) {
  const Call call(a);
  GroupNormSiluParams p = {};
  const Tensor x = a.tensor(), weight = a.tensor(), bias = a.tensor();
  const int64_t groups = a.integer();
  p.eps = a.number();
  const Tensor add = a.tensor(), scale = a.tensor(), shift = a.tensor();
  normalization(p, call, x, weight, bias, groups, add, scale, shift, a.truth());
  p.y = a.tensor(), p.mean = a.tensor(), p.rstd = a.tensor(), p.workspace = a.tensor();
  if (a.more()) p.residual = a.tensor(), p.drop = dropout(a);
  return FD_RUN(group_norm_silu, p, p.B * p.C * p.S);
}

PyObject* group_norm_silu_backward(Arguments a) {
  const Call call(a);
  GroupNormSiluBackwardParams p = {};
  p.grad_y = a.tensor();
  const Tensor x = a.tensor();
  p.mean = a.tensor(), p.rstd = a.tensor();
  const Tensor weight = a.tensor(), bias = a.tensor();
  const int64_t groups = a.integer();
  const Tensor add = a.tensor(), scale = a.tensor(), shift = a.tensor();
  normalization(p, call, x, weight, bias, groups, add, scale, shift, a.truth());
  p.grad_x = a.tensor(), p.grad_weight = a.tensor(), p.grad_bias = a.tensor(), p.grad_add = a.tensor();
  p.grad_scale = a.tensor(), p.grad_shift = a.tensor(), p.workspace = a.tensor();
  if (a.more()) p.drop = dropout(a);
  return FD_RUN(group_norm_silu_backward, p, p.B * p.C * p.S);
}

// On the CPU alone: x, residual and y are channels last, all other tensors float32.
PyObject* conv3x3(Arguments a) {
  const int threads = int(a.integer());
  Conv3x3Params p = {};
  const Tensor x = a.tensor();
  p.x = x, p.filters = a.tensor(), p.tile = int32_t(a.integer()), p.bias = a.tensor();
  const Tensor add = a.tensor();
  p.add = add, p.add_stride = add.row_stride(), p.residual = a.tensor(), p.groups = a.integer();
  p.norm_weight = a.tensor(), p.norm_bias = a.tensor(), p.eps = a.number();
  const Tensor scale = a.tensor(), shift = a.tensor();
  p.scale = scale, p.scale_stride = scale.row_stride(), p.shift = shift, p.shift_stride = shift.row_stride();
  p.silu = a.truth();
  const Tensor y = a.tensor();
  p.y = y;
  const Shape shape(x);
  p.B = shape[0], p.C = shape[1], p.H = shape[2], p.W = shape[3], p.O = Shape(y)[1];
  p.dtype = x.dtype(), p.num_threads = threads;
  return run(kernels().conv3x3, p, p.B * p.C * p.H * p.W + p.O * p.C);
}

// The filters of a weight, dense in either layout, or of the convolution whose outputs' gradient it takes to its inputs'.
PyObject* conv3x3_pack(Arguments a) {
  const int threads = int(a.integer());
  const Tensor weight = a.tensor();
  const Shape shape(weight);
  const int64_t O = shape[0], C = shape[1];
  const bool last = weight.layout() == kChannelsLast;
  Conv3x3PackParams p = {};
  p.weight = weight, p.packed = static_cast<float*>(static_cast<void*>(a.tensor())), p.tile = int32_t(a.integer());
  p.O = O, p.C = C, p.o_stride = 9 * C, p.c_stride = last ? 1 : 9, p.tap_stride = last ? C : 1, p.num_threads = threads;
  if (a.truth()) {  // mirrored, and inputs for outputs
    p.weight += 8 * p.tap_stride, p.tap_stride = -p.tap_stride;
    p.O = C, p.C = O, p.o_stride = last ? 1 : 9, p.c_stride = 9 * C;
  }
  return run(kernels().conv3x3_pack, p, O * C * 9);
}

void set_filters(ConvolutionParams& p, const Tensor& filters) {
  p.filters = filters, p.pairs = filters.dtype() == kBF16;
}

// On the CPU alone: x, residual and y are channels last, bias float32, filters that or pairs of bfloat16.
PyObject* convolution(Arguments a) {
  const int threads = int(a.integer());
  ConvolutionParams p = {};
  const Tensor x = a.tensor();
  p.x = x;
  set_filters(p, a.tensor());
  p.kernel = a.integer(), p.stride = a.integer(), p.padding = a.integer();
  p.bias = a.tensor(), p.residual = a.tensor();
  const Tensor y = a.tensor();
  p.y = y, p.dtype = x.dtype(), p.num_threads = threads;
  const Shape in(x), out(y);
  p.B = in[0], p.C = in[1], p.H = in[2], p.W = in[3], p.O = out[1], p.rows = out[2], p.columns = out[3];
  return run(kernels().convolution, p, p.B * p.C * p.H * p.W + p.O * p.C);
}

// The same of rows: x [..., C], residual and y [..., O], all contiguous.
PyObject* linear(Arguments a) {
  const int threads = int(a.integer());
  ConvolutionParams p = {};
  const Tensor x = a.tensor();
  p.x = x;
  set_filters(p, a.tensor());
  p.bias = a.tensor(), p.residual = a.tensor();
  const Tensor y = a.tensor();
  p.y = y, p.dtype = x.dtype(), p.num_threads = threads;
  const Shape in(x), out(y);
  const int64_t last = in.rank() - 1;
  p.B = in.product(0, last), p.C = in[last], p.O = out[last];
  p.H = p.W = p.rows = p.columns = p.kernel = p.stride = 1;
  return run(kernels().convolution, p, p.B * p.C + p.O * p.C);
}

// The filters of a weight [O, C, k, k], dense in either layout.
PyObject* convolution_pack(Arguments a) {
  const int threads = int(a.integer());
  const Tensor weight = a.tensor();
  const Shape shape(weight);
  const int64_t C = shape[1], taps = shape[2] * shape[3];
  const bool last = weight.layout() == kChannelsLast;
  ConvolutionPackParams p = {};
  const Tensor packed = a.tensor();
  p.weight = weight, p.packed = packed, p.pairs = packed.dtype() == kBF16;
  p.O = shape[0], p.C = C, p.taps = taps, p.o_stride = taps * C, p.num_threads = threads;
  p.c_stride = last ? 1 : taps, p.tap_stride = last ? C : 1;
  return run(kernels().convolution_pack, p, p.O * C * taps);
}

// On the CPU alone: grad_y and x are channels last, as is grad_weight, which is float32.
PyObject* conv3x3_backward(Arguments a) {
  const int threads = int(a.integer());
  Conv3x3BackwardParams p = {};
  const Tensor grad_y = a.tensor(), x = a.tensor();
  p.grad_y = grad_y, p.x = x, p.grad_weight = static_cast<float*>(static_cast<void*>(a.tensor()));
  const Shape shape(x);
  p.B = shape[0], p.C = shape[1], p.H = shape[2], p.W = shape[3], p.O = Shape(grad_y)[1];
  p.dtype = x.dtype(), p.num_threads = threads;
  return run(kernels().conv3x3_backward, p, p.B * p.C * p.H * p.W + p.O * p.C);
}

// What the two structs of losses share, after the tensors.
template <class Params>
void loss_shapes(Params& p, const Call& call, const Tensor& model_output, const Tensor& x_start, const Tensor& table) {
  const Shape shape(x_start);
  const int64_t rank = shape.rank();
  p.model_output = model_output, p.x_start = x_start;
  p.B = shape[0], p.C = shape[1], p.W = rank > 2 ? shape[rank - 1] : 1, p.H = shape.product(2, rank - 1);
  p.T = Shape(table)[0], p.learned = Shape(model_output)[1] != p.C;
  p.model_dtype = model_output.dtype(), p.model_layout = model_output.layout();
  p.x_start_dtype = x_start.dtype(), p.x_start_layout = x_start.layout(), p.num_threads = call.threads;
}

// The arguments of both passes.
DiffusionLossParams diffusion_loss_arguments(const Call& call, Arguments& a) {
  DiffusionLossParams p = {};
  const Tensor model_output = a.tensor(), x_start = a.tensor(), t = a.tensor(), target_x0 = a.tensor();
  p.t = t, p.target_x0 = target_x0, p.target_eps = a.tensor();
  const Tensor noise = a.tensor();
  p.noise = noise, p.rng = a.tensor(), p.sample_ids = a.tensor(), p.flip = a.tensor(), p.weight = a.tensor();
  p.sample_weight = a.tensor(), p.stream = uint32_t(a.integer());
  loss_shapes(p, call, model_output, x_start, target_x0);
  p.noise_dtype = noise.dtype(), p.noise_layout = noise.layout();
  return p;
}

PyObject* diffusion_loss(Arguments a) {
  const Call call(a);
  DiffusionLossParams p = diffusion_loss_arguments(call, a);
  p.loss = a.tensor(), p.workspace = a.tensor();
  return FD_RUN(diffusion_loss, p, p.B * p.C * p.H * p.W);
}

PyObject* diffusion_loss_backward(Arguments a) {
  const Call call(a);
  const Tensor grad_loss = a.tensor();
  DiffusionLossParams p = diffusion_loss_arguments(call, a);
  p.grad_loss = grad_loss, p.grad = a.tensor();
  return FD_RUN(diffusion_loss_backward, p, p.B * p.C * p.H * p.W);
}

VlbTermsParams vlb_terms_arguments(const Call& call, Arguments& a) {
  VlbTermsParams p = {};
  const Tensor model_output = a.tensor(), x_start = a.tensor(), x_t = a.tensor(), t = a.tensor(), table = a.tensor();
  p.x_t = x_t, p.t = t, p.table = table, p.flip = a.tensor(), p.weight = a.tensor(), p.sample_weight = a.tensor();
  p.bound = a.number(), p.exact = a.truth(), p.detach_mean = a.truth();
  loss_shapes(p, call, model_output, x_start, table);
  p.x_t_dtype = x_t.dtype(), p.x_t_layout = x_t.layout();
  return p;
}

PyObject* vlb_terms(Arguments a) {
  const Call call(a);
  VlbTermsParams p = vlb_terms_arguments(call, a);
  p.terms = a.tensor(), p.workspace = a.tensor();
  return FD_RUN(vlb_terms, p, p.B * p.C * p.H * p.W);
}

PyObject* vlb_terms_backward(Arguments a) {
  const Call call(a);
  const Tensor grad_terms = a.tensor();
  VlbTermsParams p = vlb_terms_arguments(call, a);
  p.grad_terms = grad_terms, p.grad = a.tensor();
  return FD_RUN(vlb_terms_backward, p, p.B * p.C * p.H * p.W);
}

// What the two structs of rms_norm_silu share, read from weight on.
template <class Params>
void row_norm(Params& p, const Call& call, const Tensor& x, Arguments& a) {
  const Tensor weight = a.tensor();
  p.eps = a.number(), p.most = a.number();
  const Tensor scale = a.tensor(), shift = a.tensor();
  const Shape shape(x);
  p.x = x, p.weight = weight, p.scale = scale, p.shift = shift;
  p.B = shape[0], p.C = shape[1], p.S = shape.positions();
  p.scale_stride = scale.row_stride(), p.shift_stride = shift.row_stride();
  p.dtype = x.dtype(), p.layout = x.layout(), p.weight_dtype = weight.dtype();
  p.scale_dtype = scale.dtype(), p.shift_dtype = shift.dtype();
  p.silu = a.truth(), p.num_threads = call.threads;
}

PyObject* rms_norm_silu(Arguments a) {
  const Call call(a);
  RmsNormSiluParams p = {};
  row_norm(p, call, a.tensor(), a);
  p.y = a.tensor();
  return FD_RUN(rms_norm_silu, p, p.B * p.C * p.S);
}

PyObject* rms_norm_silu_backward(Arguments a) {
  const Call call(a);
  RmsNormSiluBackwardParams p = {};
  p.grad_y = a.tensor();
  row_norm(p, call, a.tensor(), a);
  p.grad_x = a.tensor(), p.grad_weight = a.tensor(), p.grad_scale = a.tensor(), p.grad_shift = a.tensor();
  p.workspace = a.tensor();
  return FD_RUN(rms_norm_silu_backward, p, p.B * p.C * p.S);
}

#ifdef FD_CUDA
// (x_start) -> floats of workspace.
PyObject* loss_workspace(Arguments a) {
  const Tensor x_start = a.tensor();
  const Shape shape(x_start);
  return PyLong_FromLongLong(cuda::loss_workspace(shape[0], shape[1], shape.positions()));
}

// (x, groups) -> floats of workspace.
template <class Params, int64_t (*floats)(const Params&)>
PyObject* workspace(Arguments a) {
  const Tensor x = a.tensor();
  const Shape shape(x);
  Params p = {};
  p.B = shape[0], p.C = shape[1], p.S = shape.positions(), p.G = a.integer();
  p.dtype = x.dtype(), p.layout = x.layout();
  return PyLong_FromLongLong(floats(p));
}

// x -> floats of workspace.
PyObject* rms_norm_silu_backward_workspace(Arguments a) {
  const Tensor x = a.tensor();
  const Shape shape(x);
  RmsNormSiluBackwardParams p = {};
  p.B = shape[0], p.C = shape[1], p.S = shape.positions();
  p.dtype = x.dtype(), p.layout = x.layout();
  return PyLong_FromLongLong(cuda::rms_norm_silu_backward_workspace(p));
}
#endif

// ---- The module ----

template <PyObject* (*function)(Arguments)>
PyObject* guarded(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  try {
    return function(Arguments(arguments, count));
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <PyObject* (*function)(Arguments)>
PyMethodDef method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(guarded<function>)), METH_FASTCALL, nullptr};
}

PyMethodDef methods[] = {
    method<normal>("normal"),
    method<q_sample>("q_sample"),
    method<reverse_step>("reverse_step"),
    method<steps>("steps"),
    method<steps_row>("steps_row"),
    method<group_norm_silu>("group_norm_silu"),
    method<group_norm_silu_backward>("group_norm_silu_backward"),
    method<conv3x3>("conv3x3"),
    method<conv3x3_pack>("conv3x3_pack"),
    method<convolution>("convolution"),
    method<linear>("linear"),
    method<convolution_pack>("convolution_pack"),
    method<conv3x3_backward>("conv3x3_backward"),
    method<rms_norm_silu>("rms_norm_silu"),
    method<rms_norm_silu_backward>("rms_norm_silu_backward"),
    method<conforms>("conforms"),
    method<record>("record"),
    method<replay>("replay"),
    method<content>("content"),
    method<unchanged>("unchanged"),
    method<diffusion_loss>("diffusion_loss"),
    method<diffusion_loss_backward>("diffusion_loss_backward"),
    method<vlb_terms>("vlb_terms"),
    method<vlb_terms_backward>("vlb_terms_backward"),
#ifdef FD_CUDA
    method<loss_workspace>("loss_workspace"),
    method<workspace<GroupNormSiluParams, cuda::group_norm_silu_workspace>>("group_norm_silu_workspace"),
    method<workspace<GroupNormSiluBackwardParams, cuda::group_norm_silu_backward_workspace>>(
        "group_norm_silu_backward_workspace"),
    method<rms_norm_silu_backward_workspace>("rms_norm_silu_backward_workspace"),
#endif
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace
}  // namespace fastdiff

PYBIND11_MODULE(_C, module) {
  using namespace fastdiff;
  if (PyModule_AddFunctions(module.ptr(), methods)) throw py::error_already_set();

  module.def("set_torch", set_torch);
  module.def("simd_level", [] { return kernels().level; });
  module.def("set_simd_level", [](const std::string& level) { return set_simd_level(level.c_str()); });
  module.attr("INDEX_OUT_OF_RANGE") = int(kIndexOutOfRange);
  module.attr("MISSING_INPUT") = int(kMissingInput);
  module.attr("CUDA_ERROR") = int(kCudaError);
  module.attr("RMS_PARTS") = int(kRmsParts);
  module.attr("ROW_COLUMNS") = int(kRowColumns);
  module.attr("VLB_COLUMNS") = int(kVlbColumns);

  py::list architectures;
  for (int arch : std::initializer_list<int>{FD_CUDA_ARCHS}) architectures.append(arch);
  module.attr("cuda_architectures") = py::tuple(architectures);
#ifdef FD_CUDA
  module.def("error_string", cuda::error_string);
  module.def("device_arch", cuda::device_arch);
#endif
}
