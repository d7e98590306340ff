"""What executes more than half of inductor's instructions (THIRD: a third): its share, rounded up.

CUDA's float32 gradient of group_norm_silu has four elements an access where bfloat16 has eight, at the same cost.
"""

MORE = {
    "cuda group_norm_silu_backward f32 first": 0.58,
}
