// Python's objects as bindings.cpp reads them: tensors, positional arguments, a status as a result.
//
// Tensors are read through their Python attributes (data_ptr(), dtype, shape, ...), so that no torch header is needed; doing
// so here rather than in Python takes a third of the time, which is most of a call on a small tensor. For the same reason the
// ops are plain vectorcall functions: pybind11's argument casters cost a microsecond for twenty arguments.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/kernels.h"
#include "recording.h"
#ifdef FD_CUDA
#include "cuda/kernels.h"
#endif

namespace py = pybind11;

namespace fastdiff {
namespace {

// ---- Tensors ----

struct Names {
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* device = PyUnicode_InternFromString("device");
  PyObject* is_contiguous = PyUnicode_InternFromString("is_contiguous");
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* stride = PyUnicode_InternFromString("stride");
  PyObject* nbytes = PyUnicode_InternFromString("nbytes");
};

const Names& names() {
  static const Names names;
  return names;
}

py::object owned(PyObject* result) {
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

bool equal(const py::object& found, py::handle expected) {
  return found.ptr() == expected.ptr() || PyObject_RichCompareBool(found.ptr(), expected.ptr(), Py_EQ) == 1;
}

// torch's dtype objects, in the order of enum Dtype, and torch.bool, which is a byte.
constexpr int kDtypes = 6;
PyObject* dtypes[kDtypes] = {};

void set_dtypes(const py::tuple& objects) {
  for (int i = 0; i < kDtypes; ++i) dtypes[i] = py::object(objects[i]).release().ptr();
}

struct Tensor {
  void* data = nullptr;
  py::handle object;

  explicit Tensor(py::handle tensor) : object(tensor) {
    if (tensor.is_none()) return;
    data = PyLong_AsVoidPtr(owned(PyObject_CallMethodNoArgs(tensor.ptr(), names().data_ptr)).ptr());
    if (PyErr_Occurred()) throw py::error_already_set();
    if (recording) recording->tensors.push_back(py::reinterpret_borrow<py::object>(tensor));
  }

  explicit operator bool() const { return !object.is_none(); }
  operator void*() const { return data; }
  template <class T> operator const T*() const { return static_cast<const T*>(data); }

  int32_t dtype() const {
    if (!*this) return 0;
    const py::object found = owned(PyObject_GetAttr(object.ptr(), names().dtype));
    for (int32_t i = 0; i < kDtypes; ++i)
      if (found.ptr() == dtypes[i]) return i < kDtypes - 1 ? i : int32_t(kU8);
    throw py::type_error("unknown dtype " + std::string(py::str(found)));
  }

  // Dense tensors only: what is not contiguous is channels last.
  int32_t layout() const {
    if (!*this) return kChannelsFirst;
    return owned(PyObject_CallMethodNoArgs(object.ptr(), names().is_contiguous)).ptr() == Py_True ? kChannelsFirst
                                                                                                  : kChannelsLast;
  }

  int64_t bytes() const { return py::cast<int64_t>(owned(PyObject_GetAttr(object.ptr(), names().nbytes))); }

  int64_t row_stride() const {
    if (!*this) return 0;
    return py::cast<int64_t>(py::tuple(owned(PyObject_CallMethodNoArgs(object.ptr(), names().stride)))[0]);
  }
};

struct Shape {
  py::object tuple;
  explicit Shape(const Tensor& tensor) : tuple(owned(PyObject_GetAttr(tensor.object.ptr(), names().shape))) {}
  int64_t rank() const { return PyTuple_GET_SIZE(tuple.ptr()); }
  int64_t operator[](int64_t i) const { return PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), i)); }
  int64_t product(int64_t begin, int64_t end) const {
    int64_t count = 1;
    for (int64_t i = begin; i < end; ++i) count *= (*this)[i];
    return count;
  }
  int64_t positions() const { return product(2, rank()); }
};

// ---- Calls ----

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
