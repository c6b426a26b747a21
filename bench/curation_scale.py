"""Does curation hold at the paper's size? 10,535 videos, 214.5 M packets, 858,000 segments.

    python bench/curation_scale.py [--parts index cluster]

index: a simulated packet index of that size, about 7 GB, and a plan for it, in --cache. A fresh process opens
the index (`index_open`), opens index and plan and makes the first clip request (`plan_to_first_sample`, with
what numba keeps on disk, without the imports), and plans random clips down to their packets (`clip_plan`); it
reports the memory it took. The pages of the index are in the file cache by then, as in a run.

cluster: hierarchical k-means over vectors of 384 dimensions in half precision, a mixture whose parts are as
unequal as 1 / rank.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from surgrec.loaders.index_writer import Packets, Source

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import RESULTS, Row, print_machine, print_table, row, write_results

FRAMES_PER_SECOND = 25
GOP = 250
PARTS_OF_MIXTURE = 2000


@dataclass(frozen=True)
class Args:
    """What is simulated."""

    parts: tuple[Literal["index", "cluster"], ...] = ("index", "cluster")
    """What is measured."""
    videos: int = 10_535
    """Videos of the index."""
    packets: int = 20_361
    """Packets of each."""
    points: int = 858_000
    """Vectors to group."""
    dimensions: int = 384
    """Of a vector."""
    levels: tuple[int, ...] = (8192, 1024, 128, 16)
    """Clusters of each level."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where they are grouped."""
    plans: int = 20_000
    """Clips that are planned."""
    runs: int = 3
    """Fresh processes that open the index."""
    seed: int = 0
    cache: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / "surgrec-bench")
    """Where the index is written; it stays there."""
    out: Path = RESULTS
    """Folder of the JSON file."""
    save: bool = True
    """Write the JSON file."""


def main() -> int:
    args = tyro.cli(Args, prog="bench/curation_scale.py", description=__doc__)
    print_machine()
    rows: list[Row] = []
    if "index" in args.parts:
        rows += measure_index(args)
    if "cluster" in args.parts:
        rows += measure_clusters(args)
    print_table(rows)
    if args.save and rows:
        print(f"written: {write_results(__file__, args, rows, args.out)}")
    return 0


def measure_index(args: Args) -> list[Row]:
    """Rows of the index and the plan, each run in a process of its own."""
    index, plan = make_corpus(args)
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[float]] = {}
    for _ in range(args.runs + 1):  # the first one compiles, and fills the file cache
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_first_sample, args=(there, index, plan, args.plans, args.seed))
        process.start()
        there.close()
        try:
            values: dict[str, float] = here.recv()
        except EOFError:
            process.join()
            raise RuntimeError(f"the process died, exit code {process.exitcode}") from None
        process.join()
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    corpus, packets = str(args.videos), args.videos * args.packets
    metrics = {
        "index_open": "seconds",
        "plan_to_first_sample": "seconds",
        "clip_plan": "microseconds",
        "peak_gib": "peak_gib",
    }
    return [
        row(
            "plan_to_first_sample" if name == "peak_gib" else name,
            corpus,
            metric,
            found[name][1:],
            packets=packets,
        )
        for name, metric in metrics.items()
    ]


def _first_sample(pipe: Connection, index_path: Path, plan_path: Path, plans: int, seed: int) -> None:
    """The fresh process: sends seconds, microseconds and GiB by name."""
    import numpy as np
    from surgrec.configs.data import DataConfig
    from surgrec.loaders.clip_plan import plan_clip
    from surgrec.loaders.clip_source import ClipSource
    from surgrec.loaders.packet_index import PacketIndex

    start = time.perf_counter()
    index = PacketIndex.open(index_path)
    opened = time.perf_counter() - start
    data = DataConfig(index=index_path, plan=plan_path)
    source = ClipSource(index, data, seed)
    source.requests(0, 1)
    first = time.perf_counter() - start
    peak = peak_gib()
    requests = source.requests(1, plans)
    for request in requests[:100]:
        plan_clip(index, request)
    start = time.perf_counter()
    for request in requests:
        plan_clip(index, request)
    each = (time.perf_counter() - start) / plans
    pipe.send(
        {
            "index_open": opened,
            "plan_to_first_sample": first,
            "clip_plan": 1e6 * float(np.float64(each)),
            "peak_gib": peak,
        }
    )


def peak_gib() -> float:
    """Most memory that this process had at a time which is not a file's: anonymous pages now."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 2**20


def make_corpus(args: Args) -> tuple[Path, Path]:
    """The index and the plan, written unless they are there."""
    import numpy as np
    from surgrec.loaders.index_writer import write_index
    from surgrec.loaders.packet_index import PacketIndex
    from surgrec.loaders.segments import SegmentTable

    from surgrec.curation.plan_file import write_plan

    args.cache.mkdir(parents=True, exist_ok=True)
    index_path = args.cache / f"scale-{args.videos}-{args.packets}.h5"
    plan_path = index_path.with_suffix(".plan.h5")
    if not index_path.exists():
        packets = simulated_packets(args.packets)
        write_index(index_path, [_source(number, args.packets, packets) for number in range(args.videos)])
    index = PacketIndex.open(index_path)
    starts = np.arange(0, args.packets - GOP + 1, GOP)
    ends = np.append(starts[1:], args.packets)
    segments = SegmentTable(
        np.repeat(np.arange(args.videos, dtype=np.int32), len(starts)),
        np.tile(starts, args.videos),
        np.tile(ends, args.videos),
    )
    weight = np.random.default_rng(args.seed).random(len(segments))
    write_plan(
        plan_path,
        index.digest,
        segments,
        weight / weight.sum(),
        np.zeros(len(segments), int),
        [""],
        np.full(len(segments), -1),
        {"domain": np.zeros(len(segments), int)},
        np.zeros((args.videos, 4), int),
        {},
    )
    return index_path, plan_path


def simulated_packets(count: int) -> Packets:
    """One video's: a key frame every GOP packets, every second frame disposable, coded before the one that
    is shown after it."""
    import numpy as np
    from surgrec.loaders.index_writer import Packets
    from surgrec.loaders.packet_index import DISPOSABLE, KEY

    number = np.arange(count)
    rank = number.copy()
    within = number % GOP
    # Key b P b P ... as shown; coded: key P b P b ...
    swapped = (within > 0) & (number - within + GOP <= count)
    odd, even = swapped & (within % 2 == 1), swapped & (within % 2 == 0)
    last = within == GOP - 1
    rank[odd & ~last] += 1
    rank[even] -= 1
    flags = np.where(within == 0, KEY, 0).astype(np.uint8)
    flags[even] |= DISPOSABLE
    size = (4000 + 3000 * (within == 0) + number * 2654435761 % 997).astype(np.uint32)
    return Packets(
        offset=np.concatenate([[0], np.cumsum(size[:-1])]).astype(np.uint64),
        size=size,
        pts=rank.astype(np.int64),
        rank=rank.astype(np.uint32),
        flags=flags,
        checksum=np.zeros(count, np.uint32),
        display=np.argsort(rank).astype(np.uint32),
    )


def _source(number: int, count: int, packets: Packets) -> Source:
    from surgrec.loaders.index_writer import Row as VideoRow
    from surgrec.loaders.index_writer import Source, default_values
    from surgrec.loaders.packet_index import OK

    values = default_values(f"/videos/{number:05d}.mp4")
    values.update(
        status=OK,
        codec="h264",
        packet_count=count,
        frame_count=count,
        time_base_num=1,
        time_base_den=FRAMES_PER_SECOND,
        rate=float(FRAMES_PER_SECOND),
        duration=count / FRAMES_PER_SECOND,
        width=854,
        height=480,
        file_size=int(packets.offset[-1]) + int(packets.size[-1]),
    )
    return Source(VideoRow(values), lambda: packets)


def measure_clusters(args: Args) -> list[Row]:
    """Seconds of grouping, and the most memory of the process meanwhile."""
    import torch

    from surgrec.curation.hierarchy import HierarchyOptions, hierarchical_kmeans

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    points = mixture(args)
    steps: list[float] = []
    start = time.perf_counter()

    def step() -> None:
        steps.append(round(time.perf_counter() - start, 2))

    with _watched() as most:
        tree = hierarchical_kmeans(points, HierarchyOptions(args.levels, seed=args.seed), device, step)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    corpus = str(args.points)
    extra: dict[str, Any] = {"levels": list(args.levels), "device": device, "steps": steps}
    extra["largest_cluster"] = int(torch.bincount(torch.from_numpy(tree.assignment(0))).max())
    return [
        row("cluster", corpus, "seconds", [seconds], **extra),
        row("cluster", corpus, "peak_gib", [most()]),
    ]


class _watched:  # noqa: N801 - used as a function
    """The most resident memory of this process within the block, in GiB."""

    def __enter__(self) -> Callable[[], float]:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's own high-water mark starts anew
        return self._most

    def __exit__(self, *_: object) -> None:
        pass

    @staticmethod
    def _most() -> float:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 2**20


def mixture(args: Args) -> NDArray[np.float16]:
    """float16 [points, dimensions]: PARTS_OF_MIXTURE parts around random centres, of sizes like 1 / rank."""
    import numpy as np

    generator = np.random.default_rng(args.seed)
    share = 1 / np.arange(1, PARTS_OF_MIXTURE + 1)
    centres = generator.standard_normal((PARTS_OF_MIXTURE, args.dimensions), dtype=np.float32)
    points = np.empty((args.points, args.dimensions), np.float16)
    for first in range(0, args.points, 1 << 16):
        count = min(1 << 16, args.points - first)
        part = generator.choice(PARTS_OF_MIXTURE, count, p=share / share.sum())
        noise = generator.standard_normal((count, args.dimensions), dtype=np.float32)
        points[first : first + count] = centres[part] + 0.7 * noise
    return points


if __name__ == "__main__":
    sys.exit(main())
