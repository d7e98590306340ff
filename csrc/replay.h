// CPU kernels' calls made again, and whether what they were noted down for is as it was (fastdiff/models/replay.py).
#pragma once
#include <cstring>
#include <memory>
#include <utility>

#include "arguments.h"

namespace fastdiff {
namespace {

constexpr const char* kRecording = "fastdiff.Recording";

// record(on): what this thread's CPU kernels were called with since the last record(True), for `replay`, None where there
// was none of them. Further calls are kept or, where on is false, no longer.
PyObject* record(Arguments a) {
  std::unique_ptr<Recording> ended = std::move(recording);
  if (a.truth()) recording = std::make_unique<Recording>();
  if (!ended || ended->calls.empty()) Py_RETURN_NONE;
  const auto destroy = [](PyObject* capsule) {
    delete static_cast<Recording*>(PyCapsule_GetPointer(capsule, kRecording));
  };
  return owned(PyCapsule_New(ended.release(), kRecording, destroy)).release().ptr();
}

// replay(recording, ...): the same calls, on the same memory, up to the first that fails.
PyObject* replay(Arguments a) {
  Status status;
  while (a.more() && status.code == kOk) {
    const auto* made = static_cast<Recording*>(PyCapsule_GetPointer(a.object().ptr(), kRecording));
    if (!made) throw py::error_already_set();
    const auto all = [made, &status] {
      for (auto call = made->calls.begin(); call != made->calls.end() && status.code == kOk; ++call) status = (*call)();
      return status;
    };
    owned(run(all, made->elements));
  }
  return result(status);
}

bool holds(PyObject* dictionary, PyObject* values) {
  PyObject *key, *value;
  Py_ssize_t place = 0, i = 0;
  if (PyDict_Size(dictionary) != PyTuple_GET_SIZE(values)) return false;
  while (PyDict_Next(dictionary, &place, &key, &value))
    if (value != PyTuple_GET_ITEM(values, i++)) return false;
  return true;
}

// Of what lies at an address a number that hardly any write leaves as it was: of 15 words of 8 bytes spread over it,
// each turned by a multiple of 5 bits of its own, so that a change of the same bits in all of them shows too.
uint64_t content_at(const char* data, int64_t bytes) {
  constexpr int64_t kWords = 15;
  uint64_t sum = 0, word = 0;
  if (bytes < int64_t(sizeof word)) {
    std::memcpy(&word, data, bytes);
    return word;
  }
  const int64_t last = bytes - sizeof word;
  for (int64_t i = 0; i < kWords; ++i) {
    std::memcpy(&word, data + last * i / (kWords - 1), sizeof word);
    sum = (sum << 5 | sum >> 59) ^ word;
  }
  return sum;
}

// content(address, bytes)
PyObject* content(Arguments a) {
  const void* address = PyLong_AsVoidPtr(a.object().ptr());
  return PyLong_FromUnsignedLongLong(content_at(static_cast<const char*>(address), a.integer()));
}

// Whether a tensor is of this version, at this address, and of this content.
bool same(PyObject* const* each) {
  static PyObject* const version = PyUnicode_InternFromString("_version");
  PyObject *tensor = each[0], *address = each[2];
  if (!equal(attribute(tensor, version), each[1])) return false;
  if (!equal(called(tensor, names().data_ptr), address)) return false;
  const auto* data = static_cast<const char*>(PyLong_AsVoidPtr(address));
  return content_at(data, PyLong_AsLongLong(each[3])) == PyLong_AsUnsignedLongLong(each[4]);
}

// unchanged((dictionary, values, ...), (tensor, version, address, bytes, content, ...)): whether each dictionary holds
// these very objects in this order, and each tensor is the same.
PyObject* unchanged(Arguments a) {
  const py::handle dictionaries = a.object(), tensors = a.object();
  for (Py_ssize_t i = 0; i < PyTuple_Size(dictionaries.ptr()); i += 2)
    if (!holds(PyTuple_GET_ITEM(dictionaries.ptr(), i), PyTuple_GET_ITEM(dictionaries.ptr(), i + 1))) Py_RETURN_FALSE;
  for (Py_ssize_t i = 0; i < PyTuple_Size(tensors.ptr()); i += 5)
    if (!same(&PyTuple_GET_ITEM(tensors.ptr(), i))) Py_RETURN_FALSE;
  Py_RETURN_TRUE;
}

}  // namespace
}  // namespace fastdiff
