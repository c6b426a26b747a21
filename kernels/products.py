"""The matrix products of a layer, and of the way back through it.

By the library, or on a Hopper GPU, where quack-kernels is installed, by kernels/hopper_products.py: for the
sizes that kernels/hopper_tiles.py has a row for, because it was measured to be faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from surgrec.kernels.hopper_tiles import Plain, plain_tiling
from surgrec.kernels.mlp_products import ready
from torch import Tensor
from torch.nn import functional


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight' + bias: [..., O].

    Args:
        x, weight, bias: [..., I], [O, I] and [O], of one dtype.
    """
    outputs, inputs = weight.shape
    if x.is_contiguous():
        out = _made("product", (*x.shape[:-1], outputs), weight.shape, x.view(-1, inputs), weight, bias)
        if out is not None:
            return out
    return functional.linear(x, weight, bias)


def data_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """[T, I], of what `product` was given as x: gradient @ weight, of [T, O] and [O, I]."""
    size = len(gradient), weight.shape[1]
    out = _made("data_gradient", size, weight.shape, gradient, weight)
    return gradient @ weight if out is None else out


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """[O, I], of what `product` was given as weight: gradient' @ x, of [T, O] and [T, I]."""
    size = gradient.shape[1], x.shape[1]
    out = _made("weight_gradient", size, size, gradient, x)
    return gradient.t() @ x if out is None else out


def _made(
    kind: Plain,
    size: Sequence[int],
    layer: Sequence[int],
    first: Tensor,
    second: Tensor,
    bias: Tensor | None = None,
) -> Tensor | None:
    """A tensor of a size with what matrices multiplied give; None where the library does that.

    Args:
        size: its last part is the output's columns.
        layer: outputs and inputs.
        first: [T, ...].
    """
    tiling = plain_tiling(kind, layer[0], layer[1], len(first))
    if tiling is None:
        return None
    found = ready(
        lambda products: products.prepare_plain(kind, tiling, bias is not None, first.device),
        math.prod(size),
        first,
        second,
        *([] if bias is None else [bias]),
    )
    if found is None:
        return None
    out = first.new_empty(*size)
    found.multiply(kind, tiling, out.view(-1, size[-1]), first, second, bias)
    return out
