"""How fast are the products of a fused block by quack-kernels, beside the library's, for the presets' layers?

    python bench/products.py [--layers 1152x384 1024x4096] [--runs 5]

A layer is named by its outputs and inputs. Measured are its product, the gradient of its input and that of
its weight, for the tokens that presets have: by PyTorch's library (`library`), and by the kernel that
kernels/hopper_tiles.py names for the size (`chosen`), where it names one and there are a Hopper GPU and
quack-kernels. Before they are measured, results are compared with float32. Without a GPU a small layer is
measured in float32, to try the script out. Rows: ms and tflops.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import RESULTS, Row, all_known, print_machine, repeat, report, row, timed

if TYPE_CHECKING:
    import torch
    from surgrec.kernels.hopper_tiles import Plain
    from torch import Tensor

Layer = tuple[int, int]
TOKENS: Final = {384: (200_704,), 768: (20_480,), 1024: (100_352, 48_000, 10_240)}
"""By a model's width: 128 clips in MAE's decoder and as many sequences in JEPA's predictor; ViT-B's encoder
with 128 clips; JEPA's teacher and its contexts with 64, ViT-L's encoder in MAE with 64."""
LAYERS: Final[tuple[Layer, ...]] = tuple(
    layer
    for width in TOKENS
    for layer in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
)
SMALL: Final[dict[Layer, tuple[int, ...]]] = {(48, 16): (40,)}
TOLERANCE: Final = 0.01
"""Relative error; that of rounding to bfloat16 is 0.002."""


@dataclass(frozen=True)
class Args:
    """What is measured."""

    layers: tuple[str, ...] = ()
    """Outputs x inputs; by default all on a GPU, and a small one on a CPU."""
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


def main(args: Args) -> int:
    import torch

    gpu = torch.cuda.is_available()
    known = {layer: TOKENS[min(layer)] for layer in LAYERS} | SMALL
    named = {f"{outputs}x{inputs}": (outputs, inputs) for outputs, inputs in known}
    if not all_known(args.layers, named, "layers"):
        return 2
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    print_machine()
    rows: list[Row] = []
    for layer in [named[name] for name in args.layers] or (LAYERS if gpu else SMALL):
        for tokens in known[layer]:
            rows += measure_layer(layer, tokens, args, device)
    return report(__file__, args, rows)


def measure_layer(layer: Layer, tokens: int, args: Args, device: torch.device) -> list[Row]:
    """Rows for each product and way; what is wrong is printed and left out."""
    from surgrec.kernels.hopper_tiles import Plain

    rows = []
    for kind in get_args(Plain):
        operands = make_operands(kind, layer, tokens, args.seed, device)
        expected = by_library(kind, [operand.float() for operand in operands])()
        for way, work in ways(kind, layer, tokens, operands).items():
            error = float((work().float() - expected).norm() / expected.norm())
            corpus = f"{layer[0]}x{layer[1]} {kind} {tokens}"
            if not error <= TOLERANCE:
                print(f"{corpus} {way}: left out, {error:.3f} away from float32", flush=True)
                continue
            seconds = repeat(timed(work, args.calls, device.type == "cuda"), 1, args.runs)
            rates = [2e-12 * tokens * layer[0] * layer[1] / each for each in seconds]
            extra = {"error": round(error, 5), "tokens": tokens, "outputs": layer[0], "inputs": layer[1]}
            rows.append(row(way, corpus, "tflops", rates, **extra))
            rows.append(row(way, corpus, "ms", [1e3 * each for each in seconds], **extra))
            print(f"{corpus} {way}: {rows[-1].value:.4f} ms, {rows[-2].value:.3g} TFLOP/s", flush=True)
    return rows


def make_operands(kind: Plain, layer: Layer, tokens: int, seed: int, device: torch.device) -> list[Tensor]:
    """What the function of kernels/products.py takes; a bias with layers that have one there: qkv."""
    import torch

    torch.manual_seed(seed)
    outputs, inputs = layer
    shapes: dict[Plain, list[tuple[int, ...]]] = {
        "product": [(tokens, inputs), (outputs, inputs)],
        "data_gradient": [(tokens, outputs), (outputs, inputs)],
        "weight_gradient": [(tokens, outputs), (tokens, inputs)],
    }
    sizes = shapes[kind]
    if kind == "product" and outputs == 3 * inputs:
        sizes.append((outputs,))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return [torch.randn(*size, device=device).to(dtype) for size in sizes]


def ways(kind: Plain, layer: Layer, tokens: int, operands: list[Tensor]) -> dict[str, Callable[[], Tensor]]:
    """What computes it: the library, and our choice where it is another."""
    from surgrec.kernels import products
    from surgrec.kernels.hopper_tiles import plain_tiling
    from surgrec.kernels.mlp_products import products_for

    found = {"library": by_library(kind, operands)}
    if plain_tiling(kind, *layer, tokens) is not None and products_for(operands[0].device) is not None:
        function = getattr(products, kind)
        found["chosen"] = lambda: function(*operands)
    return found


def by_library(kind: Plain, operands: list[Tensor]) -> Callable[[], Tensor]:
    """PyTorch's own."""
    from torch.nn import functional

    first, second = operands[:2]
    if kind == "product":
        return lambda: functional.linear(*operands)
    return lambda: first @ second if kind == "data_gradient" else first.t() @ second


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, prog="bench/products.py", description=__doc__)))
