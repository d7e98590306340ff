"""Columns of the table of `vlb_terms`, a row for each timestep; mirrored by enum VlbColumn of csrc/params.h."""

NAMES = ("p_x", "p_m", "r_0", "r_x", "raw", "l_0", "l_1", "l_q")
WIDTH = len(NAMES)
COLUMNS = {name: column for column, name in enumerate(NAMES)}
