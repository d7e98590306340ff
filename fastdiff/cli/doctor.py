"""Shows versions, the native build, devices, and every op on every backend: available, or why not.

The exit status is 0 whatever is missing: the reference backend runs everywhere.
"""

import importlib.metadata
import json
import platform

import torch

import fastdiff
from fastdiff import build_info
from fastdiff.ops import native
from fastdiff.ops._dispatch import BACKENDS, OPS, reason

_ON_GPU = ("cuda", "triton")


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(arguments):
    report = examine()
    print(json.dumps(report, indent=2) if arguments.json else "\n".join(lines(report)))


def examine():
    """Everything that doctor knows, as one JSON object; None stands for absent, and in `ops` for available."""
    devices, no_gpu = gpus()
    return {
        "versions": versions(),
        "simd": simd(),
        "build": build_info.read(),
        "devices": [processor(), *devices],
        "no_gpu": no_gpu,
        "ops": {op: {backend: against(op, backend, no_gpu) for backend in BACKENDS} for op in OPS},
    }


def versions():
    return {
        "fastdiff": fastdiff.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": installed("triton"),
        "torch_cuda": torch.version.cuda,
    }


def installed(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def simd():
    """The SIMD level in use and those that this processor and build can use."""
    level = native.simd_level()
    available = []
    for name in build_info.read()["simd_levels"] if level else []:
        try:
            native.set_simd_level(name)
        except ValueError:
            continue
        available.append(name)
    if level:
        native.set_simd_level(level)
    return {"level": level, "available": available, "reason": native.unavailable()}


def processor():
    return {"type": "cpu", "name": platform.machine(), "threads": torch.get_num_threads()}


def gpus():
    """(GPUs that torch can use, why there is none)."""
    if not torch.backends.cuda.is_built():
        return [], f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()  # names a missing or too old driver, which is_available() hides
    except RuntimeError as error:
        return [], str(error).split(". ")[0]
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found = [
        {
            "type": "cuda",
            "name": device.name,
            "capability": 10 * device.major + device.minor,
            "memory_gib": round(device.total_memory / 2**30, 1),
        }
        for device in devices
    ]
    return found, None if found else "the driver shows no device (see CUDA_VISIBLE_DEVICES)"


def against(op, backend, no_gpu):
    """Why the backend cannot run the op on any device of this machine; None where it can."""
    on_cpu = reason(op, backend, "cpu")
    if on_cpu is None or backend not in _ON_GPU:
        return on_cpu
    return reason(op, backend, "cuda") or (no_gpu and f"no CUDA device: {no_gpu}")


def lines(report):
    """The report for people."""
    yield "   ".join(f"{name} {version or 'none'}" for name, version in report["versions"].items())
    yield ""
    yield from build_lines(report["build"], report["simd"])
    yield from device_lines(report)
    yield ""
    yield from table_lines(report["ops"])


def build_lines(build, simd):
    reasons = build["reasons"]
    yield f"C++ kernels   {build['compiler'] or 'none: ' + reasons['cpu']}"
    if build["compiler"]:
        yield f"  threads     {'those of torch' if build['openmp'] else 'one: ' + reasons['openmp']}"
        yield f"  SIMD        {simd['level'] or 'none: ' + simd['reason']}"
        yield f"    built     {', '.join(build['simd_levels'])}"
        yield f"    run here  {', '.join(simd['available']) or 'none'}"
    if build["nvcc"]:
        archs = ", ".join(f"sm_{arch}" for arch in build["cuda_archs"])
        yield f"CUDA kernels  nvcc {build['nvcc']}: {archs}, and PTX of the last"
    else:
        yield f"CUDA kernels  none: {reasons['cuda']}"


def device_lines(report):
    for device in report["devices"]:
        if device["type"] == "cpu":
            yield f"device        {device['name']}, {device['threads']} threads"
        else:
            capability = f"sm_{device['capability']}"
            yield f"device        {device['name']}, {capability}, {device['memory_gib']} GiB"
    if report["no_gpu"]:
        yield f"no GPU        {report['no_gpu']}"


def table_lines(ops):
    """Op x backend; every distinct reason once, below, under its number."""
    reasons = list(dict.fromkeys(against for row in ops.values() for against in row.values() if against))
    width = max(map(len, ops))
    yield f"{'op':{width}}" + "".join(f"  {backend:9}" for backend in BACKENDS).rstrip()
    for op, row in ops.items():
        marks = ("yes" if against is None else f"no [{reasons.index(against) + 1}]" for against in row.values())
        yield f"{op:{width}}" + "".join(f"  {mark:9}" for mark in marks).rstrip()
    for number, against in enumerate(reasons, start=1):
        yield f"[{number}] {against}"
