"""How fast is attention, by which backend, for the shapes of the presets? And the table that follows.

    python bench/attention.py [--shapes mae-encoder jepa-context] [--runs 5]

Each backend computes the same case, forward and backward, in bf16; before it is measured its result and
gradients are compared with PyTorch's own in float32. TFLOP/s count the matrix products: 4 N^2 d for each head
and sequence of N tokens forward, and 2.5 times that backward, as is usual. At last the rows of
kernels/attention_table.py are printed that the figures of this machine give. Without a GPU small shapes are
measured in float32, to try the script out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import RESULTS, Row, all_known, print_machine, repeat, report, row, timed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Inputs = tuple[Tensor, Tensor, Tensor, Tensor]

BACKWARD: Final = 2.5
"""Matrix products of the backward pass, as a multiple of the forward pass's, with the scores made again."""
TOLERANCE: Final = 0.03


@dataclass(frozen=True)
class Shape:
    """Sequences of one pass. lengths: tokens of each, from the shortest to the longest where they differ."""

    sequences: int
    shortest: int
    longest: int
    heads: int
    width: int = 64

    @property
    def packed(self) -> bool:
        return self.shortest != self.longest

    def lengths(self, seed: int) -> list[int]:
        """Of each sequence; drawn evenly where they differ."""
        import numpy as np

        drawn = np.random.default_rng(seed).integers(self.shortest, self.longest + 1, self.sequences)
        return [int(length) for length in drawn]


SHAPES: Final[dict[str, Shape]] = {
    "mae-encoder": Shape(256, 160, 160, 12),
    "mae-decoder": Shape(256, 1568, 1568, 6),
    "jepa-teacher": Shape(32, 1568, 1568, 16),
    "jepa-teacher-256": Shape(32, 2048, 2048, 16),
    "jepa-predictor": Shape(64, 1568, 1568, 12, 32),
    # Contexts of the two mask groups: what some blocks of 15 %, or of 70 %, leave of 1,568 tokens.
    "jepa-context": Shape(64, 120, 520, 16),
    "jepa-context-256": Shape(64, 160, 680, 16),
}
SMALL: Final[dict[str, Shape]] = {
    "small": Shape(4, 40, 40, 3, 16),
    "small-packed": Shape(5, 9, 40, 3, 16),
}


@dataclass(frozen=True)
class Args:
    """What is measured."""

    shapes: tuple[str, ...] = ()
    """Names of shapes; by default all on a GPU, and small ones on a CPU."""
    backends: tuple[str, ...] = ()
    """Backends of kernels/attention.py; by default all."""
    calls: int = 20
    """Forward and backward passes of one run."""
    runs: int = 5
    """Measured runs, after one for warming up."""
    seed: int = 0
    """Seed of lengths and numbers."""
    out: Path = RESULTS
    """Folder of the JSON file."""
    save: bool = True
    """Write the JSON file."""


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
    if gpu and rows:
        print("\n".join(table_rows(rows, known, torch.cuda.get_device_capability(device)[0])))
    return report(__file__, args, rows)


def measure_shape(name: str, shape: Shape, args: Args, device: torch.device) -> list[Row]:
    """A row for each backend that runs the shape; the others, and those that are wrong, are printed."""
    from surgrec.kernels.attention import DENSE, PACKED

    lengths = shape.lengths(args.seed)
    inputs = make_inputs(shape, lengths, args.seed, device)
    expected = reference(inputs, lengths, shape.packed)
    rows = []
    for backend in args.backends or tuple(PACKED if shape.packed else DENSE):
        try:
            rows.append(measure(name, backend, shape, lengths, inputs, expected, args))
        except (RuntimeError, ImportError) as error:
            print(f"{name} {backend}: left out, {str(error).splitlines()[0][:200]}", flush=True)
    return rows


def make_inputs(shape: Shape, lengths: Sequence[int], seed: int, device: torch.device) -> Inputs:
    """q, k, v and the gradient of the result: [B, N, heads, d], or [sum of lengths, heads, d] if packed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tokens = (sum(lengths),) if shape.packed else (len(lengths), lengths[0])
    size = (*tokens, shape.heads, shape.width)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v, gradient = (torch.randn(size, generator=generator).to(device, dtype) for _ in range(4))
    return q, k, v, gradient


def run_once(backend: str, inputs: Inputs, lengths: Sequence[int], packed: bool) -> tuple[Tensor, ...]:
    """The result, and the gradients of q, k and v."""
    import torch
    from surgrec.kernels.attention import attention

    q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
    out = attention(q, k, v, list(lengths) if packed else None, backend)  # type: ignore[arg-type]
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), inputs[3]))


def reference(inputs: Inputs, lengths: Sequence[int], packed: bool) -> tuple[Tensor, ...]:
    """PyTorch's own attention in float32."""
    q, k, v, gradient = (x.float() for x in inputs)
    return run_once("sdpa", (q, k, v, gradient), lengths, packed)


def measure(
    name: str,
    backend: str,
    shape: Shape,
    lengths: Sequence[int],
    inputs: Inputs,
    expected: Sequence[Tensor],
    args: Args,
) -> Row:
    """Raises RuntimeError where the backend does not run, or gives something else."""
    found = run_once(backend, inputs, lengths, shape.packed)
    apart = max(
        float((one.float() - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True)
    )
    if not apart <= TOLERANCE:
        raise RuntimeError(f"its result or gradients are {apart:.3f} away from the reference")
    del found
    products = 4.0 * sum(length**2 for length in lengths) * shape.heads * shape.width * (1 + BACKWARD)
    run = timed(lambda: run_once(backend, inputs, lengths, shape.packed), args.calls, inputs[0].is_cuda)
    rates = [products / seconds / 1e12 for seconds in repeat(run, 1, args.runs)]
    measured = row(backend, name, "tflops", rates, apart=round(apart, 5), tokens=max(lengths))
    print(f"{name} {backend}: {measured.value:.3g} TFLOP/s", flush=True)
    return measured


def table_rows(rows: Sequence[Row], shapes: dict[str, Shape], capability: int) -> list[str]:
    """Lines for kernels/attention_table.py: for each head's width and length that were measured, the backends
    by their speed.

    Neighbouring lengths of one order share a row; `sdpa`, the last resort, is left out.
    """
    lines = []
    kinds = sorted({(shapes[row.corpus].packed, shapes[row.corpus].width) for row in rows})
    for kind in kinds:
        packed, width = kind
        widest = "ANY_WIDTH" if width == max(other for also, other in kinds if also == packed) else width
        orders: list[tuple[int, tuple[str, ...]]] = []
        names = {row.corpus for row in rows if (shapes[row.corpus].packed, shapes[row.corpus].width) == kind}
        for name in sorted(names, key=lambda name: shapes[name].longest):
            ranked = sorted((r for r in rows if r.corpus == name), key=lambda r: -r.value)
            order = tuple(r.name for r in ranked if r.name != "sdpa")
            if orders and orders[-1][1] == order:
                orders.pop()
            orders.append((shapes[name].longest, order))
        for number, (longest, order) in enumerate(orders, 1):
            limit = "ANY_LENGTH" if number == len(orders) else str(longest)
            lines.append(f"    Row({capability}, {packed}, {widest}, {limit}, {order}),")
    return lines


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, prog="bench/attention.py", description=__doc__)))
