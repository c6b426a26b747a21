"""How many clips a second does each loader give, from the same requests, on the same cores?

    python bench/loader_throughput.py --corpora 480g250 256g16 --cores 1 2

Every contestant decodes the same random clips of the same videos. A contestant runs in processes of its own,
each pinned to its cores: threads where it has them, otherwise one process a core. Before it is measured its
frames are compared with the cpu engine's: decoders convert to RGB in slightly different ways, so the mean
difference of a clip may be `tolerance` levels of 255; neighbouring frames differ by more.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
from contestants import CONTESTANTS, Contestant
from corpora import CORPORA, make_corpus
from harness import RESULTS, Row, print_machine, print_table, row, write_results
from numpy.typing import NDArray

if TYPE_CHECKING:
    from surgrec.loaders.clip_plan import ClipRequest
    from surgrec.loaders.packet_index import PacketIndex


@dataclass(frozen=True)
class Args:
    """What is measured."""

    corpora: tuple[str, ...] = ("480g250", "256g16")
    """Generated corpora: 480g250, 256g16, proxy16, 1080g250, mixed."""
    videos: tuple[Path, ...] = ()
    """Videos or folders of your own, measured as one more corpus called `videos`."""
    engines: tuple[str, ...] = tuple(CONTESTANTS)
    """Contestants."""
    cores: tuple[int, ...] = (1,)
    """Numbers of cores to measure with."""
    clips: int = 24
    """Clips that each core decodes in a run."""
    runs: int = 3
    """Measured runs, after one for warming up."""
    frames: int = 16
    """Frames in a clip."""
    stride: int | None = None
    """Distance between frames; by default what the corpus is for: 1 for proxies, else 4."""
    seed: int = 0
    """Seed of the clips."""
    tolerance: float = 3.0
    """Largest mean difference to the cpu engine's frames, in levels of 0..255."""
    cache: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / "surgrec-bench")
    """Where generated videos are kept."""
    out: Path = RESULTS
    """Folder of the JSON file."""
    save: bool = True
    """Write the JSON file."""


def main() -> int:
    args = tyro.cli(Args)
    unknown = [name for name in args.corpora if name not in CORPORA]
    unknown += [name for name in args.engines if name not in CONTESTANTS]
    if unknown:
        print(
            f"unknown: {unknown}; corpora are {list(CORPORA)}, engines {list(CONTESTANTS)}", file=sys.stderr
        )
        return 2
    print_machine()
    rows: list[Row] = []
    wrong: list[str] = []
    for name in (*args.corpora, *(("videos",) if args.videos else ())):
        videos = list(args.videos) if name == "videos" else make_corpus(name, args.cache)
        stride = args.stride or (CORPORA[name].stride if name in CORPORA else 4)
        index_path = index_of(name, videos, args.cache)
        for cores in args.cores:
            if cores > len(os.sched_getaffinity(0)):
                print(f"{name}: {cores} cores asked, {len(os.sched_getaffinity(0))} there", file=sys.stderr)
                return 2
            found, problems = measure(args, name, index_path, stride, cores)
            rows += found
            wrong += problems
    print_table(rows)
    for problem in wrong:
        print(f"LEFT OUT {problem}")
    if args.save and rows:
        print(f"written: {write_results(__file__, args, rows, args.out)}")
    return 1 if any(problem.startswith("cpu ") for problem in wrong) else 0


def index_of(name: str, videos: list[Path], cache: Path) -> Path:
    """The packet index of the videos, written by the project's own command."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{name}.h5"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "surgrec.index", *map(str, videos), "--out", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return path


def clip_requests(index: PacketIndex, count: int, frames: int, stride: int, seed: int) -> list[ClipRequest]:
    """Random clips: a video in proportion to its length, and a start, each uniform."""
    from surgrec.loaders.clip_plan import ClipRequest, ClipTooLong, clip_frames
    from surgrec.loaders.packet_index import OK

    generator = np.random.default_rng(seed)
    usable = index.videos.status == OK
    lengths = np.where(usable, index.videos.frame_count, 0).astype(float)
    if not lengths.any():
        raise RuntimeError(f"{index.path}: no video with random access to measure on")
    requests: list[ClipRequest] = []
    for _ in range(100 * count):
        if len(requests) == count:
            break
        video = int(generator.choice(len(lengths), p=lengths / lengths.sum()))
        end = int(index.videos.frame_count[video])
        try:
            chosen = clip_frames(index, video, 0, end, float(generator.random()), frames, stride)
        except ClipTooLong:
            continue
        requests.append(ClipRequest(len(requests), video, chosen))
    if len(requests) < count:
        raise RuntimeError(f"{index.path}: its videos are too short for {frames} frames at stride {stride}")
    return requests


def measure(
    args: Args, corpus: str, index_path: Path, stride: int, cores: int
) -> tuple[list[Row], list[str]]:
    """Rows of all contestants on one corpus, and what was left out and why."""
    from surgrec.loaders.packet_index import PacketIndex

    index = PacketIndex.open(index_path)
    requests = clip_requests(index, args.clips * cores, args.frames, stride, args.seed)
    checked = requests[:3]
    rows, problems = [], []
    expected: list[NDArray[np.uint8]] | None = None
    for name in sorted(args.engines, key=lambda name: name != "cpu"):  # the reference comes first
        contestant = CONTESTANTS[name]
        try:
            metadata.version(contestant.package)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} on {corpus}: absent, {contestant.package} is not installed")
            continue
        try:
            with Team(name, contestant, index_path, cores) as team:
                frames = team.frames(checked)
                if expected is None:
                    expected = frames if name == "cpu" else reference(index_path, checked)
                worst = difference(frames, expected)
                if worst > args.tolerance:
                    problems.append(f"{name} on {corpus}: other frames, mean difference {worst:.2f} levels")
                    continue
                runs = [team.run(requests) for _ in range(args.runs + 1)][1:]
        except RuntimeError as error:
            problems.append(f"{name} on {corpus}: {error}")
            continue
        speeds = [speed for speed, _ in runs]
        work = statistics.median(speed for _, speed in runs)
        extra = {"cores": cores, "clips_per_cpu_s": round(work, 3), "stride": stride}
        found = row(name, corpus, "clips_per_s", speeds, difference=round(worst, 3), **extra)
        rows.append(found)
        print(
            f"{corpus} {name}: {found.value:.2f} clips/s on {cores} core(s), "
            f"{found.value / cores:.2f} a core, {work:.2f} per second of CPU time, "
            f"same frames within {worst:.2f} levels ({contestant.about})",
            flush=True,
        )
    return rows, problems


def reference(index_path: Path, requests: list[ClipRequest]) -> list[NDArray[np.uint8]]:
    """The cpu engine's frames, where it is not among the contestants itself."""
    with Team("cpu", CONTESTANTS["cpu"], index_path, 1) as team:
        return team.frames(requests)


def difference(found: list[NDArray[np.uint8]], expected: list[NDArray[np.uint8]]) -> float:
    """Largest mean absolute difference of a frame, in levels; infinite where shapes differ."""
    worst = 0.0
    for clip, other in zip(found, expected, strict=True):
        if clip.shape != other.shape:
            return float("inf")
        for image, wanted in zip(clip, other, strict=True):
            worst = max(worst, float(np.abs(image.astype(np.int16) - wanted).mean()))
    return worst


class Team:
    """The processes of one contestant, pinned to its cores. Raises RuntimeError for what fails in them."""

    def __init__(self, name: str, contestant: Contestant, index_path: Path, cores: int) -> None:
        context = multiprocessing.get_context("spawn")
        allowed = sorted(os.sched_getaffinity(0))[-cores:]
        shares = [allowed] if contestant.threaded else [[core] for core in allowed]
        self._members: list[tuple[Any, Connection]] = []
        for share in shares:
            here, there = context.Pipe()
            process = context.Process(target=_member, args=(there, name, str(index_path), share), daemon=True)
            process.start()
            there.close()
            self._members.append((process, here))

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        for process, pipe in self._members:
            pipe.close()
            process.join(10)
            if process.is_alive():
                process.terminate()

    def frames(self, requests: list[ClipRequest]) -> list[NDArray[np.uint8]]:
        """The frames of some requests, from the first process; the others warm up on them."""
        for _, pipe in self._members:
            pipe.send((requests, True))
        answers = [self._answer(pipe) for _, pipe in self._members]
        return answers[0]

    def run(self, requests: list[ClipRequest]) -> tuple[float, float]:
        """Clips per second of wall time, and of CPU time, over all processes, each with its share."""
        count = len(self._members)
        start = time.perf_counter()
        for number, (_, pipe) in enumerate(self._members):
            pipe.send((requests[number::count], False))
        seconds = [self._answer(pipe) for _, pipe in self._members]
        return len(requests) / (time.perf_counter() - start), len(requests) / sum(seconds)

    def _answer(self, pipe: Connection) -> Any:
        try:
            found = pipe.recv()
        except EOFError as error:
            raise RuntimeError("its process died") from error
        if isinstance(found, str):
            raise RuntimeError(found)
        return found


def _member(pipe: Connection, name: str, index_path: str, cores: list[int]) -> None:
    """A process of a contestant: answers requests until the pipe closes."""
    os.sched_setaffinity(0, cores)
    from surgrec.loaders.packet_index import PacketIndex

    try:
        decode = CONTESTANTS[name].open(PacketIndex.open(index_path), len(cores))
    except Exception as error:
        pipe.send(f"cannot be set up: {error}"[:500])
        return
    while True:
        try:
            requests, give = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            if give:
                pipe.send(decode(requests))
                continue
            # A few at a time, as a loader does: all frames of a run would not fit into memory.
            step = 8 * len(cores)
            before = time.process_time()
            for at in range(0, len(requests), step):
                decode(requests[at : at + step])
            pipe.send(time.process_time() - before)
        except Exception as error:
            pipe.send(f"fails: {error}"[:500])


if __name__ == "__main__":
    sys.exit(main())
