// The quick answer to whether tensors are what a contract asks; the words, where they are not, are Python's (_check.py).
#pragma once
#include "arguments.h"

namespace fastdiff {
namespace {

// Whether it is torch's own type, whose memory DLPack's table shows; others may have none.
bool is_plain(py::handle object) {
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  return type == plain_types[0] || type == plain_types[1];
}

bool has_shape(const View& view, PyObject* shape) {
  if (!PyTuple_Check(shape) || PyTuple_GET_SIZE(shape) != view.rank) return false;
  for (int32_t i = 0; i < view.rank; ++i)
    if (PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i)) != view.extents[i]) {
      PyErr_Clear();
      return false;
    }
  return true;
}

bool on_device(py::handle tensor, py::handle device) {
  return equal(attribute(tensor, names().device), device);
}

// A device whose tensors have memory.
bool has_memory(py::handle device) {
  static PyObject *const type = PyUnicode_InternFromString("type"), *const cuda = PyUnicode_InternFromString("cuda");
  return equal(attribute(device, type), cuda);
}

// conforms(device, name, tensor, shape, dtype, name, tensor, ...): whether each tensor is of this shape, dtype and device.
// Not for a transform of functorch, whose tensors are of torch's type and have no memory: torch takes half a millisecond to
// say so.
PyObject* conforms(Arguments a) {
  constexpr int32_t kCpu = 1;   // DLDeviceType
  const py::handle device = a.object();
  const bool on_cpu = exchange && PyObject_RichCompareBool(device.ptr(), cpu, Py_EQ) == 1;
  const bool viewed = on_cpu || (exchange && has_memory(device));
  while (a.more()) {
    a.object();
    const py::handle tensor = a.object(), shape = a.object(), dtype = a.object();
    if (viewed && is_plain(tensor)) {
      View view = {};
      if (exchange->view(tensor.ptr(), &view)) {   // sparse, or on a device without memory
        PyErr_Clear();
        Py_RETURN_FALSE;
      }
      const int expected = dtype_index(dtype.ptr());
      if (expected == kDtypes || dtype_index(view) != expected || !has_shape(view, shape.ptr())) Py_RETURN_FALSE;
      if (on_cpu ? view.device.type != kCpu : !on_device(tensor, device)) Py_RETURN_FALSE;
    } else if (attribute(tensor, names().dtype).ptr() != dtype.ptr() ||
               !equal(attribute(tensor, names().shape), shape) || !on_device(tensor, device)) {
      Py_RETURN_FALSE;
    }
  }
  Py_RETURN_TRUE;
}

}  // namespace
}  // namespace fastdiff
