"""Options that come with a checkpoint, by the names of whoever wrote it."""

from ..config import UNetConfig


def checked(given, known):
    """The dict, of known names alone."""
    given = dict(given or {})
    strange = [name for name in given if name not in known]
    if strange:
        raise ValueError(f"config must hold options of the dialect ({', '.join(known)}), got {', '.join(strange)}")
    return given


def require(given, names):
    """One error with every option that the shapes cannot tell and that is not given."""
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(f"config must say what the weights cannot: {', '.join(missing)}")


def build(found, given):
    """The `UNetConfig` of what was found; what was also given must agree with it."""
    for name, value in given.items():
        value = tuple(value) if isinstance(value, list) else value
        if found[name] != value:
            raise ValueError(f"config must agree with the weights in {name}, {found[name]!r} there, got {value!r}")
    return UNetConfig(**found)


def fixed(config, expected, dialect):
    """One error with every option in which the config is not of this dialect."""
    wrong = [name for name, value in expected.items() if getattr(config, name) not in _any_of(value)]
    if wrong:
        text = ", ".join(f"{name} {getattr(config, name)!r} for {expected[name]!r}" for name in wrong)
        raise ValueError(f"dialect must be one that knows this network, got {dialect!r}: {text}")


def _any_of(value):
    return value.among if isinstance(value, OneOf) else (value,)


class OneOf:
    """Any of several values."""

    def __init__(self, *among):
        self.among = among

    def __repr__(self):
        return " or ".join(map(repr, self.among))
