"""What executes more than half of inductor's instructions (THIRD: a third): its share, rounded up.

CUDA's rms_norm_silu, channels last: of 12.8 instructions an element 6 are its arithmetic, 3 of the norm and 3 of
SiLU, and in bfloat16 3 its widening, twice, narrowing and access; the rest, 250 and in float32 430 for a thread's 64
elements, finds the tile of any shape, reaches its vectors, reads the terms of any dtype, and adds up a position's
channels; inductor has the shape as constants, and Triton's program does so once for several tiles. Widened once, or
without branches in float32, it would spill.
The gradient, of 32 elements a thread, has two such sums, and those over positions, which it makes in shared memory.
CUDA's float32 gradient of group_norm_silu has four elements an access where bfloat16 has eight, at the same cost.
"""

MORE = {
    "cuda group_norm_silu_backward f32 first": 0.58,
    "cuda rms_norm_silu f32 last": 0.59,
    "cuda rms_norm_silu_backward f32 last": 0.61,
    "cuda rms_norm_silu bf16 last": 0.58,
    "cuda rms_norm_silu_backward bf16 last": 0.59,
}
