"""Which tiles the products of kernels/hopper_products.py take for which sizes, as measured.

Products with a GELU go by their depth, and there is a tiling for each; of others, the library computes what
has no row. The figures below come from one H200 (torch 2.11, quack-kernels 0.6.5, nvidia-cutlass-dsl 4.8.1),
the best of 17 tilings forward and of 12 backward; without a GELU, of 14. Those with a GELU are of MLPs four
times as wide as the model, so that the depth says how many columns there are, too.
`python bench/mlp_products.py` and `bench/products.py` measure the chosen ones again.
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


_WIDE: Final = Tiling(128, 192, 1, 2, pingpong=True)
_WIDE_DOWN: Final = Tiling(128, 192, 2, 1, pingpong=True)
_WIDE_ALONE: Final = Tiling(128, 192, 1, 1, pingpong=True)
_SQUARE: Final = Tiling(128, 128, 1, 2, pingpong=True)
_TALL: Final = Tiling(192, 128, 2, 1, pingpong=True)
# Each comment: ms of the library -> of these. Gradients of weights stay the library's: it is up to a sixth
# faster at them.
PLAIN: Final[dict[tuple[Plain, int, int], tuple[PlainRow, ...]]] = {
    # 384 wide, at 200,704 tokens; at 120,000 and 100,352 they gain as much.
    ("product", 1152, 384): (PlainRow(90_000, _WIDE_DOWN),),  # 0.309 -> 0.270
    ("product", 384, 384): (PlainRow(90_000, _WIDE),),  # 0.110 -> 0.096
    ("product", 384, 1536): (PlainRow(90_000, _WIDE),),  # 0.336 -> 0.324
    ("data_gradient", 1152, 384): (PlainRow(90_000, _WIDE),),  # 0.272 -> 0.249
    ("data_gradient", 384, 384): (PlainRow(90_000, _WIDE),),  # 0.121 -> 0.098
    ("data_gradient", 1536, 384): (PlainRow(90_000, _WIDE),),  # 0.346 -> 0.324
    # 768 wide, at 20,480 tokens.
    ("product", 2304, 768): (PlainRow(20_000, _WIDE_DOWN),),  # 0.114 -> 0.099
    ("product", 768, 768): (PlainRow(20_000, _WIDE_DOWN),),  # 0.044 -> 0.038
    ("product", 768, 3072): (PlainRow(20_000, _WIDE),),  # 0.133 -> 0.127
    ("data_gradient", 2304, 768): (PlainRow(20_000, _WIDE),),  # 0.102 -> 0.097
    ("data_gradient", 768, 768): (PlainRow(20_000, _WIDE_ALONE),),  # 0.043 -> 0.037
    ("data_gradient", 3072, 768): (PlainRow(20_000, _WIDE),),  # 0.133 -> 0.127
    # 1,024 wide, at 100,352, 48,000 and 10,240 tokens.
    ("product", 3072, 1024): (PlainRow(10_000, _WIDE),),  # 0.890 -> 0.817, 0.424 -> 0.390, 0.103 -> 0.088
    ("product", 1024, 1024): (  # 0.311 -> 0.285, 0.160 -> 0.142, 0.037 -> 0.034
        PlainRow(90_000, _TALL),
        PlainRow(10_000, _SQUARE),
    ),
    # At 100,352 they are alike.
    ("product", 1024, 4096): (PlainRow(30_000, _SQUARE),),  # 0.591 -> 0.536
    ("data_gradient", 3072, 1024): (PlainRow(30_000, _SQUARE),),  # 0.432 -> 0.402
    ("data_gradient", 1024, 1024): (PlainRow(10_000, _SQUARE),),  # 0.163 -> 0.144, 0.036 -> 0.035
    ("data_gradient", 4096, 1024): (PlainRow(30_000, _SQUARE),),  # 0.577 -> 0.538
}
"""By the outputs and the inputs of the layer, most tokens first. What has no row is the library's."""


def tiling_for(direction: Direction, depth: int) -> Tiling:
    """What a product that sums up `depth` terms is computed with."""
    table = BACKWARD if direction == "backward" else FORWARD
    return next(row.tiling for row in table if depth <= row.depth)


def plain_tiling(kind: Plain, outputs: int, inputs: int, tokens: int) -> Tiling | None:
    """The same for a product without a GELU of a layer with so many outputs and inputs; None: the library."""
    rows = PLAIN.get((kind, outputs, inputs), ())
    return next((row.tiling for row in rows if tokens >= row.tokens), None)
