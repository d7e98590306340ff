"""Columns of a plan's row table (DESIGN: every sampler is a table); mirrored by enum RowColumn of csrc/params.h."""

NAMES = (
    "w", "p_x", "p_m", "bound", "g_0", "l_0", "l_1", "c_x", "c_0", "c_m", "c_1", "c_2", "c_3", "g_x", "g_v", "std",
    "q_x", "q_0", "q_m", "write", "k_0", "k_n", "c_in",
)  # fmt: skip
WIDTH = 24  # the last column is reserved, 0
COLUMNS = {name: column for column, name in enumerate(NAMES)}
