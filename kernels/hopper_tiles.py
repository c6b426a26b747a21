"""Which tiles the products of kernels/hopper_products.py take for which sizes, as measured.

Products with a GELU go by their depth, and there is a tiling for each; of others, the library computes what
has no row. The figures below come from one H200 (torch 2.11, quack-kernels 0.6.5, nvidia-cutlass-dsl 4.8.1),
the best of 17 tilings forward and of 12 backward. Those with a GELU are of MLPs four times as wide as the
model, so that the depth says how many columns there are, too. `python bench/mlp_products.py` measures the
chosen ones again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Direction = Literal["forward", "alone", "backward"]
"""`forward` stores the values before the GELU and behind it, `alone` the latter only."""
Plain = Literal["product", "data_gradient", "weight_gradient"]
"""Without a GELU: a layer's product, and the gradients of its input and of its weight."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Of the output: a tile's rows and columns, how many of either make a cluster, and who computes them.

    pingpong: two warp groups take turns, a tile each; otherwise both share one.
    pieces: of each sum; where the output has few tiles and the sums are long, there is work for more of the
        GPU. They are added up in float32 and in order.
    """

    rows: int
    columns: int
    cluster_rows: int
    cluster_columns: int
    pingpong: bool
    pieces: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """For products that sum up at most so many terms."""

    depth: int
    tiling: Tiling


ANY_DEPTH: Final = 1 << 30
# Each comment: rows, depth and columns; the library's product + PyTorch's GELU -> together. Backward, sums
# over rows and the GELU's output are in the figures behind the arrow only.
FORWARD: Final = (
    # 200,704 x 384 x 1,536: 0.39 + 0.40 -> 0.57 ms; 120,000 rows: 0.25 + 0.24 -> 0.34 ms.
    Row(512, Tiling(256, 128, 1, 2, pingpong=False)),
    # 20,480 x 768 x 3,072: 0.16 + 0.10 -> 0.17 ms; 100,352 x 1,024 x 4,096: 1.10 + 0.53 -> 1.26 ms.
    Row(ANY_DEPTH, Tiling(128, 128, 1, 2, pingpong=True)),
)
BACKWARD: Final = (
    # 200,704 x 384 x 1,536: 0.38 + 0.53 -> 0.93 ms; 120,000 rows: 0.24 + 0.32 -> 0.59 ms (a tile of 256 x 128
    # takes 0.97 and 0.58).
    Row(512, Tiling(128, 256, 2, 1, pingpong=False)),
    # 20,480 x 768 x 3,072: 0.16 + 0.13 -> 0.26 ms.
    Row(896, Tiling(128, 128, 1, 1, pingpong=True)),
    # 100,352 x 1,024 x 4,096: 1.08 + 0.70 -> 1.79 ms.
    Row(ANY_DEPTH, Tiling(128, 128, 2, 1, pingpong=True)),
)


@dataclass(frozen=True, slots=True)
class PlainRow:
    """For at least so many tokens."""

    tokens: int
    tiling: Tiling


PLAIN: Final[dict[tuple[Plain, int, int], tuple[PlainRow, ...]]] = {}
"""By the outputs and the inputs of the layer, most tokens first. It is empty: all are the library's."""


def tiling_for(direction: Direction, depth: int) -> Tiling:
    """What a product that sums up `depth` terms is computed with."""
    table = BACKWARD if direction == "backward" else FORWARD
    return next(row.tiling for row in table if depth <= row.depth)


def plain_tiling(kind: Plain, outputs: int, inputs: int, tokens: int) -> Tiling | None:
    """The same for a product without a GELU of a layer with so many outputs and inputs; None: the library."""
    rows = PLAIN.get((kind, outputs, inputs), ())
    return next((row.tiling for row in rows if tokens >= row.tokens), None)
