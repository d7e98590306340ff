"""The readers of PTX and of `ptxas -v`, on text that compilers wrote."""

import pytest

from benchmarks.static import cuda, ptx

PTX = """
.version 9.0
.target sm_90
.address_size 64
.global .align 4 .b8 __cudart_i2opi_f[24] = {65, 144, 67, 60, 153, 149, 98, 219};

.visible .entry slow(
	.param .u64 slow_param_0
)
.maxntid 32, 4, 1
{
	mov.u64 	%rd24, __cudart_i2opi_f;
	ld.global.nc.u32 	%r28, [%rd24];
	st.local.u32 	[%rd23], %rd15;
	ld.global.f32 	%f1, [%rd2];
	st.global.b16 	[%rd2], %h1;
	ret;
}
	// .globl	fast
.entry fast$1(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u64 .ptr .global .align 1 k_param_1
)
.reqntid 128
{
	@%p1 ld.global.L1::evict_last.L2::cache_hint.v4.b32 { %r81, %r82, %r83, %r84 }, [ %rd1 + 0 ], %rd9;
	ld.volatile.global.u64 	%rd3, [%rd4];
	ld.shared.v4.b32 	{%r1, %r2, %r3, %r4}, [%r5];
	ld.param.u64 	%rd1, [k_param_0];
	st.global.v2.f32 	[%rd6], {%f1, %f2};
	cos.approx.ftz.f32 	%f2, %f1;
}
	.visible .entry copy()
{
	cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
}
"""
LOG = """ptxas info    : 24 bytes gmem
ptxas info    : Compiling entry function 'slow' for 'sm_90'
ptxas info    : Function properties for slow
    40 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 40 bytes cumulative stack size, 2048 bytes smem, 384 bytes cmem[0]
ptxas info    : Compile time = 2.322 ms
ptxas info    : Compiling entry function 'fast$1' for 'sm_90'
ptxas info    : Function properties for fast$1
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""
BODIES = ptx.kernels(PTX)


def test_kernels_are_told_apart():
    assert list(BODIES) == ["slow", "fast$1", "copy"]
    assert ptx.kernels(".version 9.0\n.target sm_90\n") == {}


@pytest.mark.parametrize(
    ("name", "load", "store"), [("slow", 4, 2), ("fast$1", 16, 8), ("copy", 16, 0)]
)  # fmt: skip
def test_widest_access(name, load, store):
    assert (ptx.access_bytes(BODIES[name], "ld"), ptx.access_bytes(BODIES[name], "st")) == (load, store)


def test_trigonometry():
    assert ptx.slow_trigonometry(BODIES["slow"]) and ptx.slow_trigonometry(BODIES["fast$1"])
    assert ptx.slow_trigonometry("$L__BB0_7: // %__internal_trig_reduction_slowpath.exit.i")
    assert not ptx.slow_trigonometry(BODIES["copy"])


def test_threads():
    assert [ptx.max_threads(body) for body in BODIES.values()] == [128, 128, None]


def test_resources():
    other = LOG.replace("sm_90", "sm_80").replace("255", "77")
    assert "sm_80" in other
    assert ptx.resources(other + LOG, 90) == {
        "slow": {"registers": 255, "spill": 32, "stack": 40, "shared": 2048},
        "fast$1": {"registers": 8, "spill": 0, "stack": 0, "shared": 0},
    }


def test_a_log_that_is_cut_off_is_refused():
    with pytest.raises(ValueError, match=r"ptxas -v must give stack and registers of fast\$1"):
        ptx.resources(LOG[: LOG.rindex("Used")], 90)


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "threads", "percent"),
    [
        (90, 32, 0, 256, 100),
        (90, 33, 0, 256, 75),  # 40 registers a thread are allotted: 51 warps, 48 in whole blocks
        (90, 128, 0, 512, 25),
        (90, 255, 0, 256, 12),  # one block of eight warps
        (90, 32, 0, 32, 50),  # 32 blocks
        (90, 16, 100 << 10, 256, 25),  # two blocks of 101 KiB in 228
        (80, 16, 100 << 10, 256, 12),  # one in 164
        (86, 32, 0, 256, 100),  # of 48 warps
    ],
)
def test_occupancy(arch, registers, shared, threads, percent):
    assert ptx.occupancy(arch, registers, shared, threads) == percent


def test_occupancy_of_an_architecture_nobody_knows():
    with pytest.raises(ValueError, match=r"arch must be one of 80, .* got 12"):
        ptx.occupancy(12, 32, 0, 256)


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        (
            "void fastdiff::cuda::(anonymous namespace)::a_kernel<fastdiff::half_t, 8, true>(fastdiff::cuda::Walk)",
            "a_kernel<half_t, 8, true>",
        ),
        ("fastdiff::cuda::(anonymous namespace)::merge_kernel(float*, long, long)", "merge_kernel"),
        ("planted", "planted"),
    ],
)
def test_readable_names(signature, name):
    assert cuda.readable(signature) == name


def test_a_name_shared_by_files_tells_which():
    assert cuda.qualified("normal", "normal_kernel<float, true>") == "normal_kernel<float, true>"
    assert cuda.qualified("normal", "merge_kernel") == "normal/merge_kernel"
