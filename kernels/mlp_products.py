"""The first matrix product of an MLP with its GELU, and the same on the way back.

A product by the library and a kernel of kernels/gelu.py behind it, on any device; on a Hopper GPU, where
quack-kernels is installed (the extra `hopper`), one kernel for both (kernels/hopper_products.py). The
arithmetic of the GELU is float32 in either case; between product and GELU the fused kernel does not round.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Final, Protocol

import torch
from surgrec.kernels.gelu import gelu, gelu_backward
from surgrec.kernels.hopper_tiles import Direction, Plain, Tiling
from torch import Tensor

CAPABILITY: Final = 9
"""Major compute capability of GPUs that have fused products."""
MULTIPLE: Final = 8
"""Of two bytes each: a row must begin at a multiple of 16 bytes for tiles of it to be copied."""
LARGEST: Final = 2**31 - 1
"""Numbers in a matrix; fused kernels count them in 32 bits."""
SHOWN: Final = 300
"""Characters of an error that are logged; those of a compiler may be pages long."""

_log = logging.getLogger(__name__)
causes: Final[list[str]] = []
"""Why there are no fused products in this process any more; at most one, which has been logged."""


class Products(Protocol):
    """What computes fused products: kernels/hopper_products.py."""

    def prepare(self, direction: Direction, depth: int, device: torch.device) -> None:
        """Compiles what is needed for products that sum up `depth` terms; raises what the compiler does."""

    def linear_gelu(
        self, x: Tensor, weight: Tensor, bias: Tensor, keep: bool
    ) -> tuple[Tensor | None, Tensor]:
        """As the function of the same name."""

    def linear_gelu_backward(
        self, gradient: Tensor, weight: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As the function of the same name."""

    def prepare_plain(self, kind: Plain, tiling: Tiling, biased: bool, device: torch.device) -> None:
        """As `prepare`, for a product without a GELU."""

    def multiply(
        self, kind: Plain, tiling: Tiling, out: Tensor, first: Tensor, second: Tensor, bias: Tensor | None
    ) -> None:
        """Writes to a matrix what the function of kernels/products.py named `kind` makes of two others."""


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, keep: bool = True) -> tuple[Tensor | None, Tensor]:
    """(hidden [T, F], gelu(hidden) [T, F]) for hidden = x @ weight' + bias.

    Args:
        x, weight, bias: [T, K], [F, K] and [F], of one dtype.
        keep: whether hidden is wanted; else None is returned for it, and a fused kernel does not write it.
    """
    direction: Direction = "forward" if keep else "alone"
    fused = fused_for(direction, len(x) * len(weight), x, weight, bias)
    return (apart if fused is None else fused.linear_gelu)(x, weight, bias, keep)


def linear_gelu_backward(gradient: Tensor, weight: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of hidden [T, F], gelu(hidden) [T, F], that gradient summed over rows: float32 [F]).

    Args:
        gradient: [T, D], of gelu(hidden) @ weight'.
        weight: [D, F].
        hidden: [T, F], as `linear_gelu` gave it. All three are of one dtype.
    """
    fused = fused_for("backward", 0, gradient, weight, hidden)
    return (apart_backward if fused is None else fused.linear_gelu_backward)(gradient, weight, hidden)


def apart(x: Tensor, weight: Tensor, bias: Tensor, keep: bool = True) -> tuple[Tensor | None, Tensor]:
    """`linear_gelu` by the library's product and a kernel behind it."""
    hidden = torch.addmm(bias, x, weight.t())
    return hidden if keep else None, gelu(hidden)


def apart_backward(gradient: Tensor, weight: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`linear_gelu_backward` in the same way."""
    return gelu_backward(gradient @ weight, hidden)


def fused_for(direction: Direction, made: int, *operands: Tensor) -> Products | None:
    """What computes a fused product of these operands, compiled; None where it is done apart.

    Args:
        direction: as in kernels/hopper_tiles.py.
        made: numbers in the output, where no operand has as many.
        operands: the first one [T, terms of the sum].
    """
    first = operands[0]
    return ready(lambda found: found.prepare(direction, first.shape[1], first.device), made, *operands)


def ready(prepare: Callable[[Products], None], made: int, *operands: Tensor) -> Products | None:
    """What computes products of these operands, once it is prepared; None where the library does.

    Args:
        prepare: compiles, and raises whatever the compiler does.
        made, operands: as in `fused_for`.
    """
    products = products_for(operands[0].device)
    if products is None or causes or made > LARGEST or not fits(*operands):
        return None
    try:
        prepare(products)
    except Exception as error:  # a compiler's, of any kind
        _give_up("does not compile here", error)
        return None
    return products


def fits(*operands: Tensor) -> bool:
    """Whether fused products take matrices and vectors: bfloat16, rows without gaps, 16 bytes at a time."""
    return all(
        operand.dtype == torch.bfloat16
        and 0 < operand.numel() <= LARGEST
        and operand.shape[-1] % MULTIPLE == 0
        and operand.stride() == (operand.shape[-1], 1)[-operand.dim() :]
        and operand.data_ptr() % (2 * MULTIPLE) == 0
        for operand in operands
    )


@functools.cache
def products_for(device: torch.device) -> Products | None:
    """What computes fused products on a device, or None."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != CAPABILITY:
        return None
    return _hopper_products()


@functools.cache
def _hopper_products() -> Products | None:
    if importlib.util.find_spec("quack") is None:
        return None
    try:
        from surgrec.kernels import hopper_products
    except Exception as error:  # whatever a package of that name does when it is imported
        _give_up("cannot be imported", error)
        return None
    return hopper_products


def _give_up(what: str, error: Exception) -> None:
    cause = f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN]}"
    causes.append(cause)
    _log.warning("quack-kernels %s, products and GELU stay apart: %s", what, cause)
