"""Bugs planted into a kernel's text, which a run must find: {name: (language, case, change, what is found)}."""

import re


def instead(pattern, text, count=0):
    """The first so many matches are replaced; 0: all."""

    def change(ptx):
        return re.sub(pattern, text, ptx, count=count, flags=re.MULTILINE)

    return change


def without(pattern):
    """The first match is dropped."""
    return instead(pattern, "", 1)


BARRIER = r"^.*\bbar(?:rier)?\.(?:cta\.)?sync.*;.*$"
STORE_SHARED = r"^.*\bst\.shared.*;.*$"
STORED_AT = r"(\bst\.global[.\w]*\s+\[\s*%rd\d+)(?:\s*\+\s*\d+)?\s*\]"
MINUS_LOG2E = r"0f[Bb][Ff][Bb]8[Aa][Aa]3[Bb]"

NORM, ROW = "group_norm_silu film bf16 last", "reverse_step drawn f32 first"
PLANTS = {
    "cuda-barrier": ("cuda", NORM, without(BARRIER), ": race: "),
    "triton-barrier": ("triton", NORM, without(BARRIER), ": race: "),
    "cuda-unwritten": ("cuda", NORM, without(STORE_SHARED), ": uninit: "),
    "triton-unwritten": ("triton", NORM, without(STORE_SHARED), ": uninit: "),
    "cuda-index": ("cuda", ROW, instead(STORED_AT, r"\1+1048576]"), "out-of-bounds global access"),
    "triton-index": ("triton", ROW, instead(STORED_AT, r"\1+1048576]"), "out-of-bounds global access"),
    "cuda-constant": ("cuda", NORM, instead(MINUS_LOG2E, "0fBFB00000", 0), "exceeds the budget"),
    "triton-constant": ("triton", NORM, instead(MINUS_LOG2E, "0fBFB00000", 0), "exceeds the budget"),
}
