"""Does the loader run for ever? Memory and speed over many clips in one process, and how soon it starts.

    python bench/loader_soak.py --clips 200000 --seconds 240

A fresh process, with no more than 1,024 files open, starts a ClipLoader on an index of 10,000 files (names of
a few hundred real ones), or on a corpus of loader_throughput.py, and takes batch after batch. Another one
before it takes a single batch: the very first on a machine compiles what Numba and Triton keep on disk. Rows:
seconds from the start of either process to its first batch, clips per second over time, the host's memory
(anonymous pages: what a leak would show in; pages of the mapped index come and go), and the device's, beyond
the CUDA context, and of that what decoder sessions hold. Growth compares the median of the last tenth of the
run with that of the tenth after the warm-up. That is the first quarter, or longer while the pool of sessions
grows, which is bounded, but at most 70 % of the run: what grows for longer is told.

Exit status 1 where memory grows by more than --max-growth percent, or the loader takes more than --max-gib of
the device's memory, or fails.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

from harness import RESULTS, Row, print_machine, print_table, row, write_results
from loader_throughput import has_gpu, index_of

Sample = tuple[float, int, float, float, float]
"""Seconds since the first batch, clips, GiB of the host's memory, of the device's, of sessions on it."""
WARM_UP: Final = (0.25, 0.7)
"""Shares of the run: the shortest and the longest warm-up."""


@dataclass(frozen=True)
class Args:
    """What is run, and what is too much."""

    clips: int = 200_000
    """Clips to take."""
    seconds: float = 0.0
    """Stop after this long, counted from the first batch; 0 takes all clips."""
    engine: Literal["auto", "cpu", "nvdec", "dali", "hybrid"] = "auto"
    """Engine of the loader."""
    crop: Literal["auto", "fused", "dali"] = "auto"
    """How its clips are cropped."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the batches are wanted; auto is the GPU where there is one."""
    files: int = 10_000
    """Names in the index."""
    copies: int = 200
    """Real files behind them."""
    corpus: str = ""
    """A corpus of loader_throughput.py to take clips from instead: 480g250, 1080g250, mixed ..."""
    batch: int = 64
    """Clips in a batch."""
    frames: int = 16
    """Frames in a clip."""
    stride: int = 4
    """Distance between frames."""
    size: int = 224
    """Height and width of a clip."""
    open_files: int = 1024
    """Limit of open files in the process (ulimit -n)."""
    interval: float = 1.0
    """Seconds between two looks at memory."""
    max_growth: float = 1.0
    """Percent of growth after warm-up that is too much."""
    max_gib: float = 4.0
    """GiB of the device's memory that are too much."""
    seed: int = 0
    """Seed of the loader."""
    cache: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / "surgrec-bench")
    """Where generated videos are kept."""
    out: Path = RESULTS
    """Folder of the JSON file."""
    save: bool = True
    """Write the JSON file."""


def main() -> int:
    import tyro
    from corpora import CORPORA

    args = tyro.cli(Args, prog="bench/loader_soak.py", description=__doc__)
    if args.corpus and args.corpus not in CORPORA:
        print(f"unknown corpus {args.corpus!r}; there are {', '.join(CORPORA)}", file=sys.stderr)
        return 2
    print_machine()
    device = ("cuda" if has_gpu() else "cpu") if args.device == "auto" else args.device
    index_path = make_index(args)
    starts: list[float] = []
    samples: list[Sample] = []
    for run in (replace(args, clips=args.batch), args):
        found = soak(run, index_path, device)
        if isinstance(found, str):
            print(f"FAILED {found}", file=sys.stderr)
            return 1
        starts.append(found[0])
        samples = found[1]
    stopped = not args.seconds and samples[-1][1] < args.clips
    if stopped:
        print(f"stopped after {samples[-1][1]} of {args.clips} clips", file=sys.stderr)
    rows, problems = judge(args, device, starts, samples)
    print_table(rows)
    for problem in problems:
        print(f"TOO MUCH {problem}")
    if args.save:
        print(f"written: {write_results(__file__, args, rows, args.out)}")
    return 130 if stopped else int(bool(problems))


def make_index(args: Args) -> Path:
    """An index of the corpus, or of `files` names, hard links to `copies` real files of a few kinds."""
    from corpora import VideoSpec, make_corpora, write_video

    if args.corpus:
        videos = make_corpora([args.corpus], args.cache)[args.corpus]
        return index_of(f"soak-{args.corpus}", videos, args.cache)
    folder = args.cache / f"soak-{args.files}-{args.copies}"
    done = folder / "made"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "videos").mkdir(parents=True)
        quiet = (("preset", "superfast"), ("x265-params", "log-level=none:open-gop=0"))
        kinds = [VideoSpec(340, 256, 16, 96, 1, seed=seed) for seed in range(3)]
        kinds += [VideoSpec(448, 256, 32, 96, 1, "libx265", options=quiet)]
        kinds = kinds[: args.copies]
        for number, spec in enumerate(kinds):
            write_video(spec, folder / f"kind{number}.mp4")
        for number in range(args.files):
            path = folder / "videos" / f"{number:05d}.mp4"
            if number < args.copies:
                shutil.copyfile(folder / f"kind{number % len(kinds)}.mp4", path)
            else:
                os.link(folder / "videos" / f"{number % args.copies:05d}.mp4", path)
        done.touch()
    path = args.cache / f"soak-{args.files}-{args.copies}.h5"
    return path if path.exists() else index_of(path.stem, [folder / "videos"], args.cache)


def soak(args: Args, index_path: Path, device: str) -> tuple[float, list[Sample]] | str:
    """Runs the loader in a fresh process: (seconds to the first batch, samples), or why it failed.

    Ctrl-C ends it early, with the samples that there are.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_soak, args=(there, args, index_path, device, time.time()), daemon=True)
    process.start()
    there.close()
    first = -1.0
    samples: list[Sample] = []
    try:
        while True:
            if not here.poll(300):
                process.kill()
                return f"no batch for 300 s after {samples[-1][1] if samples else 0} clips"
            try:
                message = here.recv()
            except EOFError:
                process.join()
                return f"the process died, exit code {process.exitcode}"
            if isinstance(message, str):
                process.join(10)
                return message
            if message is None:
                process.join(60)
                if process.is_alive():
                    process.kill()
                    return "the process does not end after the loader was closed"
                return first, samples
            if isinstance(message, float):
                first = message
                print(f"first batch after {first:.1f} s", flush=True)
            else:
                samples.append(message)
                if len(samples) % 20 == 1:
                    tell(message)
    except KeyboardInterrupt:
        process.kill()
        if not samples:
            raise
        return first, samples


def tell(sample: Sample) -> None:
    """Prints how far the loader is and what it holds."""
    seconds, clips, host, gpu, sessions = sample
    print(
        f"{seconds:6.0f} s {clips:8d} clips, host {host:.3f} GiB, device {gpu:.3f} GiB"
        f" ({sessions:.3f} of sessions)",
        flush=True,
    )


def _soak(pipe: Connection, args: Args, index_path: Path, device: str, start: float) -> None:
    """The process: sends the seconds to the first batch, a Sample every interval, None at the end."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(args.open_files, hard), hard))
    import torch
    from surgrec.configs.data import DataConfig
    from surgrec.loaders.clip_loader import ClipLoader
    from surgrec.loaders.engines.select import make_engine
    from surgrec.loaders.packet_index import PacketIndex

    def device_used() -> float:
        if device == "cpu":
            return 0.0
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30

    try:
        base = device_used()  # the context
        data = DataConfig(
            index=index_path,
            frames=args.frames,
            stride=args.stride,
            size=args.size,
            engine=args.engine,
            crop=args.crop,
        )
        index = PacketIndex.open(index_path)
        engine = make_engine(index, data, 0, torch.device(device))

        def sample(now: float) -> Sample:
            sessions = getattr(engine, "held_bytes", 0) / 2**30
            return now - begin, clips, host_gib(), device_used() - base, sessions

        with ClipLoader(index, data, args.seed, args.batch, device=device, engine=engine) as loader:
            clips, begin, last = 0, 0.0, 0.0
            while clips < args.clips:
                batch = next(loader)
                if device != "cpu":
                    torch.cuda.current_stream().synchronize()
                now = time.time()
                clips += len(batch.samples)
                del batch
                if not begin:
                    begin = now
                    pipe.send(float(now - start))
                elif now - last < args.interval:
                    continue
                last = now
                pipe.send(sample(now))
                if args.seconds and now - begin >= args.seconds:
                    break
            pipe.send(sample(time.time()))
        pipe.send(None)
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}"[:2000])


def host_gib() -> float:
    """Memory of this process that is not a file's: anonymous and shared pages."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 2**20


def judge(args: Args, device: str, starts: list[float], samples: list[Sample]) -> tuple[list[Row], list[str]]:
    """The rows of a run, and what was too much. starts: seconds to the first batch of both processes."""
    seconds = [sample[0] for sample in samples]
    speeds = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for earlier, later in itertools.pairwise(samples)
        if later[0] > earlier[0]
    ] or [0.0]
    corpus = args.corpus or f"{args.files} files"
    extra: dict[str, Any] = {"clips": samples[-1][1], "seconds": round(seconds[-1], 1), "device": device}
    every = max(1, len(samples) // 200)
    over_time = [[round(value, 4) for value in sample] for sample in samples[::every]]
    rows = [
        row(args.engine, corpus, "first_start_s", starts[:1]),
        row(args.engine, corpus, "first_batch_s", starts[1:]),
        row(args.engine, corpus, "clips_per_s", speeds, **extra, samples=over_time),
    ]
    problems = []
    sessions = [sample[4] for sample in samples]
    if any(sessions):
        rows.append(row(args.engine, corpus, "session_gib", sessions))
    warm = warm_up(seconds, sessions)
    for column, name in ((2, "host"), (3, "device")):
        if name == "device" and device == "cpu":
            continue
        values = [sample[column] for sample in samples]
        grown = growth(seconds, values, warm)
        rows.append(row(args.engine, corpus, f"{name}_gib", values))
        rows.append(row(args.engine, corpus, f"{name}_growth_percent", [grown]))
        if grown > args.max_growth:
            problems.append(f"{name} memory grew by {grown:.2f} % after warm-up, {args.max_growth} % allowed")
        if name == "device" and max(values) > args.max_gib:
            problems.append(f"the loader took {max(values):.2f} GiB of the device, {args.max_gib} allowed")
    return rows, problems


def warm_up(seconds: list[float], sessions: list[float]) -> float:
    """Its share of the run: until sessions hold no more than before, within WARM_UP."""
    top, last = 0.0, 0.0
    for at, held in zip(seconds, sessions, strict=True):
        if held > top:
            top, last = held, at
    return min(max(WARM_UP[0], last / seconds[-1] if seconds[-1] else 0.0), WARM_UP[1])


def growth(seconds: list[float], values: list[float], warm: float) -> float:
    """Percent by which the last tenth's median lies above that of the tenth after the warm-up, a share of the
    run."""
    end = seconds[-1]
    early = [
        value for at, value in zip(seconds, values, strict=True) if warm * end <= at <= (warm + 0.1) * end
    ]
    late = [value for at, value in zip(seconds, values, strict=True) if at >= 0.9 * end]
    if not early or not late:
        return 0.0
    before = statistics.median(early)
    return 100 * (statistics.median(late) - before) / before if before else 0.0


if __name__ == "__main__":
    sys.exit(main())
