"""Does an engine refuse damaged video where FFmpeg does? Clips of randomly mutated files, decoded twice.

    python bench/mutated_files.py --engine nvdec --clips 10000 --damage after

Small videos of several codecs are damaged packet by packet, in place and by seed: flipped bits, runs of zeros
or noise, a lost end, packets swapped. That happens after they are indexed (a disk or a copy that went bad),
before (they came damaged), or before with an index that was made with --verify. Every clip is decoded by the
engine, and by FFmpeg, which knows nothing of the index's checksums and takes no error for a picture.
Outcomes, by codec:

    both_refuse                            an error here and there
    equal                                  two clips with equal frames
    engine_refuses                         FFmpeg decodes it: the engine knows of damage that FFmpeg overlooks
    accepts_where_ffmpeg_reports_an_error  must be 0
    different                              two clips with unlike frames; must be 0 where each damaged packet
                                           is known (after) and where the engine is FFmpeg, too (cpu)
    unledgered                             a refused clip that the ledger does not hold: must be 0

Decoding happens in a child process: one that crashes, or gives no answer for --hang seconds, is counted with
the clips that it was at, and replaced. At last a ClipLoader draws from the same files: every clip that it
refuses must be in its ledger, and every row that holds a substitute must have one there. Exit status 1 for a
crash, a hang, or anything that must be 0.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from harness import RESULTS, Row, print_machine, print_table, row, write_results
from loader_throughput import clip_requests, has_gpu, index_of

if TYPE_CHECKING:
    from surgrec.loaders.clip_plan import ClipRequest
    from surgrec.loaders.engines.cpu import CpuWorker
    from surgrec.loaders.engines.threads import WorkerThreads
    from surgrec.loaders.packet_index import PacketIndex

OUTCOMES: Final = (
    "both_refuse",
    "equal",
    "engine_refuses",
    "accepts_where_ffmpeg_reports_an_error",
    "different",
    "unledgered",
)
START_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Args:
    """What is damaged and decoded."""

    engine: Literal["cpu", "nvdec", "dali", "hybrid"] = "cpu"
    """Engine that is tested."""
    damage: Literal["after", "before", "verified"] = "after"
    """When the files are damaged: after they are indexed, before, or before with surgrec.index --verify."""
    clips: int = 10_000
    """Clips to decode."""
    seconds: float = 0.0
    """Stop after this long; 0 decodes all clips."""
    kinds: tuple[str, ...] = (
        "h264",
        "h264-baseline",
        "h264-open",
        "hevc",
        "hevc-10bit",
        "vp9",
        "av1",
        "mpeg4",
    )
    """Kinds of video (bench/mutations.py)."""
    clips_per_file: int = 20
    """Clips that are drawn from each damaged file."""
    frames: int = 8
    """Frames in a clip."""
    stride: int = 2
    """Distance between frames."""
    batch: int = 64
    """Clips under way at a time."""
    hang: float = 90.0
    """Seconds without an answer that count as a hang."""
    loader_batches: int = 16
    """Batches that a ClipLoader draws at last; 0 draws none."""
    seed: int = 0
    """Seed of the damage and of the clips."""
    cache: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / "surgrec-bench")
    """Where the videos are written."""
    out: Path = RESULTS
    """Folder of the JSON file."""
    save: bool = True
    """Write the JSON file."""


@dataclass(frozen=True)
class Outcome:
    """What became of one clip. engine, ffmpeg: why each refused it, empty where it did not."""

    sample: int
    video: int
    name: str
    engine: str = ""
    ffmpeg: str = ""


@dataclass(frozen=True)
class Files:
    """Damaged videos. index: what the engine knows of them. plain: an index without FFmpeg's verdict on them.
    damage: what was done to each, by video.
    """

    index: Path
    plain: Path
    damage: dict[int, str]


@dataclass(frozen=True)
class Death:
    """A child that crashed or hung, and the first of the clips that it was at."""

    what: str
    first: int


def main() -> int:
    import tyro

    args = tyro.cli(Args, prog="bench/mutated_files.py", description=__doc__)
    print_machine()
    device = "cuda" if has_gpu() else "cpu"
    from surgrec.loaders.packet_index import PacketIndex

    files = make_files(args)
    index = PacketIndex.open(files.index)
    requests = clip_requests(index, args.clips, args.frames, args.stride, args.seed)
    ledger = files.index.with_suffix(".jsonl")
    ledger.unlink(missing_ok=True)
    outcomes, deaths = decode_all(args, files, requests, ledger, device)
    counts = count(outcomes, ledger, index)
    problems = [f"{death.what} at clip {death.first}" for death in deaths]
    if args.loader_batches:
        problems += through_loader(args, files.index, device)
    rows = make_rows(args, counts, deaths, problems, len(outcomes), len(requests))
    print_table(rows)
    show(outcomes, files.damage, index)
    total: Counter[str] = sum(counts.values(), Counter())
    problems += [f"{total[name]} clips: {name}" for name in must_be_zero(args) if total[name]]
    for problem in problems:
        print(f"WRONG {problem}")
    if args.save:
        print(f"written: {write_results(__file__, args, rows, args.out)}")
    return 1 if problems else 0


def must_be_zero(args: Args) -> list[str]:
    """Outcomes of which there may be none."""
    same_frames = args.damage == "after" or args.engine == "cpu"
    return ["accepts_where_ffmpeg_reports_an_error", "unledgered"] + ["different"] * same_frames


def make_files(args: Args) -> Files:
    """Copies of clean videos, damaged, and their indexes."""
    from mutations import make_kinds, mutate
    from surgrec.loaders.packet_index import PacketIndex

    name = f"mutated-{args.engine}-{args.damage}"
    folder = args.cache / name
    shutil.rmtree(folder, ignore_errors=True)
    clean = make_kinds(args.kinds, folder / "clean")
    each = -(-args.clips // (args.clips_per_file * len(args.kinds)))
    for kind, path in clean.items():
        (folder / "files" / kind).mkdir(parents=True)
        for number in range(each):
            shutil.copyfile(path, folder / "files" / kind / f"{number:04d}{path.suffix}")
    videos = [folder / "files"]
    plain = index_of(name, videos, args.cache)
    before = PacketIndex.open(plain)
    damage = {video: mutate(before, video, args.seed) for video in range(len(before))}
    if args.damage == "after":
        return Files(plain, plain, damage)
    plain = index_of(name, videos, args.cache)
    if args.damage == "before":
        return Files(plain, plain, damage)
    return Files(index_of(f"{name}-index", videos, args.cache, ("--verify",)), plain, damage)


def decode_all(
    args: Args, files: Files, requests: list[ClipRequest], ledger: Path, device: str
) -> tuple[list[Outcome], list[Death]]:
    """The outcomes of all clips that time allows, by a child that is replaced when it dies or hangs."""
    context = multiprocessing.get_context("spawn")
    outcomes: list[Outcome] = []
    deaths: list[Death] = []
    until = time.monotonic() + (args.seconds or float("inf"))
    first = 0
    while first < len(requests) and time.monotonic() < until and len(deaths) < 20:
        here, there = context.Pipe()
        child = context.Process(
            target=_child, args=(there, args, files, requests, first, ledger, device), daemon=True
        )
        child.start()
        there.close()
        patience = START_SECONDS
        while first < len(requests) and time.monotonic() < until:
            try:
                if not here.poll(patience):
                    child.kill()
                    deaths.append(Death(f"no answer for {patience:.0f} s", first))
                    first += args.batch
                    break
                found = here.recv()
            except (EOFError, OSError):
                child.join(10)
                deaths.append(Death(f"crash, exit code {child.exitcode}", first))
                first += args.batch
                break
            if isinstance(found, str):  # a bug, not bad data
                child.kill()
                raise RuntimeError(found)
            patience = args.hang
            outcomes += found
            first += len(found)
            here.send(True)
        here.close()
        child.join(10)
        if child.is_alive():
            child.kill()
            child.join()
    return outcomes, deaths


def _child(
    pipe: Connection,
    args: Args,
    files: Files,
    requests: list[ClipRequest],
    first: int,
    ledger_path: Path,
    device: str,
) -> None:
    """Decodes batch after batch from request `first` on, and sends their outcomes; each is answered."""
    faulthandler.enable()
    try:
        import torch
        from surgrec.configs.data import DataConfig
        from surgrec.loaders.engines.base import ClipFailure
        from surgrec.loaders.engines.select import make_engine
        from surgrec.loaders.ledger import Ledger
        from surgrec.loaders.packet_index import PacketIndex

        engine = make_engine(
            PacketIndex.open(files.index), DataConfig(engine=args.engine), 0, torch.device(device)
        )
        ffmpeg = make_reference(PacketIndex.open(files.plain), device)
        with Ledger(ledger_path) as ledger:
            for at in range(first, len(requests), args.batch):
                batch = requests[at : at + args.batch]
                futures = [(engine.submit(request), ffmpeg.submit(request)) for request in batch]
                outcomes = []
                for request, (tested, reference) in zip(batch, futures, strict=True):
                    found, wanted = tested.result(), reference.result()
                    if isinstance(found, ClipFailure):
                        ledger.record(found)
                    outcomes.append(compare(request, found, wanted))
                del futures
                pipe.send(outcomes)
                pipe.recv()
        engine.close()
        ffmpeg.close()
    except (EOFError, OSError):  # time is up
        return
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")


def make_reference(index: PacketIndex, device: str) -> WorkerThreads[CpuWorker, ClipRequest, Any]:
    """FFmpeg, which decodes what it finds: to RGB arrays, or to PlaneArrays where the engine gives planes."""
    from surgrec.loaders.engines.clip_reader import ClipReader
    from surgrec.loaders.engines.cpu import CpuWorker, count_threads
    from surgrec.loaders.engines.pixels import PlaneWriter, RgbWriter
    from surgrec.loaders.engines.threads import WorkerThreads
    from surgrec.loaders.file_cache import FileCache

    reader = ClipReader(index, FileCache(512), check=False)

    def make() -> CpuWorker:
        planes = PlaneWriter(lambda layouts: [np.empty(shape, kind) for shape, kind in layouts])
        return CpuWorker(reader, RgbWriter() if device == "cpu" else planes, "ffmpeg")

    return WorkerThreads(count_threads(0), "ffmpeg", make, CpuWorker.run)


def compare(request: ClipRequest, found: Any, wanted: Any) -> Outcome:
    """The outcome of a clip that the engine and FFmpeg decoded or refused."""
    refused = getattr(found, "reason", ""), getattr(wanted, "reason", "")
    if all(refused):
        name = "both_refuse"
    elif refused[0]:
        name = "engine_refuses"
    elif refused[1]:
        name = "accepts_where_ffmpeg_reports_an_error"
    else:
        name = "equal" if same(found.frames, wanted.frames) else "different"
    return Outcome(request.sample, request.video, name, *refused)


def same(found: Any, wanted: Any) -> bool:
    """Whether two clips, arrays or Planes and PlaneArrays, have equal RGB frames."""
    if isinstance(found, np.ndarray) and isinstance(wanted, np.ndarray):
        return np.array_equal(found, wanted)
    import torch
    from surgrec.kernels.nv12_crop import to_rgb
    from surgrec.kernels.planes import Planes

    arrays = [torch.from_numpy(array).to(found.device) for array in wanted.arrays]
    first, second, third = arrays[0].unbind(3) if len(arrays) == 1 else arrays
    reference = Planes((first, second, third), wanted.rows, wanted.colour, wanted.rotation)
    one, other = to_rgb(found), to_rgb(reference)
    return one.shape == other.shape and bool(torch.equal(one, other))


def count(outcomes: list[Outcome], ledger: Path, index: PacketIndex) -> dict[str, Counter[str]]:
    """Outcomes by kind of video; refused clips that are not in the ledger count as unledgered, too."""
    from surgrec.loaders.ledger import read_ledger

    held = {entry.sample for entry in read_ledger(ledger)} if ledger.exists() else set()
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        kind = Path(index.videos.path[outcome.video]).parent.name
        counter = counts.setdefault(kind, Counter())
        counter[outcome.name] += 1
        if outcome.engine and outcome.sample not in held:
            counter["unledgered"] += 1
    return counts


def through_loader(args: Args, index_path: Path, device: str) -> list[str]:
    """Draws batches from the damaged files: every substitute must stand for a clip in the ledger."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    ledger = index_path.with_suffix(".loader.jsonl")
    ledger.unlink(missing_ok=True)
    child = context.Process(target=_loader, args=(there, args, index_path, ledger, device), daemon=True)
    child.start()
    there.close()
    try:
        if not here.poll(START_SECONDS + args.hang):
            return ["the loader hangs"]
        problem = here.recv()
    except EOFError:
        child.join(10)
        return [f"the loader's process crashed, exit code {child.exitcode}"]
    finally:
        child.kill()
        child.join()
    return [problem] if problem else []


def _loader(pipe: Connection, args: Args, index_path: Path, ledger_path: Path, device: str) -> None:
    """Sends what is wrong with the loader's account of its substitutes; empty where nothing is."""
    faulthandler.enable()
    try:
        from surgrec.configs.data import DataConfig
        from surgrec.loaders.clip_loader import ClipLoader
        from surgrec.loaders.ledger import REFUSED, Ledger, read_ledger
        from surgrec.loaders.packet_index import PacketIndex

        data = DataConfig(
            index=index_path,
            frames=args.frames,
            stride=args.stride,
            size=64,
            engine=args.engine,
            max_failures=1.0,
        )
        substitutes = 0
        with (
            Ledger(ledger_path) as ledger,
            ClipLoader(
                PacketIndex.open(index_path),
                data,
                args.seed,
                global_batch=args.batch,
                device=device,
                ledger=ledger,
            ) as loader,
        ):
            for _ in range(args.loader_batches):
                substitutes += next(loader).substitutes
        # Closed by now: clips that were decoded ahead are in it, too.
        held = [entry for entry in read_ledger(ledger_path) if entry.sample != REFUSED]
        account = (
            f"{substitutes} rows with substitutes, {loader.failures} clips refused, {len(held)} in its ledger"
        )
        print(f"loader: {account}", flush=True)
        right = loader.failures == len(held) and substitutes <= len({entry.sample for entry in held})
        pipe.send("" if right else f"the loader's account is wrong: {account}")
    except BaseException as error:
        pipe.send(f"the loader fails: {type(error).__name__}: {error}")


def make_rows(
    args: Args,
    counts: dict[str, Counter[str]],
    deaths: list[Death],
    problems: list[str],
    decoded: int,
    asked: int,
) -> list[Row]:
    """A row for each outcome and kind that occurred, their totals, crashes and hangs."""
    rows = [
        row(args.engine, kind, name, [counts[kind][name]], damage=args.damage)
        for kind in sorted(counts)
        for name in OUTCOMES
        if counts[kind][name]
    ]
    total: Counter[str] = sum(counts.values(), Counter())
    rows += [row(args.engine, "all", name, [total[name]]) for name in OUTCOMES]
    hangs = sum(death.what.startswith("no answer") for death in deaths)
    rows.append(row(args.engine, "all", "hangs", [hangs]))
    rows.append(row(args.engine, "all", "crashes", [len(deaths) - hangs]))
    rows.append(row(args.engine, "all", "clips", [decoded], asked=asked, problems=problems[:20]))
    return rows


def show(outcomes: list[Outcome], damage: dict[int, str], index: PacketIndex) -> None:
    """A few clips of each outcome that someone should look at."""
    for name in ("accepts_where_ffmpeg_reports_an_error", "engine_refuses", "different"):
        for outcome in [outcome for outcome in outcomes if outcome.name == name][:5]:
            path = Path(index.videos.path[outcome.video])
            reason = outcome.engine or outcome.ffmpeg
            print(
                f"{name}: sample {outcome.sample}, {path.parent.name}/{path.name} ({damage[outcome.video]})"
            )
            if reason:
                print(f"    {reason}")


if __name__ == "__main__":
    sys.exit(main())
