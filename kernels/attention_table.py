"""Which way of computing attention is fastest for which shape, as measured.

`python bench/attention.py` measures them all on a GPU and prints rows for this table. Those below come from
one H100, torch 2.11, bf16, heads of 64 columns, forward and backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Order = tuple[str, ...]
"""Backends, the fastest first; one that does not run the case gives way to the next."""


@dataclass(frozen=True, slots=True)
class Row:
    """For GPUs of one major compute capability, and sequences of up to so many tokens."""

    capability: int
    packed: bool
    tokens: int
    order: Order


ANY_LENGTH: Final = 1 << 30
TABLE: Final = (
    # 160, 1568 and 2048 tokens: cuDNN 98, 359 and 426 TFLOP/s, flash 63, 239 and 281, xformers within 1 %.
    Row(9, False, ANY_LENGTH, ("cudnn", "xformers", "flash")),
    # 160, 512, 1568 and 2048 tokens: xformers 62, 194, 235 and 269 TFLOP/s, flash 62, 194, 235 and 264.
    # 128 sequences of 200 to 560 tokens: cuDNN 204 TFLOP/s, flash 126.
    Row(9, True, ANY_LENGTH, ("cudnn", "xformers", "flash")),
)
ELSEWHERE: Final[Order] = ("xformers", "flash")


def order_for(capability: int, packed: bool, tokens: int) -> Order:
    """The order for a GPU's major capability, packed sequences or equal ones, and the longest's tokens."""
    for row in TABLE:
        if (row.capability, row.packed) == (capability, packed) and tokens <= row.tokens:
            return row.order
    return ELSEWHERE
