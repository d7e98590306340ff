// Python's objects as bindings.cpp reads them: positional arguments, a status as a result.
//
// Ops are plain vectorcall functions: pybind11's argument casters cost a microsecond for twenty arguments.
#pragma once
#include "cpu/kernels.h"
#include "tensor.h"
#ifdef FD_CUDA
#include "cuda/kernels.h"
#endif

namespace fastdiff {
namespace {

// Positional arguments, read one after the other.
class Arguments {
 public:
  Arguments(PyObject* const* begin, Py_ssize_t count) : next_(begin), end_(begin + count) {}

  py::handle object() {
    if (next_ == end_) throw py::type_error("too few arguments");
    return *next_++;
  }
  Tensor tensor() { return Tensor(object()); }
  int64_t integer() {
    const int64_t value = PyLong_AsLongLong(object().ptr());
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
  }
  double number() { return PyFloat_AsDouble(object().ptr()); }
  bool truth() { return PyObject_IsTrue(object().ptr()) == 1; }
  bool more() const { return next_ != end_; }

 private:
  PyObject* const* next_;
  PyObject* const* end_;
};

struct Call {
  int device;
  uintptr_t stream;
  int threads;

  explicit Call(Arguments& a) : Call(int(a.integer()), a) {}
  Call(int device, Arguments& a) : device(device), stream(uintptr_t(a.integer())), threads(int(a.integer())) {}
};

// Below this many elements a kernel is over before another thread could take the GIL.
constexpr int64_t kLarge = 1 << 15;

PyObject* result(const Status& status) {
  if (status.code == kOk) Py_RETURN_NONE;
  return py::make_tuple(status.code, status.where, status.value).release().ptr();
}

template <class Function>
PyObject* run(const Function& call, int64_t elements) {
  if (elements < kLarge) return result(call());
  Status status;
  {
    py::gil_scoped_release release;
    status = call();
  }
  return result(status);
}

template <class Params>
PyObject* run(Status (*kernel)(const Params&), const Params& params, int64_t elements) {
  const auto call = [kernel, params] { return kernel(params); };
  if (recording) recording->calls.push_back(call), recording->elements += elements;
  return run(call, elements);
}

#ifdef FD_CUDA
#define FD_RUN(op, p, elements)                                     \
  (call.device < 0 ? run(kernels().op, p, elements)                 \
                   : result(cuda::op(p, {call.device, reinterpret_cast<void*>(call.stream)})))
#else
#define FD_RUN(op, p, elements) run(kernels().op, p, elements)
#endif

}  // namespace
}  // namespace fastdiff
