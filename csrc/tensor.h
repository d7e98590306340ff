// torch's tensors as bindings.cpp reads them, without a torch header: through DLPack's table of C functions, which the Tensor
// type of a newer torch has, or through their Python attributes. The table takes group_norm_silu's binding from 2.2 us to 1.3.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "params.h"
#include "recording.h"

namespace py = pybind11;

namespace fastdiff {
namespace {

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

py::object attribute(py::handle object, PyObject* name) { return owned(PyObject_GetAttr(object.ptr(), name)); }
py::object called(py::handle object, PyObject* name) { return owned(PyObject_CallMethodNoArgs(object.ptr(), name)); }

bool equal(const py::object& found, py::handle expected) {
  return found.ptr() == expected.ptr() || PyObject_RichCompareBool(found.ptr(), expected.ptr(), Py_EQ) == 1;
}

// ---- DLPack ----

// DLTensor and DLPackExchangeAPI of dlpack.h, version 1.3, which later minor versions only add to.
struct View {
  void* data;
  struct { int32_t type, index; } device;
  int32_t rank;
  struct { uint8_t code, bits; uint16_t lanes; } dtype;
  const int64_t *extents, *strides;   // in elements
  uint64_t byte_offset;
};
static_assert(sizeof(View) == 48, "as DLTensor on 64 bits");

struct Exchange {
  struct { uint32_t major, minor; } version;
  const void* previous;
  const void* managed[3];   // functions that hand ownership on
  int (*view)(void* object, View* out);
  const void* stream;
};

const Exchange* exchange = nullptr;   // NULL: through attributes

// As torch's is_contiguous, of a tensor that has elements.
bool contiguous(const View& view) {
  int64_t dense = 1;
  for (int64_t i = view.rank - 1; i >= 0; dense *= view.extents[i--])
    if (view.extents[i] != 1 && view.strides[i] != dense) return false;
  return true;
}

// ---- What is known of torch ----

constexpr int kDtypes = 7;   // those of enum Dtype in their order, bool, int64
constexpr int kBool = 5, kCodes[kDtypes][2] = {{2, 32}, {2, 16}, {4, 16}, {2, 64}, {1, 8}, {6, 8}, {0, 64}};   // DLDataType

PyObject* dtypes[kDtypes] = {};
PyObject *cpu = nullptr, *plain_types[2] = {};

// The dtypes; the Tensor type's table or None; torch.device("cpu"); Tensor and Parameter.
void set_torch(const py::tuple& objects, const py::object& capsule, const py::object& device, const py::tuple& types) {
  for (int i = 0; i < kDtypes; ++i) dtypes[i] = py::object(objects[i]).release().ptr();
  for (int i = 0; i < 2; ++i) plain_types[i] = py::object(types[i]).release().ptr();
  cpu = py::object(device).release().ptr();
  exchange = nullptr;
  if (capsule.is_none()) return;
  const auto* found = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!found) throw py::error_already_set();
  if (found->version.major == 1 && found->view) exchange = found;
}

// Of `dtypes`; kDtypes: none of them.
int dtype_index(PyObject* dtype) {
  int i = 0;
  while (i < kDtypes && dtypes[i] != dtype) ++i;
  return i;
}
int dtype_index(const View& view) {
  int i = 0;
  while (i < kDtypes && (kCodes[i][0] != view.dtype.code || kCodes[i][1] != view.dtype.bits)) ++i;
  return i;
}

// ---- Tensors ----

struct Tensor {
  void* data = nullptr;
  py::handle object;
  View view = {};   // where there is a table

  explicit Tensor(py::handle tensor) : object(tensor) {
    if (tensor.is_none()) return;
    if (exchange) {
      if (exchange->view(tensor.ptr(), &view)) throw py::error_already_set();
      data = static_cast<char*>(view.data) + view.byte_offset;
    } else {
      data = PyLong_AsVoidPtr(called(tensor, names().data_ptr).ptr());
      if (PyErr_Occurred()) throw py::error_already_set();
    }
    if (recording) recording->tensors.push_back(py::reinterpret_borrow<py::object>(tensor));
  }

  explicit operator bool() const { return !object.is_none(); }
  operator void*() const { return data; }
  template <class T> operator const T*() const { return static_cast<const T*>(data); }

  int32_t dtype() const {
    if (!*this) return 0;
    const int index = exchange ? dtype_index(view) : dtype_index(attribute(object, names().dtype).ptr());
    if (index <= kBool) return index < kBool ? index : int32_t(kU8);
    throw py::type_error("unknown dtype " + std::string(py::str(attribute(object, names().dtype))));
  }

  // Dense tensors only: what is not contiguous is channels last.
  int32_t layout() const {
    if (!*this) return kChannelsFirst;
    const bool first = exchange ? contiguous(view) : called(object, names().is_contiguous).ptr() == Py_True;
    return first ? kChannelsFirst : kChannelsLast;
  }

  int64_t row_stride() const {
    if (!*this) return 0;
    return exchange ? view.strides[0] : py::cast<int64_t>(py::tuple(called(object, names().stride))[0]);
  }

  int64_t bytes() const { return py::cast<int64_t>(attribute(object, names().nbytes)); }
};

// Of a tensor that outlives it.
struct Shape {
  const View& view;
  py::object tuple;   // where there is no table

  explicit Shape(const Tensor& tensor) : view(tensor.view) {
    if (!exchange) tuple = attribute(tensor.object, names().shape);
  }
  int64_t rank() const { return exchange ? view.rank : PyTuple_GET_SIZE(tuple.ptr()); }
  int64_t operator[](int64_t i) const {
    return exchange ? view.extents[i] : PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), i));
  }
  int64_t product(int64_t begin, int64_t end) const {
    int64_t count = 1;
    for (int64_t i = begin; i < end; ++i) count *= (*this)[i];
    return count;
  }
  int64_t positions() const { return product(2, rank()); }
};

}  // namespace
}  // namespace fastdiff
