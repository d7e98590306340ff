"""What executes more than half of inductor's instructions (THIRD: a third): its share, rounded up.

CUDA's rms_norm_silu: 8.8 of channels last's 14.6 instructions an element are its arithmetic (in bfloat16: widening
twice, 5 of norm and map, 3 of SiLU, narrowing and access); the rest, 370 for a thread's 64 elements, finds the tile of
any shape, reads the terms of any dtype, and adds up a position's channels in shared memory, as Triton's does; inductor
has the shape as constants. The gradient pays this twice, for the sums over channels and over positions.
vlb_terms exact: the mass between two ends, exact in the tails, takes two Mills ratios (26), a logarithm (17) and two
exponentials of full precision; inductor's is a difference of two erf, which keeps no digit in the tails.
CUDA's float32 gradient of group_norm_silu has four elements an access where bfloat16 has eight, at the same cost;
Triton's gradients, channels last, exchange their sums, and with dropout the mask, between the layouts.
"""

MORE = {
    "cuda group_norm_silu_backward f32 first": 0.58,
    "cuda rms_norm_silu_backward f32 first": 0.54,
    "cuda rms_norm_silu f32 last": 0.67,
    "cuda rms_norm_silu_backward f32 last": 0.71,
    "cuda rms_norm_silu bf16 last": 0.65,
    "cuda rms_norm_silu film bf16 last": 0.51,
    "cuda rms_norm_silu_backward bf16 last": 0.67,
    "cuda vlb_terms exact bf16 last": 0.55,
    "triton rms_norm_silu f32 last": 0.7,
    "triton rms_norm_silu_backward f32 last": 0.56,
    "triton group_norm_silu_backward film bf16 last": 0.51,
    "triton group_norm_silu_backward dropout bf16 last": 0.59,
    "triton rms_norm_silu bf16 last": 0.6,
    "triton vlb_terms exact bf16 last": 0.53,
}
