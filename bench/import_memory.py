"""How much memory does a foreign checkpoint of 5 GB take? Imported in a process of its own, all weights read.

    python bench/import_memory.py [--gigabytes 5] [--folder /tmp]

The file is made here: a VideoMAE of ViT-g's width with as many blocks as it takes, all weights random, as
`torch.save` and as safetensors write it. The process reads it by surgrec.load_model, as every command does,
and then each weight once. `peak_per_file` is the most memory that the process ever held (VmHWM: PyTorch, and
pages of the mapped file, are in it) through the size of the file; `grown_per_file` leaves out what it held
before it opened the file. The exit status is 1 where the first is above --bound.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

WIDTH, HIDDEN = 1408, 6144
KINDS: tuple[Literal["pth", "safetensors"], ...] = ("pth", "safetensors")
IMPORT = """
import json, sys, time
import timm.models.eva  # what an import costs is no cost of the file
import torch
from surgrec.weights.load import load_model

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

before = peak()
start = time.perf_counter()
model = load_model(sys.argv[1])
seconds = time.perf_counter() - start
total = sum(parameter.sum().item() for parameter in model.parameters())
values = sum(parameter.numel() for parameter in model.parameters())
print(json.dumps({"before": before, "peak": peak(), "seconds": seconds, "total": total, "values": values}))
"""


@dataclass(frozen=True)
class Args:
    gigabytes: float = 5.0
    """Size of the file, 10 ** 9 bytes each."""
    runs: int = 3
    """Processes for each kind of file."""
    bound: float = 1.3
    """Peak of the process through the size of the file that is not to be passed."""
    folder: Path | None = None
    """Where the file is made, and removed; by default the folder for temporary files."""
    out: Path | None = None
    """Folder of the JSON file; bench/results by default."""


def main(args: Args) -> int:
    import harness

    blocks = max(1, round(args.gigabytes * 1e9 / (4 * sum(_size(shape) for _, shape in block(0)))))
    rows = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = Path(folder) / f"videomae.{kind}"
            write(path, blocks)
            size = path.stat().st_size
            found = [measured(path) for _ in range(args.runs)]
        for name, values in {
            "peak_per_file": [run["peak"] / size for run in found],
            "grown_per_file": [(run["peak"] - run["before"]) / size for run in found],
            "seconds": [run["seconds"] for run in found],
        }.items():
            rows.append(harness.row(kind, f"{size / 1e9:.2f}GB", name, values, blocks=blocks))
            print(f"{kind}, {size / 1e9:.2f} GB: {name} {rows[-1].value:.2f}")
    path = harness.write_results(__file__, args, rows, args.out or harness.RESULTS)
    print(f"wrote {path}")
    worst = max(row.high for row in rows if row.metric == "peak_per_file")
    if worst > args.bound:
        print(f"import_memory: {worst:.2f} times the file; the bound is {args.bound:g}", file=sys.stderr)
        return 1
    return 0


def block(number: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a block's weights, as VideoMAE has them."""
    for name, shape in (
        ("norm1.weight", (WIDTH,)),
        ("norm1.bias", (WIDTH,)),
        ("attn.qkv.weight", (3 * WIDTH, WIDTH)),
        ("attn.q_bias", (WIDTH,)),
        ("attn.v_bias", (WIDTH,)),
        ("attn.proj.weight", (WIDTH, WIDTH)),
        ("attn.proj.bias", (WIDTH,)),
        ("norm2.weight", (WIDTH,)),
        ("norm2.bias", (WIDTH,)),
        ("mlp.fc1.weight", (HIDDEN, WIDTH)),
        ("mlp.fc1.bias", (HIDDEN,)),
        ("mlp.fc2.weight", (WIDTH, HIDDEN)),
        ("mlp.fc2.bias", (WIDTH,)),
    ):
        yield f"encoder.blocks.{number}.{name}", shape


def write(path: Path, blocks: int) -> None:
    """A checkpoint of this many blocks."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    shapes = [
        ("encoder.patch_embed.proj.weight", (WIDTH, 3, 2, 14, 14)),
        ("encoder.patch_embed.proj.bias", (WIDTH,)),
        ("encoder.norm.weight", (WIDTH,)),
        ("encoder.norm.bias", (WIDTH,)),
    ]
    shapes += [each for number in range(blocks) for each in block(number)]
    tensors: dict[str, torch.Tensor] = {
        name: torch.empty(shape).uniform_(-0.02, 0.02, generator=generator) for name, shape in shapes
    }
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"model": tensors, "epoch": 800}, path)


def measured(path: Path) -> dict[str, float]:
    """What a process says of its import. Raises CalledProcessError where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    if not 0 < 4 * found["values"] <= path.stat().st_size:
        raise RuntimeError(f"{path}: {found['values']} values were read, which the file cannot hold")
    return found


def _size(shape: tuple[int, ...]) -> int:
    found = 1
    for side in shape:
        found *= side
    return found


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
