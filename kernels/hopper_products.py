"""Matrix products, also with the exact GELU in their epilogue, for GPUs of compute capability 9.x (Hopper).

    linear_gelu            x @ weight' + bias = hidden;  gelu(hidden)
    linear_gelu_backward   (gradient @ weight) * gelu'(hidden);  gelu(hidden);  sums over rows
    multiply               products without a GELU, those of kernels/products.py

What a product has summed up is in registers when the GELU needs it: nothing is written to be read again by a
kernel behind it. The products are those of quack-kernels (https://github.com/Dao-AILab/quack), which NVIDIA's
CuTe DSL compiles at first use, in one to three seconds each; a model needs about ten. They are kept beside
Triton's kernels on disk, or where QUACK_CACHE_DIR says.

To import this is to import quack; kernels/mlp_products.py does so where it is of use.
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Any, Final

import cutlass.cute as cute
import quack.cache
import torch
from cutlass import Boolean
from cutlass._mlir_helpers import math as mlir_math
from cutlass.cutlass_dsl import dsl_user_op
from quack.activation import relu
from quack.epilogue.frontend import gemm_epilogue
from quack.epilogue.ops import RowVecLoad, RowVecReduce
from quack.gemm_runtime.host import run_gemm_epi_plan
from surgrec.kernels.column_sums import column_sums
from surgrec.kernels.hopper_tiles import Direction, Plain, Tiling, tiling_for
from torch import Tensor
from triton import knobs

if quack.cache.CACHE_DIR is None:  # its own choice is a folder for temporary files
    quack.cache.CACHE_DIR = os.fspath(Path(knobs.cache.dir) / "quack")
# Of functions in an installed package quack looks at the names only: another release must not find these.
quack.cache.EXTRA_SOURCE_DIRS.append(Path(__file__).resolve().parent)

ACROSS: Final = 0.3275911 / math.sqrt(2.0)
TERMS: Final = tuple(
    0.5 * term for term in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
)
"""Abramowitz and Stegun 7.1.26, erf within 1.5e-7, as in kernels/gelu.py."""
TO_POWER_OF_TWO: Final = -0.5 * math.log2(math.e)
DENSITY: Final = 1.0 / math.sqrt(2.0 * math.pi)
NO_EARLY_START: Final = (("use_pdl", False),)
"""A launch that overlaps the end of the kernel before gains microseconds, and asks of that kernel, whoever
wrote it, that nothing this one reads is still on its way."""


@dsl_user_op
@cute.jit
def _where_positive(x: Any, positive: Any, negative: Any, *, loc: Any = None, ip: Any = None) -> Any:
    return positive if Boolean(x >= 0.0) else negative


def _tail(x: Any) -> tuple[Any, Any, Any]:
    """|x|; the share of a normal distribution beyond it; its density there, times sqrt(2 pi)."""
    size = abs(x)
    t = mlir_math.rcp(size * ACROSS + 1.0, approx=True, ftz=True)
    power = cute.math.exp2(x * x * TO_POWER_OF_TWO, fastmath=True)
    polynomial = t * TERMS[4] + TERMS[3]
    for term in TERMS[2::-1]:
        polynomial = polynomial * t + term
    return size, polynomial * (t * power), power


def _gelu(x: Any) -> Any:
    """x * Phi(x); of an infinite x it is not a number."""
    size, tail, _ = _tail(x)
    return relu(x) - size * tail


# quack tells outputs and operands by these names: D is the product's own output, c a matrix of its shape.
@gemm_epilogue(outputs=("activated",), ops={"bias": RowVecLoad("bias")})
def forward_epilogue(acc: Any, bias: Any) -> dict[str, Any]:
    """Both values before and behind the GELU."""
    hidden = acc + bias
    return {"D": hidden, "activated": _gelu(hidden)}


@gemm_epilogue(ops={"bias": RowVecLoad("bias")})
def alone_epilogue(acc: Any, bias: Any) -> dict[str, Any]:
    """The values behind the GELU."""
    return {"D": _gelu(acc + bias)}


@gemm_epilogue(outputs=("activated",), reduces={"sums": RowVecReduce("sums")})
def backward_epilogue(acc: Any, c: Any) -> dict[str, Any]:
    """From the gradient behind the GELU to that before it, its sums over a tile's rows, and gelu(c)."""
    size, tail, power = _tail(c)
    # First, so that the tail is not needed again: the compiler then saves an instruction for each value.
    activated = relu(c) - size * tail
    below = _where_positive(c, 1.0 - tail, tail)
    out = acc * (c * DENSITY * power + below)
    return {"D": out, "activated": activated, "sums": out}


@gemm_epilogue()
def plain_epilogue(acc: Any) -> dict[str, Any]:
    """The product."""
    return {"D": acc}


@gemm_epilogue(ops={"bias": RowVecLoad("bias")})
def biased_epilogue(acc: Any, bias: Any) -> dict[str, Any]:
    """The product and a bias."""
    return {"D": acc + bias}


EPILOGUES: Final = {"forward": forward_epilogue, "alone": alone_epilogue, "backward": backward_epilogue}


def prepare(direction: Direction, depth: int, device: torch.device) -> None:
    """Compiles what a product needs, or reads it from disk. Raises whatever the compiler does."""
    _plan(direction, depth, device)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor | None, Tensor]:
    """As `mlp_products.linear_gelu`, for what it finds that `fits`."""
    x, weight, bias = x.detach(), weight.detach(), bias.detach()
    activated = x.new_empty(len(x), len(weight))
    hidden = torch.empty_like(activated) if keep else None
    plan = _plan("forward" if keep else "alone", x.shape[1], x.device)
    extra = {"bias": bias} if hidden is None else {"bias": bias, "activated": activated}
    with torch.cuda.device_of(x):
        run_gemm_epi_plan(plan, x, weight.t(), activated if hidden is None else hidden, None, extra)
    return hidden, activated


def linear_gelu_backward(gradient: Tensor, weight: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `mlp_products.linear_gelu_backward`, for what it finds that `fits`."""
    out, activated = torch.empty_like(hidden), torch.empty_like(hidden)
    rows, columns = hidden.shape
    tiles = -(-rows // tiling_for("backward", gradient.shape[1]).rows)
    sums = hidden.new_empty(tiles, columns, dtype=torch.float32)
    plan = _plan("backward", gradient.shape[1], gradient.device)
    with torch.cuda.device_of(hidden):
        extra = {"activated": activated, "sums": sums}
        run_gemm_epi_plan(plan, gradient.detach(), weight.detach(), out, hidden.detach(), extra)
    return out, activated, column_sums(sums)


def prepare_plain(kind: Plain, tiling: Tiling, biased: bool, device: torch.device) -> None:
    """As `prepare`, for a product without a GELU."""
    _plain_plan(kind, tiling, biased, device)


def multiply(
    kind: Plain, tiling: Tiling, out: Tensor, first: Tensor, second: Tensor, bias: Tensor | None
) -> None:
    """As `mlp_products.Products.multiply`, for what `mlp_products.fits`."""
    plan = _plain_plan(kind, tiling, bias is not None, out.device)
    extra = {} if bias is None else {"bias": bias.detach()}
    with torch.cuda.device_of(out):
        run_gemm_epi_plan(plan, *_factors(kind, first.detach(), second.detach()), out, None, extra)


def _factors(kind: Plain, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """What is multiplied, [M, K] and [K, N], of what kernels/products.py is given."""
    if kind == "product":
        return first, second.t()
    return (first.t() if kind == "weight_gradient" else first), second


@functools.cache
def _plain_plan(kind: Plain, tiling: Tiling, biased: bool, device: torch.device) -> Any:
    """As `_plan`, for a product without a GELU."""
    matrix = torch.empty(8, 8, dtype=torch.bfloat16, device=device)
    left, right = _factors(kind, matrix, matrix)
    epilogue = biased_epilogue if biased else plain_epilogue
    return _compiled(epilogue, tiling, left, right, matrix, None, {"bias": matrix[0]} if biased else {})


@functools.cache
def _plan(direction: Direction, depth: int, device: torch.device) -> Any:
    """A compiled product and how it is launched; it takes matrices of any size, laid out like those here."""
    tiling = tiling_for(direction, depth)
    matrix = torch.empty(8, 8, dtype=torch.bfloat16, device=device)
    extra = {"activated": matrix, "bias": matrix[0]}
    backward = direction == "backward"
    if backward:
        extra["sums"] = torch.empty(1, 8, device=device)
    left, right = matrix, matrix if backward else matrix.t()
    return _compiled(EPILOGUES[direction], tiling, left, right, matrix, matrix if backward else None, extra)


def _compiled(
    epilogue: Any,
    tiling: Tiling,
    left: Tensor,
    right: Tensor,
    out: Tensor,
    beside: Tensor | None,
    extra: dict[str, Tensor],
) -> Any:
    """A plan for matrices laid out like these; `beside` is what an epilogue reads as c."""
    with torch.cuda.device_of(out):
        return epilogue.gemm(
            left,
            right,
            out,
            beside,
            epi_args=extra,
            tile_M=tiling.rows,
            tile_N=tiling.columns,
            cluster_M=tiling.cluster_rows,
            cluster_N=tiling.cluster_columns,
            pingpong=tiling.pingpong,
            split_k=tiling.pieces,
            b_kn=True,
            post_init_attrs=NO_EARLY_START,
            _launch=False,
        )
