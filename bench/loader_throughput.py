"""How many clips a second does each loader give, from the same requests, on the same machine?

    python bench/loader_throughput.py --corpora 480g250 256g16 --max-seconds 3

Every contestant decodes clips of one list of requests, each in processes of its own, pinned to the same
cores: threads where it has them, otherwise one process a core. Before it is measured its frames are compared
with FFmpeg's (bench/same_frames.py). Then it goes round in the list; a run is a stretch of that time, between
the ends of two batches, so that what a loader has under way counts at neither end. All processes start at
once and wait for their turn. A contestant that is absent, fails, dies or hangs is reported and disturbs no
other. Stacked proxies are given to this project's engines alone: others would return whole pictures.

Rows: clips_per_s of each contestant and corpus; on a GPU also `ceiling`, the frames per second of NVDEC when
it decodes the same files from end to end, with the clocks that the GPU had. `fed_per_s` of this project's
engines is what they gave to decoders, `fed_share_of_ceiling` its share of that. The parts of a mixed corpus
are measured one by one, too; `share_of_parts` is the speed on the mixture, as a share of what the parts'
speeds would give for the same requests. Interrupted, it writes what it has (exit status 130).
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from contestants import CONTESTANTS, contestant_of, is_ours, named
from gpu_clocks import gpu_clocks
from harness import RESULTS, Row, device, print_machine, print_table, row, write_results
from team import Failed, Team, Times, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from contestant import Contestant
    from surgrec.loaders.clip_plan import ClipRequest
    from surgrec.loaders.packet_index import PacketIndex

CEILING = "ceiling"
AT_KEY = "-key"
VARIANTS = ("cpu-keep", "torchcodec-exact", "torchcodec-ffmpeg")
"""Contestants that are slower than another of their kind: measured only where they are asked for."""


@dataclass(frozen=True)
class Args:
    """What is measured."""

    corpora: tuple[str, ...] = ("480g250", "256g16")
    """Generated corpora: 480g250, 480g250n, 256g16, proxy16, proxy16s4, proxy4s4, proxy8s8, 1080g250, mixed;
    with -key behind the name clips start at key frames only."""
    videos: tuple[Path, ...] = ()
    """Videos or folders of your own, measured as one more corpus called `videos`."""
    engines: tuple[str, ...] = tuple(name for name in CONTESTANTS if name not in VARIANTS)
    """Contestants; by default all but slower variants of another. nvdec-14 is nvdec with 14 sessions, and so
    on."""
    cores: tuple[int, ...] = ()
    """Numbers of cores to measure with; by default 1, and all of them where there is a GPU."""
    clips: int = 4096
    """Requests in the list that contestants go round in."""
    max_seconds: float = 15.0
    """Seconds that a contestant is measured for on a corpus, all runs together."""
    warmup: float = 1.0
    """Seconds for which a contestant runs before it is measured; at least one batch."""
    runs: int = 3
    """Measured runs; fewer where a contestant needs too long for them."""
    ceiling: tuple[int, ...] = (8, 16)
    """Numbers of NVDEC sessions to measure the sequential ceiling with, on a GPU; none leaves it out."""
    frames: int = 16
    """Frames in a clip."""
    stride: int | None = None
    """Distance between frames; by default what the corpus is for: 1 for proxies, else 4."""
    seed: int = 0
    """Seed of the clips."""
    tolerance: float = 3.0
    """Largest mean difference to FFmpeg's frames, but for the colour matrix, in levels of 0..255."""
    cache: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / "surgrec-bench")
    """Where generated videos are kept."""
    out: Path = RESULTS
    """Folder of the JSON file."""
    save: bool = True
    """Write the JSON file."""


@dataclass(frozen=True)
class Case:
    """A corpus with its requests. checked: those whose frames are compared; expected: the file of their
    frames.
    """

    corpus: str
    stride: int
    index: PacketIndex
    requests: list[ClipRequest]
    checked: list[ClipRequest]
    expected: Path


def main() -> int:
    import tyro
    from corpora import CORPORA, make_corpora

    args = tyro.cli(Args, prog="bench/loader_throughput.py", description=__doc__)
    bases = {name: name.removesuffix(AT_KEY) for name in args.corpora}
    unknown = [name for name, base in bases.items() if base not in CORPORA]
    unknown += [name for name in args.engines if contestant_of(name) is None]
    if unknown:
        print(
            f"unknown: {unknown}; corpora are {list(CORPORA)}, engines {list(CONTESTANTS)}", file=sys.stderr
        )
        return 2
    there = len(os.sched_getaffinity(0))
    gpu = has_gpu()
    numbers = args.cores or ((there if gpu else 1),)
    if max(numbers) > there or min(numbers) < 1:
        print(f"{max(numbers)} cores asked, {there} there", file=sys.stderr)
        return 2
    print_machine()
    made = make_corpora(sorted(set(bases.values())), args.cache)
    cases = [
        make_case(args, name, made[base], args.stride or CORPORA[base].stride) for name, base in bases.items()
    ]
    if args.videos:
        cases.append(make_case(args, "videos", list(args.videos), args.stride or 4))
    rows: list[Row] = []
    problems: list[str] = []
    stopped = False
    try:
        for cores in numbers:
            measure_all(args, cases, cores, gpu, rows, problems)
    except KeyboardInterrupt:
        stopped = True
        print("stopped: what is missing was not measured", file=sys.stderr)
    print_table(rows)
    for problem in problems:
        print(f"LEFT OUT {problem}")
    if args.save and rows:
        print(f"written: {write_results(__file__, args, rows, args.out)}")
    return 130 if stopped else int(any(problem.startswith("cpu ") for problem in problems))


def has_gpu() -> bool:
    """Whether an NVIDIA GPU answers, found without loading CUDA into this process."""
    from harness import cpu_name

    return device() != cpu_name()


def make_case(args: Args, corpus: str, videos: list[Path], stride: int) -> Case:
    """Indexes a corpus, draws its requests, and decodes those that all contestants are compared on."""
    from surgrec.loaders.packet_index import PacketIndex

    at_key = corpus.endswith(AT_KEY)
    index = PacketIndex.open(index_of(corpus.removesuffix(AT_KEY), videos, args.cache))
    requests = clip_requests(index, args.clips, args.frames, stride, args.seed, at_key)
    first_of = {request.video: request for request in reversed(requests)}
    checked = sorted(
        {request.sample: request for request in (*requests[:2], *first_of.values())}.values(),
        key=lambda request: request.sample,
    )[:8]
    expected = args.cache / f"{corpus}-{os.getpid()}.npz"
    write_expected(index, checked, expected)
    return Case(corpus, stride, index, requests, checked, expected)


def index_of(name: str, videos: list[Path], cache: Path, options: tuple[str, ...] = ()) -> Path:
    """The packet index of the videos, written by the project's own command."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{name}.h5"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "surgrec.index", *map(str, videos), "--out", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return path


def clip_requests(
    index: PacketIndex, count: int, frames: int, stride: int, seed: int, at_key: bool = False
) -> list[ClipRequest]:
    """Random clips: a video in proportion to its length, and a start, each uniform; at_key: of key frames."""
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
            chosen = clip_frames(
                index, video, 0, end, float(generator.random()), frames, stride, at_key=at_key
            )
        except ClipTooLong:
            continue
        requests.append(ClipRequest(len(requests), video, chosen))
    if len(requests) < count:
        raise RuntimeError(f"{index.path}: its videos are too short for {frames} frames at stride {stride}")
    return requests


def write_expected(index: PacketIndex, requests: Sequence[ClipRequest], path: Path) -> None:
    """FFmpeg's frames of some requests, as RGB arrays by their place, in an .npz file."""
    from surgrec.loaders.engines.base import DecodedClip
    from surgrec.loaders.engines.cpu import CpuEngine

    frames: dict[str, Any] = {}
    with CpuEngine(index, drop_disposable=False) as engine:
        for place, clip in enumerate(engine.decode(requests)):
            if not isinstance(clip, DecodedClip):
                raise RuntimeError(f"{clip.path}: {clip.reason}")
            frames[str(place)] = clip.frames
    np.savez(path, **frames)


def measure_all(
    args: Args, cases: list[Case], cores: int, gpu: bool, rows: list[Row], problems: list[str]
) -> None:
    """Appends the rows of all contestants on all corpora with a number of cores, and what was left out."""
    names = []
    for name in args.engines:
        problem = absent(name, gpu)
        if problem:
            problems.append(f"{name}: {problem}")
        else:
            names.append(name)
    teams = {name: Team(name, named(name), cores) for name in names}
    if gpu and args.ceiling and any(is_ours(name) and not name.startswith("cpu") for name in names):
        teams[CEILING] = Team(CEILING, named("nvdec"), cores)
    try:
        for case in cases:
            most = 0.0
            for name in sorted(teams, key=lambda name: name != CEILING):
                if name != CEILING and not is_ours(name) and (case.index.videos.stack > 1).any():
                    problems.append(
                        f"{name} on {case.corpus}: it gives pictures, not the frames stacked in them"
                    )
                    print(f"{case.corpus} {name}: left out, it gives pictures, not frames", flush=True)
                    continue
                if name == CEILING and unlike(case.index):
                    continue  # each kind has its own; share_of_parts says more
                if not teams[name].alive:  # it failed on another corpus
                    teams[name] = Team(name, named(name if name != CEILING else "nvdec"), cores)
                try:
                    if name == CEILING:
                        rows.append(measure_ceiling(args, case, teams[name], cores))
                        most = rows[-1].value
                    else:
                        rows += measure(args, case, name, teams[name], cores, most)
                except Failed as error:
                    problems.append(f"{name} on {case.corpus}: {error}")
                    print(f"{case.corpus} {name}: left out, {error}", flush=True)
    finally:
        for team in teams.values():
            team.end()
        for case in cases:
            case.expected.unlink(missing_ok=True)


def absent(name: str, gpu: bool) -> str:
    """Why a contestant cannot be measured here at all; empty where it can."""
    contestant = named(name)
    if not installed(contestant):
        return f"absent, {contestant.package} is not installed"
    return "absent, it needs an NVIDIA GPU" if contestant.gpu and not gpu else ""


def installed(contestant: Contestant) -> bool:
    """Whether its distribution is known to the installer, or its modules are found without one."""
    try:
        metadata.version(contestant.package)
    except metadata.PackageNotFoundError:
        names = [part for part in contestant.modules if part != "torch"]
        return bool(names) and all(found(name) for name in names)
    return True


def found(module: str) -> bool:
    """Whether a module could be imported. Imports the packages above it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def measure_ceiling(args: Args, case: Case, team: Team, cores: int) -> Row:
    """The sequential decode of the corpus's files, with the number of sessions that is fastest."""
    team.open(case.index.path)
    seconds = min(2.0, args.max_seconds)
    with gpu_clocks() as clocks:
        rates = {sessions: team.ceiling(sessions, seconds) for sessions in args.ceiling}
    best = max(rates, key=lambda sessions: rates[sessions])
    team.close()
    print(f"{case.corpus} ceiling: {rates[best]:.0f} frames/s, {best} sessions", flush=True)
    return row(CEILING, case.corpus, "frames_per_s", [rates[best]], cores=cores, sessions=best, **clocks)


def measure(args: Args, case: Case, name: str, team: Team, cores: int, ceiling: float) -> list[Row]:
    """The row of one contestant on one corpus; for ours on several videos of unlike kinds, their rows too."""
    contestant = named(name)
    team.open(case.index.path)
    worst, but_colour = team.check(case.checked, case.expected)
    if min(worst, but_colour) > args.tolerance:
        team.close()
        raise Failed(f"other frames, mean difference {worst:.2f} levels ({but_colour:.2f} but for colour)")
    times = Times(args.warmup, args.max_seconds / args.runs, args.runs, args.max_seconds)
    extra: dict[str, Any] = {"cores": cores, "stride": case.stride, "about": contestant.about}
    extra |= {"difference": round(worst, 3), "difference_but_colour": round(but_colour, 3)}
    windows = team.run(case.requests, times)
    found = row(name, case.corpus, "clips_per_s", speeds(windows), **extra | work(windows))
    if ceiling and found.extra["fed_per_s"]:
        found.extra["fed_share_of_ceiling"] = round(found.extra["fed_per_s"] / ceiling, 3)
    rows = [found]
    if is_ours(name) and unlike(case.index):
        parts = measure_parts(args, case, name, team)
        rows += parts
        expected = by_parts(case.requests, {int(part.extra["video"]): part.value for part in parts})
        found.extra["share_of_parts"] = round(found.value / expected, 3)
    team.close()
    colour = "" if worst <= args.tolerance else f", another colour matrix ({worst:.1f} levels off)"
    print(
        f"{case.corpus} {name}: {found.value:.2f} clips/s on {cores} core(s), "
        f"{found.extra['clips_per_cpu_s']:.2f} per second of CPU time, same frames within "
        f"{min(worst, but_colour):.2f} levels{colour} ({contestant.about})",
        flush=True,
    )
    return rows


def measure_parts(args: Args, case: Case, name: str, team: Team) -> list[Row]:
    """A contestant's rows on each video of a corpus alone, from the same requests."""
    seconds = args.max_seconds / 3
    rows = []
    for video in sorted({request.video for request in case.requests}):
        own = [request for request in case.requests if request.video == video]
        windows = team.run(own, Times(min(args.warmup, 0.5), seconds, 1, seconds))
        info = case.index.video(video)
        kind = f"{info.width}x{info.height}-{info.codec}-{info.bit_depth}bit"
        rows.append(row(name, f"{case.corpus}/{kind}", "clips_per_s", speeds(windows), video=video))
    return rows


def unlike(index: PacketIndex) -> bool:
    """Whether the videos of a corpus are of several kinds."""
    table = index.videos
    return len({*zip(table.codec, table.coded_width, table.coded_height, table.bit_depth, strict=True)}) > 1


def by_parts(requests: Sequence[ClipRequest], rates: dict[int, float]) -> float:
    """Clips per second if each request takes as long as among its own kind: n / sum of 1 / rate."""
    return len(requests) / sum(1 / rates[request.video] for request in requests)


def speeds(windows: Sequence[Sequence[Window]]) -> list[float]:
    """Clips per second of each run, the sum over the processes; of runs that all of them did."""
    return [sum(one.clips / one.seconds for one in run) for run in zip(*windows, strict=False)]


def work(windows: Sequence[Sequence[Window]]) -> dict[str, float]:
    """What the clips cost: clips per second of CPU time, and frames fed to decoders per second."""
    each = [one for member in windows for one in member]
    clips, cpu = sum(one.clips for one in each), sum(one.cpu_seconds for one in each)
    fed = statistics.median(sum(one.fed / one.seconds for one in run) for run in zip(*windows, strict=False))
    return {
        "clips": clips,
        "clips_per_cpu_s": round(clips / max(cpu, 1e-9), 3),
        "fed_per_s": round(fed, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
