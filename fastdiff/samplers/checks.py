"""What solvers are told, checked before any row is made."""

import math


def check_choices(**given):
    """ValueError for a value that is not among its choices: name=(value, choices)."""
    for name, (value, choices) in given.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def check_amounts(most=math.inf, **given):
    """ValueError for a number below 0 or above `most`, or NaN: name=value."""
    for name, value in given.items():
        if not 0 <= value <= most:
            rule = "at least 0" if most == math.inf else f"in [0, {most}]"
            raise ValueError(f"{name} must be {rule}, got {value!r}")
