// Python module `simt`: what the harness is told, and what it counted. And the CPU half's symbols that csrc/bindings.cpp
// asks for, empty.
#include <dlfcn.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>

#include "../../csrc/cpu/kernels.h"
#include "simt.h"

namespace py = pybind11;

namespace fastdiff {

const Kernels& kernels() {
  static const Kernels none = {"none"};
  return none;
}

const char* set_simd_level(const char*) { return "the CUDA sources have none"; }

}  // namespace fastdiff

namespace simt {
namespace {

std::map<uintptr_t, std::string> names;   // of functions, by their place in this library

py::dict traffic(const Range& range) {
  py::dict result;
  result["name"] = range.name;
  result["bytes"] = range.end - range.begin;
  const auto add = [&](const char* verb, const Traffic& t) {
    result[verb] = std::count(t.touched.begin(), t.touched.end(), true);
    result[py::str(std::string(verb) + "_sectors")] = t.sectors;
    result[py::str(std::string(verb) + "_minimal_sectors")] = t.minimal_sectors;
  };
  add("read", range.read);
  add("written", range.written);
  return result;
}

py::tuple triple(dim3 d) { return py::make_tuple(d.x, d.y, d.z); }

// function(kernel, grid, block, dynamic shared memory, bytes of each argument) stands for every launch to come; or None.
void set_elsewhere(const py::object& function) {
  settings.elsewhere = nullptr;
  if (function.is_none()) return;
  settings.elsewhere = [function](const std::string& kernel, dim3 grid, dim3 block, size_t shared,
                                  const std::vector<std::string>& arguments) {
    const py::gil_scoped_acquire acquire;
    py::list each;
    for (const std::string& argument : arguments) each.append(py::bytes(argument));
    function(kernel, triple(grid), triple(block), shared, each);
  };
}

py::list take_reports() {
  py::list all;
  for (const Report& report : reports) {
    py::dict each;
    py::list ranges;
    for (const Range& range : report.ranges) ranges.append(traffic(range));
    each["kernel"] = report.kernel;
    each["grid"] = triple(report.grid);
    each["block"] = triple(report.block);
    each["shared"] = report.shared;
    each["ranges"] = ranges;
    all.append(each);
  }
  reports.clear();
  return all;
}

}  // namespace

std::string kernel_name(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info)) return "?";
  const auto found = names.find(reinterpret_cast<uintptr_t>(kernel) - reinterpret_cast<uintptr_t>(info.dli_fbase));
  return found == names.end() ? "?" : found->second;
}

}  // namespace simt

PYBIND11_MODULE(simt, module) {
  using namespace simt;
  module.def("set_names", [](std::map<uintptr_t, std::string> each) { names = std::move(each); });
  module.def("add_range", add_range);
  module.def("clear_ranges", clear_ranges);
  module.def("set_seed", [](uint64_t seed) { settings.seed = seed; });
  module.def("set_counting", [](bool counting) { settings.counting = counting; });
  module.def("set_multiprocessors", [](int count) { settings.multiprocessors = count; });
  module.def("set_only_blocks", [](std::vector<int64_t> blocks) { settings.only_blocks = std::move(blocks); });
  module.def("set_elsewhere", set_elsewhere);
  module.def("take_reports", take_reports);
}
