"""How many clips a second does a training step take, at what share of the GPU's peak, in how much memory?

    python bench/train_throughput.py --cases mae-vitb --inputs synthetic proxy16 --peers transformers-compiled

Cases are presets with a batch in one piece. Inputs: `synthetic`, random clips on the device; `cached`,
decoded clips on the device; `proxy16`, H.264 proxies on disk through the loader, end to end, and `proxy16s4`
and `proxy4s4`, stacked ones (surgrec.transcode). Peers take the same step on the same kind of clips; from
proxies they load with decord in a torch DataLoader, which cannot read stacked ones. Each
measurement runs in a process of its own, so that one that runs out of memory ends nothing else.

Rows, by case or peer and input: clips_per_s; mfu, the FLOPs of the matrix products that the mathematics ask
for (as `--dry-run` prints them) over the bf16 peak of the GPU; peak_gib, of torch's allocator; data_wait, the
share of time that the step waited for clips; first_step_s, with all compilation. On a CPU mfu and peak_gib
are left out. On a GPU the rows of clips_per_s hold the clocks and watts that it ran at, for at its limit of
power a GPU slows down.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tyro
from surgrec.configs.pretrain import BlockWay, Graph

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_clocks import gpu_clocks
from harness import RESULTS, Row, print_machine, report, row
from training_contestants import PEERS, Repeated, Setup, surgrec, with_batch

if TYPE_CHECKING:
    import torch
    from surgrec.configs.pretrain import JepaPretrain, MaePretrain

PLAIN: Final = "proxy16"
PROXIES: Final = (PLAIN, "proxy16s4", "proxy4s4")
INPUTS: Final = ("synthetic", "cached", *PROXIES)
BATCHES: Final = {"mae-vitb": 128, "mae-vitl": 256, "jepa-vitl": 64, "jepa-vitl-256": 64}
"""Clips of a batch, where none is given; 32 for other presets."""
CACHED_BATCHES: Final = 4
WARM_SECONDS: Final = 6.0
"""For which steps are taken before the first run where clips come from files: by then a loader has found how
many processes help it (loaders/engines/crew_size.py), and the queues of others are as full as they get."""
PATIENCE: Final = 300.0
"""Seconds without a word from a measurement after which it counts as hanging."""


@dataclass(frozen=True)
class Args:
    """What is measured."""

    cases: tuple[str, ...] = ("mae-vitb", "mae-vitl", "jepa-vitl", "jepa-vitl-256")
    """Presets."""
    inputs: tuple[str, ...] = ("synthetic",)
    """synthetic, cached, proxy16, proxy16s4, proxy4s4."""
    peers: tuple[str, ...] = ()
    """transformers, transformers-compiled, videomae, vjepa2: measured with the cases of their objective."""
    batch: tuple[int, ...] = ()
    """Clips of a batch, one measurement for each; by default 128 for mae-vitb, 256 for -vitl, 64 for JEPA."""
    steps: int = 20
    """Steps of one measured run."""
    warmup: int = 5
    """Steps before the first run; the very first is measured by itself. From proxies, as many as take 6 s."""
    runs: int = 3
    """Measured runs."""
    blocks: BlockWay = "auto"
    """How this project's blocks compute: plain, compiled, fused."""
    graph: Graph = "auto"
    """Whether this project's step is replayed from a CUDA graph where it can be: auto, off."""
    checkpointed: bool = False
    """Recompute activations."""
    attention: str = "auto"
    """Attention backend of this project's step."""
    repeats: int = 1
    """Crops of each decoded clip (data.repeats) that this project's loader gives from proxies."""
    workers: int = 0
    """Processes that load for peers from proxies; 0 takes all cores."""
    cache: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / "surgrec-bench")
    """Where generated videos are kept."""
    out: Path = RESULTS
    """Folder of the JSON file."""
    save: bool = True
    """Write the JSON file."""


@dataclass(frozen=True)
class Work:
    """One measurement: a preset's step, or a peer's with its shapes; index and videos where they are read."""

    name: str
    case: str
    source: str
    batch: int
    index: Path | None = None
    videos: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What a process found. rates: clips a second of each run; waits: share of time waited; clocks: medians
    over the runs, as in gpu_clocks.py.
    """

    first: float
    rates: list[float]
    waits: list[float]
    flops: float
    peak_gib: float
    device: str
    clocks: dict[str, float] = field(default_factory=dict)


def main(args: Args) -> int:
    from surgrec.configs.presets import PRESETS

    unknown = [case for case in args.cases if case not in PRESETS]
    unknown += [name for name in args.inputs if name not in INPUTS]
    unknown += [name for name in args.peers if name not in PEERS]
    if args.repeats < 1:
        print(f"--repeats is {args.repeats}; it must be at least 1", file=sys.stderr)
        return 2
    if unknown:
        print(f"unknown: {unknown}; inputs are {INPUTS}, peers {tuple(PEERS)}", file=sys.stderr)
        return 2
    print_machine()
    rows: list[Row] = []
    stopped = False
    try:
        for work in plan(args):
            rows += measured(args, work)
    except KeyboardInterrupt:
        stopped = True
        print("stopped: what is missing was not measured", file=sys.stderr)
    failed = report(__file__, args, rows)
    return 130 if stopped else failed


def measured(args: Args, work: Work) -> list[Row]:
    """The rows of a measurement, which is told; none where it failed."""
    found = in_a_process(args, work)
    if isinstance(found, str):
        print(f"{work.name} {work.source} batch {work.batch}: left out, {found}", flush=True)
        return []
    speed = statistics.median(found.rates)
    print(
        f"{work.name} {work.source} batch {work.batch}: {speed:.1f} clips/s, first step "
        f"{found.first:.1f} s, peak {found.peak_gib:.1f} GiB{shown(found.clocks)}",
        flush=True,
    )
    return rows_of(args, work, found)


def shown(clocks: dict[str, float]) -> str:
    """The multiprocessors' clock and the power, where they are known."""
    return f", {clocks['sm_mhz']:.0f} MHz, {clocks['watts']:.0f} W" if clocks else ""


def plan(args: Args) -> list[Work]:
    """Every measurement; generates and indexes the proxies where they are read."""
    from surgrec.configs.presets import PRESETS
    from surgrec.configs.pretrain import MaePretrain

    indexes: dict[str, Path | None] = {"synthetic": None}
    videos: dict[str, tuple[Path, ...]] = {"synthetic": ()}
    for source in set(args.inputs) - {"synthetic"}:
        from corpora import make_corpora
        from loader_throughput import index_of

        corpus = PLAIN if source == "cached" else source
        videos[source] = tuple(make_corpora([corpus], args.cache)[corpus])
        indexes[source] = index_of(corpus, list(videos[source]), args.cache)
    works = []
    for case in args.cases:
        objective = "mae" if isinstance(PRESETS[case][1], MaePretrain) else "jepa"
        names = [case, *(name for name in args.peers if PEERS[name].objective == objective)]
        works += [
            Work(name, case, source, batch, indexes[source], videos[source])
            for source in args.inputs
            for batch in args.batch or (BATCHES.get(case, 32),)
            for name in names
            if name == case or source not in PROXIES or source == PLAIN
        ]
    return works


def in_a_process(args: Args, work: Work) -> Measured | str:
    """The measurement, or why there is none."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(there, args, work), daemon=False)
    process.start()
    there.close()
    found: Measured | str = f"it gave no answer for {PATIENCE:g} s"
    try:
        if here.poll(PATIENCE):
            found = here.recv()
    except EOFError:
        process.join()
        found = f"its process died, exit code {process.exitcode}"
    except KeyboardInterrupt:
        process.kill()
        raise
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
    return found


def _measure(pipe: Connection, args: Args, work: Work) -> None:
    try:
        pipe.send(measure(args, work))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}"[:500])


def measure(args: Args, work: Work) -> Measured:
    """Takes the steps, in this process."""
    import dataclasses

    import torch
    from surgrec.configs.presets import PRESETS

    from surgrec.training.estimate import build_without_memory
    from surgrec.training.run_record import describe_device

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    config: Any = with_batch(PRESETS[work.case][1], work.batch)  # type: ignore[arg-type]
    model = dataclasses.replace(
        config.model, attention=args.attention, checkpoint_activations=args.checkpointed
    )
    # Proxies have the training rate already.
    data = dataclasses.replace(config.data, stride=1, fps=None, index=work.index or config.data.index)
    config = dataclasses.replace(config, model=model, data=data, graph=args.graph, steps=100_000)
    peer = PEERS.get(work.name)
    batches = open_batches(args, work, config, device)
    setup = Setup(config, batches, device)
    try:
        step = peer.open(setup, peer.compiled) if peer else surgrec(setup, args.blocks)
        first = seconds_of(step, 1, device)[0]
        until = time.perf_counter() + (WARM_SECONDS if work.source in PROXIES else 0.0)
        seconds_of(step, args.warmup, device)
        while time.perf_counter() < until:
            seconds_of(step, 1, device)
        with gpu_clocks() as clocks:
            runs = [seconds_of(step, args.steps, device) for _ in range(args.runs)]
    finally:
        getattr(batches, "close", lambda: None)()
    return Measured(
        first,
        [args.steps * work.batch / seconds for seconds, _ in runs],
        [waited / seconds for seconds, waited in runs],
        build_without_memory(config).flops_per_clip(),
        # From the first step on: what a CUDA graph works in is allocated while it is captured, never again.
        torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
        describe_device(device),
        clocks if device.type == "cuda" else {},
    )


def seconds_of(step: Any, count: int, device: torch.device) -> tuple[float, float]:
    """Seconds that some steps take until the device is done, and how long of these they waited for clips."""
    import torch

    began = time.perf_counter()
    waited = sum(step() for _ in range(count))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, waited


def open_batches(args: Args, work: Work, config: MaePretrain | JepaPretrain, device: torch.device) -> Any:
    """What gives the clips."""
    import dataclasses

    import torch

    data = config.data
    if work.source == "synthetic":
        generator = torch.Generator().manual_seed(0)
        shape = (work.batch, data.frames, data.size, data.size, 3)
        return Repeated([torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)])
    if work.source in PROXIES and work.name in PEERS:
        from decord_batches import DecordBatches

        workers = args.workers or len(os.sched_getaffinity(0))
        return DecordBatches(list(work.videos), data, work.batch, workers, device)
    from surgrec.loaders.clip_loader import ClipLoader
    from surgrec.loaders.packet_index import PacketIndex

    if work.source in PROXIES:
        data = dataclasses.replace(data, repeats=args.repeats)
    loader = ClipLoader(PacketIndex.open(data.index), data, 0, work.batch, device=device)
    if work.source in PROXIES:
        return loader
    with loader:
        return Repeated([next(loader).frames.clone() for _ in range(CACHED_BATCHES)])


def rows_of(args: Args, work: Work, found: Measured) -> list[Row]:
    """The rows of one measurement."""
    import torch

    from surgrec.training.peaks import peak_flops

    same: dict[str, Any] = {"batch": work.batch, "case": work.case}
    if work.name not in PEERS:
        same |= {"blocks": args.blocks, "graph": args.graph}
        if work.source in PROXIES and args.repeats > 1:
            same["repeats"] = args.repeats
    about = PEERS[work.name].about if work.name in PEERS else "this project"
    rows = [row(work.name, work.source, "clips_per_s", found.rates, **same, about=about, **found.clocks)]
    peak = peak_flops(found.device, torch.bfloat16)
    values = {"data_wait": found.waits, "first_step_s": [found.first]}
    if peak:
        values |= {"mfu": [rate * found.flops / peak for rate in found.rates], "peak_gib": [found.peak_gib]}
    rows += [row(work.name, work.source, metric, measured, **same) for metric, measured in values.items()]
    return rows


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, prog="bench/train_throughput.py", description=__doc__)))
