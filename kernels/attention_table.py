"""Which way of computing attention is fastest for which shape, as measured.

`python bench/attention.py` measures them all on a GPU and prints rows for this table. Those below come from
one H100 and one H200, torch 2.11, bf16, heads of 64 columns; TFLOP/s are those of forward and backward
together, unless times are told. `flash4` is FlashAttention 4.0.0b36, `triton` this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Order = tuple[str, ...]
"""Backends, the fastest first; one that does not run the case gives way to the next."""


@dataclass(frozen=True, slots=True)
class Row:
    """For GPUs of one major compute capability, heads of up to so many columns, and sequences of up to so
    many tokens.
    """

    capability: int
    packed: bool
    width: int
    tokens: int
    order: Order


ANY_WIDTH: Final = 1 << 30
ANY_LENGTH: Final = 1 << 30
TABLE: Final = (
    # H100, 160 tokens, 128 x 12 heads, in a CUDA graph: forward and backward triton 0.066 and 0.186 ms, cuDNN
    # 0.086 and 0.285, flash4 0.074 and 0.261 with its best tiles. Narrower heads were not measured.
    Row(9, False, 64, 256, ("triton", "cudnn", "flash4", "xformers", "flash")),
    # H100, 160 tokens: cuDNN 98 TFLOP/s, flash 63, xformers within 1 %.
    # Where between 160 and 1568 tokens flash4 overtakes cuDNN was not measured: 512 is a choice.
    Row(9, False, ANY_WIDTH, 512, ("cudnn", "flash4", "xformers", "flash")),
    # H100, 1568 and 2048 tokens: cuDNN 359 and 426 TFLOP/s, flash 239 and 281, xformers within 1 %.
    # H200, 1568 tokens: flash4 434 with 128 x 6 heads and 414 with 64 x 16, cuDNN 362 and 358.
    # H100, 1568 tokens, 128 x 12 heads of 32: flash4 1.81 and 4.01 ms, cuDNN 2.58 and 6.49.
    Row(9, False, ANY_WIDTH, ANY_LENGTH, ("flash4", "cudnn", "xformers", "flash")),
    # H100, 160, 512, 1568 and 2048 tokens: xformers 62, 194, 235 and 269 TFLOP/s, flash 62, 194, 235 and 264.
    # H100, 128 sequences of 200 to 560 tokens: cuDNN 204, flash 126.
    # H200, such sequences, 16 heads: forward cuDNN 237, flash4 193; backward 201 and 233; together 211 and
    # 220, too near to each other to change the order.
    Row(9, True, ANY_WIDTH, ANY_LENGTH, ("cudnn", "flash4", "xformers", "flash")),
)
ELSEWHERE: Final[Order] = ("xformers", "flash")


def order_for(capability: int, packed: bool, width: int, tokens: int) -> Order:
    """The order for a GPU's major capability, packed sequences or equal ones, a head's columns, and the
    longest's tokens.
    """
    for row in TABLE:
        same = (row.capability, row.packed) == (capability, packed)
        if same and width <= row.width and tokens <= row.tokens:
            return row.order
    return ELSEWHERE
