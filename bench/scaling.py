"""How do clips per second grow with the number of GPUs, and what keeps them from growing as much?

    python bench/scaling.py --cases mae-vitb jepa-vitl --ranks 1 2 4 --parallel ddp fsdp

Weak scaling on one machine: every rank has its own GPU, the same batch and, with any number of ranks, the
same share of the cores. Inputs: `synthetic`, random clips on the device; `proxy16`, H.264 proxies through the
loader, end to end, each rank with decoders of its own, under the first of --parallel. Without a GPU, ranks
compute on the CPU through gloo. The ranks of one number are started once; where a measurement fails or hangs
they are started again for those that are left. Ctrl-C writes down what was found until then.

Rows have the case as name and the number of ranks as corpus, with parallel, input, batch and blocks:
- clips_per_s, of all ranks; speedup, the same over that of one rank; data_wait, the share of time that steps
  waited for clips.
- communication: the share of a step's time by which it takes longer than the steps that all ranks take at the
  same time without talking to each other; 0 where it takes no longer. alone_clips_per_s: of these steps;
  rank_spread, their standard deviation over ranks, as a share of the mean. bus_gb_s: the bus bandwidth of an
  all-reduce of the gradients by itself.
- loss_difference, norm_difference: the largest relative difference of loss and gradient norm, in the first
  steps, from one rank's with the same global batch; run_to_run is that of one rank from itself.
- loader_clips_per_s, of each rank, without training; read_mib_per_clip.
- save_s, save_held_s, load_s: until a checkpoint is written, for which steps wait, until it is read.
docs/scaling.md says more; bench/projection.py goes on from the JSON file.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import tyro
from surgrec.configs.pretrain import BlockWay, Parallel

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import RESULTS, Row, print_machine, print_table, write_results
from rank_group import GroupError, Ready, hear
from scaling_ranks import measure_all
from scaling_rows import Kept, rows_of, told
from scaling_work import PROXIES, SOURCES, Finished, Options, Work

SIZES: Final = (1, 2, 4, 8)
"""Numbers of ranks, as far as there are GPUs."""
CPU_SIZES: Final = (1, 2)
BATCHES: Final = {"mae-vitb": 384, "mae-vitl": 256, "jepa-vitl": 64}
"""Clips of a rank in a step, where none is given; 8 for other presets. So many, since a rank with less to
compute than its host needs for the launches shows the host's speed; 384 is an eighth of the recipe's 3,072.
"""


@dataclass(frozen=True)
class Args:
    """What is measured."""

    cases: tuple[str, ...] = ("mae-vitb", "mae-vitl", "jepa-vitl")
    """Presets."""
    ranks: tuple[int, ...] = ()
    """Numbers of ranks; by default 1, 2, 4 and 8 as far as there are GPUs, 1 and 2 without one. Without 1
    there is neither a speedup nor a comparison of losses."""
    parallel: tuple[Parallel, ...] = ("ddp", "fsdp")
    """How several ranks share the work."""
    inputs: tuple[str, ...] = SOURCES
    """synthetic, proxy16."""
    batch: int | None = None
    """Clips of a rank in a step; by default 384 for mae-vitb, 256 for mae-vitl, 64 for jepa-vitl."""
    blocks: BlockWay = "auto"
    """How blocks compute: plain, compiled, fused."""
    steps: int = 10
    """Steps of one measured run."""
    warmup: int = 3
    """Steps before the first run."""
    runs: int = 3
    """Measured runs."""
    curve: int = 5
    """Steps of which losses are compared; 0 compares none."""
    checkpoints: int = 1
    """Checkpoints that are written and read with the most ranks; 0 writes none."""
    loader_seconds: float = 3.0
    """Seconds for which loaders are measured without training, where proxies are read."""
    limit: float = 240.0
    """Seconds without a result after which ranks count as hanging."""
    cache: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / "surgrec-bench")
    """Where generated videos are kept, and checkpoints while they are measured."""
    out: Path = RESULTS
    """Folder of the JSON file."""
    save: bool = True
    """Write the JSON file."""


def main(args: Args) -> int:
    wrong = faults(args)
    gpus = count_gpus()
    sizes = args.ranks or tuple(size for size in SIZES if size <= gpus) or CPU_SIZES
    if gpus and max(sizes) > gpus:
        wrong.append(
            f"{max(sizes)} ranks need as many GPUs, and there are {gpus}: give --ranks {gpus} or fewer"
        )
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 2
    print_machine()
    args.cache.mkdir(parents=True, exist_ok=True)
    kept: Kept = {}
    failed, stopped = 0, False
    try:
        works = plan(args, tuple(sorted(set(sizes))))
        # What is compared comes first: where time runs out, numbers in between are what is missing.
        for size in sorted(set(sizes), key=lambda size: (size != 1, -size)):
            failed += measured([work for work in works if work.ranks == size], args, max(sizes), kept)
    except KeyboardInterrupt:
        stopped = True
        print("stopped: what is missing was not measured", file=sys.stderr)
    if failed:
        print(f"{failed} measurements were left out, see above", file=sys.stderr)
    rows = rows_of(kept, args.blocks, args.steps)
    if not rows:
        return 1
    print_table([named_for_table(found) for found in rows])
    if args.save:
        print(f"written: {write_results(__file__, args, rows, args.out)}")
    return 130 if stopped else min(failed, 1)


def named_for_table(found: Row) -> Row:
    """The row with all that tells it from others in its name."""
    about = (found.name, found.extra["parallel"], found.extra.get("input", ""))
    return replace(found, name=" ".join(part for part in about if part))


def faults(args: Args) -> list[str]:
    """What is wrong with the arguments, and what they may be."""
    from surgrec.configs.presets import PRESETS

    wrong = [
        f"unknown case {case}: presets are {', '.join(PRESETS)}" for case in args.cases if case not in PRESETS
    ]
    wrong += [
        f"unknown input {name}: there are {', '.join(SOURCES)}" for name in args.inputs if name not in SOURCES
    ]
    least = {"steps": 1, "warmup": 1, "runs": 1, "curve": 0, "checkpoints": 0}
    least |= {"batch": 1} if args.batch is not None else {}
    wrong += [
        f"--{name} is {getattr(args, name)}; it must be at least {value}"
        for name, value in least.items()
        if getattr(args, name) < value
    ]
    wrong += [f"--ranks {size}: at least 1 rank is needed" for size in args.ranks if size < 1]
    return wrong


def count_gpus() -> int:
    """GPUs that torch sees."""
    import torch

    return torch.cuda.device_count()


def plan(args: Args, sizes: tuple[int, ...]) -> list[Work]:
    """All builds of a model; generates and indexes the proxies where they are read."""
    index: Path | None = None
    if PROXIES in args.inputs:
        from corpora import make_corpora
        from loader_throughput import index_of

        print("making and indexing proxies, unless they are there", flush=True)
        index = index_of(PROXIES, make_corpora([PROXIES], args.cache)[PROXIES], args.cache)
    many = tuple(size for size in sizes if size > 1)
    curves = many if args.curve and 1 in sizes else ()
    works = []
    for size in sizes:
        for case in args.cases:
            batch = args.batch or BATCHES.get(case, 8)
            ways: tuple[Parallel | None, ...] = args.parallel if size > 1 else (None,)
            for way in ways:
                first = way == ways[0]
                # The loader does not know how weights are divided: to measure it once is enough.
                sources = tuple(name for name in args.inputs if first or name != PROXIES)
                works.append(Work(case, size, way, batch, sources, first and size > 1, curves, index))
    return works


def measured(works: list[Work], args: Args, most: int, kept: Kept) -> int:
    """Measures works of one number of ranks, adds what is found to `kept`; how many could not be finished."""
    failed = 0
    while works:
        options = Options(
            steps=args.steps,
            warmup=args.warmup,
            runs=args.runs,
            curve=args.curve,
            checkpoints=args.checkpoints if works[0].ranks == most else 0,
            loader_seconds=args.loader_seconds,
            blocks=args.blocks,
            folder=args.cache,
        )
        ready = False
        print(f"starting {works[0].ranks} ranks for {len(works)} measurements", flush=True)
        try:
            for found in hear(measure_all, works[0].ranks, most, args.limit, tuple(works), options):
                if isinstance(found, Ready):
                    ready = True
                elif isinstance(found, Finished):
                    works = works[1:]
                else:
                    kept.setdefault(works[0], []).append(found)
                    print(told(works[0], found, args.steps), flush=True)
        except GroupError as error:
            # Ranks that do not even start will not do so for the next one.
            lost = works[:1] if ready else works
            works = works[len(lost) :]
            failed += len(lost)
            for work in lost:
                print(f"{work}: left out from here on, {error}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, prog="bench/scaling.py", description=__doc__)))
