"""Reads PTX and what `ptxas -v` says of it."""

import math
import re

_ENTRY = re.compile(r"^\s*(?:\.visible\s+|\.weak\s+)*\.entry\s+([\w$]+)", re.MULTILINE)
_ACCESS = re.compile(r"\b(ld|st)\.((?:[\w:]+\.)*global(?:\.[\w:]+)*)")
_ASYNC = re.compile(r"\bcp\.async\.c[ag]\.shared(?:::\w+)?\.global[^;]*?\],\s*(0x[0-9a-f]+|\d+)")
_SLOW = re.compile(r"\b(?:sin|cos)\.approx|__cudart_i2opi|__internal_trig|trig_reduction")
_COMPILING = re.compile(r"Compiling entry function '([\w$]+)' for '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_THREADS = re.compile(r"\.(?:max|req)ntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")

# Of a multiprocessor: KiB of shared memory, warps, blocks (CUDA Programming Guide, "Compute Capabilities").
_SHARED_KIB = {80: 164, 86: 100, 87: 164, 89: 100, 90: 228, 100: 228, 103: 228, 120: 100}
_WARPS = {80: 64, 86: 48, 87: 48, 89: 48, 90: 64, 100: 64, 103: 64, 120: 48}
_BLOCKS = {80: 32, 86: 16, 87: 16, 89: 24, 90: 32, 100: 32, 103: 32, 120: 24}
_REGISTERS, _WARP, _RESERVED = 65536, 32, 1024


def kernels(text):
    """The text of each kernel, by name, from one PTX file."""
    starts = list(_ENTRY.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return {start[1]: text[start.start() : end] for start, end in zip(starts, ends, strict=False)}


def access_bytes(body, instruction):
    """Bytes of the widest access to global memory by `ld` or `st`; 0 where there is none."""
    widths = [_width(modifiers) for name, modifiers in _ACCESS.findall(body) if name == instruction]
    if instruction == "ld":
        widths += [int(count, 0) for count in _ASYNC.findall(body)]
    return max(widths, default=0)


def _width(modifiers):
    words = modifiers.split(".")
    vector = next((int(word[1:]) for word in words if re.fullmatch(r"v\d", word)), 1)
    return vector * int(re.fullmatch(r"[a-z]+(\d+)", words[-1])[1]) // 8


def slow_trigonometry(body):
    return bool(_SLOW.search(body))


def max_threads(body):
    """Threads of a block that the kernel is compiled for; None where it does not say."""
    found = _THREADS.search(body)
    return math.prod(int(count) for count in found.groups() if count) if found else None


def resources(log, arch):
    """What `ptxas -v` says of each kernel for an architecture, by name: registers, spill, stack, shared."""
    found = {}
    for block in re.split(r"(?=ptxas info\s*: Compiling entry function)", log):
        name, stack, used = _COMPILING.search(block), _STACK.search(block), _USED.search(block)
        if not (name and re.fullmatch(f"sm_{arch}[af]?", name[2])):
            continue
        if not (stack and used):
            raise ValueError(f"ptxas -v must give stack and registers of {name[1]}, got {block!r}")
        shared = sum(map(int, _SHARED.findall(block)))
        frame, stores, loads = map(int, stack.groups())
        found[name[1]] = {"registers": int(used[1]), "spill": stores + loads, "stack": frame, "shared": shared}
    return found


def occupancy(arch, registers, shared, threads):
    """Percent of a multiprocessor's warps that blocks of one kernel can fill; shared: bytes, static and dynamic."""
    if arch not in _WARPS:
        raise ValueError(f"arch must be one of {', '.join(map(str, _WARPS))}, got {arch}")
    warps = math.ceil(threads / _WARP)
    registers_of_warp = math.ceil(max(registers, 1) * _WARP / 256) * 256
    shared_of_block = math.ceil((shared + _RESERVED) / 128) * 128
    blocks = min(
        _BLOCKS[arch],
        _WARPS[arch] // warps,
        _REGISTERS // registers_of_warp // 4 * 4 // warps,
        (_SHARED_KIB[arch] << 10) // shared_of_block,
    )
    return round(100 * blocks * warps / _WARPS[arch])


def facts(text, log, arch):
    """What PTX and `ptxas -v` say of each kernel, by name: resources, load, store, trig, threads as compiled."""
    bodies = kernels(text)
    return {name: {**used, **_facts(bodies[name])} for name, used in resources(log, arch).items()}


def _facts(body):
    accesses = {"load": access_bytes(body, "ld"), "store": access_bytes(body, "st")}
    return {**accesses, "trig": slow_trigonometry(body), "threads": max_threads(body)}


def measured(known, arch, dynamic, threads):
    """The numbers of a row; known: a kernel's facts."""
    share = occupancy(arch, known["registers"], known["shared"] + dynamic, threads)
    return {**known, "dynamic": dynamic, "threads": threads, "occupancy": share}
