"""Checkpoints of other people's U-Nets: whose they are, the config they imply, and which weight is which.

Each module has recognizes(names), infer(shapes, given) -> `UNetConfig`, table(config) for `mapping`, and
refuse(config).
"""

from . import ddpm, diffusers, lucidrains, openai

DIALECTS = {
    "openai": openai.dialect(guided=False),
    "guided": openai.dialect(guided=True),
    "diffusers": diffusers,
    "ddpm": ddpm,
    "lucidrains": lucidrains,
}


def detect(names):
    """The dialect of a checkpoint's names, or None."""
    names = set(names)
    if openai.recognizes(names):
        return "guided" if openai.is_guided(names) else "openai"
    return next((name for name, dialect in DIALECTS.items() if dialect.recognizes(names)), None)
