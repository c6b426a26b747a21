"""How fast are an MLP's first product and its GELU, apart and in one kernel, for the shapes of the presets?

    python bench/mlp_products.py [--shapes mae-decoder jepa-teacher] [--runs 5]

Measured are the forward pass (`forward`), the same where the values before the GELU are not kept, as for a
teacher (`alone`), and the way back to these values with the sums over rows (`backward`). The ways are `apart`
(the library's product and a kernel of kernels/gelu.py), `fused` (kernels/hopper_products.py; on a Hopper GPU
with quack-kernels), and as the ceiling `product`, the library's product and nothing else. Before they are
measured, results are compared with float32. TFLOP/s count the product: 2 T K F. Without a GPU a small shape
is measured in float32, to try the script out.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import RESULTS, Row, all_known, print_machine, repeat, report, row, timed

if TYPE_CHECKING:
    import torch
    from surgrec.kernels.hopper_tiles import Direction
    from torch import Tensor

    Work = Callable[[], Sequence[Tensor | None]]

TOLERANCE: Final = 0.01
"""Relative error; that of rounding to bfloat16 is 0.002."""


@dataclass(frozen=True)
class Shape:
    """Rows, terms of a sum, and columns of a product; the columns are those of the MLP's middle."""

    rows: int
    depth: int
    columns: int


SHAPES: Final[dict[str, Shape]] = {
    "mae-decoder": Shape(128 * 1568, 384, 1536),
    "mae-vitb-encoder": Shape(128 * 160, 768, 3072),
    "mae-vitl-encoder": Shape(64 * 160, 1024, 4096),
    "mae-vith-encoder": Shape(64 * 160, 1280, 5120),
    "jepa-teacher": Shape(64 * 1568, 1024, 4096),
    "jepa-predictor": Shape(120_000, 384, 1536),
}
SMALL: Final[dict[str, Shape]] = {"small": Shape(50, 24, 96)}


@dataclass(frozen=True)
class Args:
    """What is measured."""

    shapes: tuple[str, ...] = ()
    """Names of shapes; by default all on a GPU, and a small one on a CPU."""
    calls: int = 20
    """Calls of one run."""
    runs: int = 5
    """Measured runs, after one for warming up."""
    seed: int = 0
    """Seed of the numbers."""
    out: Path = RESULTS
    """Folder of the JSON file."""
    save: bool = True
    """Write the JSON file."""


@dataclass(frozen=True)
class Inputs:
    """x, gradient: [T, K]; first: [F, K]; bias: [F]; second: [K, F]; hidden: [T, F]."""

    x: Tensor
    gradient: Tensor
    first: Tensor
    bias: Tensor
    second: Tensor
    hidden: Tensor


def main(args: Args) -> int:
    import torch

    known = SHAPES | SMALL
    if not all_known(args.shapes, known, "shapes"):
        return 2
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    print_machine()
    rows: list[Row] = []
    for name in args.shapes or (SHAPES if gpu else SMALL):
        rows += measure_shape(name, known[name], args, device)
    return report(__file__, args, rows)


def measure_shape(name: str, shape: Shape, args: Args, device: torch.device) -> list[Row]:
    """Rows for each direction and way; ways that there are not, and those that are wrong, are printed."""
    from surgrec.kernels.hopper_tiles import Direction

    inputs = make_inputs(shape, args.seed, device)
    rows = []
    for direction in get_args(Direction):
        expected = reference(direction, inputs)
        for way, work in ways(direction, inputs).items():
            if work is None:
                print(f"{name} {direction} {way}: left out, no Hopper GPU or no quack-kernels", flush=True)
                continue
            error = 0.0 if way == "product" else error_of(work(), expected)
            if not error <= TOLERANCE:
                print(f"{name} {direction} {way}: left out, {error:.3f} away from float32", flush=True)
                continue
            seconds = repeat(timed(work, args.calls, device.type == "cuda"), 1, args.runs)
            rates = [2e-12 * shape.rows * shape.depth * shape.columns / each for each in seconds]
            corpus, extra = f"{name} {direction}", {"error": round(error, 5), **dataclasses.asdict(shape)}
            rows.append(row(way, corpus, "tflops", rates, **extra))
            rows.append(row(way, corpus, "ms", [1e3 * each for each in seconds], **extra))
            print(f"{corpus} {way}: {rows[-1].value:.3f} ms, {rows[-2].value:.3g} TFLOP/s", flush=True)
    return rows


def make_inputs(shape: Shape, seed: int, device: torch.device) -> Inputs:
    """Numbers of the size that they have in a model: what comes out is about 1."""
    import torch

    torch.manual_seed(seed)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    fan = shape.depth**-0.5

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, device=device) * scale).to(dtype)

    x, gradient = draw(shape.rows, shape.depth), draw(shape.rows, shape.depth)
    first, bias = draw(shape.columns, shape.depth, scale=fan), draw(shape.columns)
    second = draw(shape.depth, shape.columns, scale=fan)
    return Inputs(x, gradient, first, bias, second, torch.addmm(bias, x, first.t()))


def ways(direction: Direction, inputs: Inputs) -> dict[str, Work | None]:
    """What computes the direction in each way; None for a way that there is not here."""
    import torch
    from surgrec.kernels import mlp_products

    i = inputs
    if direction == "backward":
        back = i.gradient, i.second, i.hidden
        fused_back = mlp_products.fused_for(direction, 0, *back)
        return {
            "product": lambda: (i.gradient @ i.second,),
            "apart": lambda: mlp_products.apart_backward(*back),
            "fused": None if fused_back is None else lambda: fused_back.linear_gelu_backward(*back),
        }
    there, keep = (i.x, i.first, i.bias), direction == "forward"
    fused = mlp_products.fused_for(direction, i.hidden.numel(), *there)
    return {
        "product": lambda: (torch.addmm(i.bias, i.x, i.first.t()),),
        "apart": lambda: mlp_products.apart(*there, keep),
        "fused": None if fused is None else lambda: fused.linear_gelu(*there, keep),
    }


def reference(direction: Direction, inputs: Inputs) -> tuple[Tensor | None, ...]:
    """The same in float32, of the inputs as they are."""
    from surgrec.kernels.gelu import plain_gelu_backward
    from torch.nn import functional

    if direction == "backward":
        gradient = inputs.gradient.float() @ inputs.second.float()
        return plain_gelu_backward(gradient, inputs.hidden.float())
    hidden = functional.linear(inputs.x.float(), inputs.first.float(), inputs.bias.float())
    return hidden if direction == "forward" else None, functional.gelu(hidden)


def error_of(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """The largest relative error of the results, by their norms; infinite where one is missing."""
    errors = [
        float((one.float() - other).norm() / other.norm())
        for one, other in zip(found, expected, strict=True)
        if one is not None and other is not None
    ]
    return max(errors) if len(errors) == sum(other is not None for other in expected) else float("inf")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, prog="bench/mlp_products.py", description=__doc__)))
