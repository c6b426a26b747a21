"""The processes of one contestant: started early, measured when it is their turn, killed when they hang.

A process answers ("open", index file, cores), ("check", requests, file of frames), ("run", requests, times),
("ceiling", sessions, seconds), ("memory",) and ("close",); an answer that is a str is why it failed.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

if TYPE_CHECKING:
    from contestant import Contestant, Stream
    from surgrec.loaders.clip_plan import ClipRequest

SETUP_SECONDS = 60.0
"""What a contestant may take to import, to open a corpus, and for each check."""


class Failed(RuntimeError):  # noqa: N818 - named for what happened
    """A contestant's process failed, died or hung; the message says which."""


@dataclass(frozen=True)
class Window:
    """What one process did in one stretch of time. fed: frames given to the decoder, where it tells, with all
    those in a stacked picture."""

    clips: int
    seconds: float
    cpu_seconds: float
    fed: int = 0


@dataclass(frozen=True)
class Times:
    """Seconds to warm up and of a window, and when to stop: after `runs` windows or `limit` seconds."""

    warmup: float
    window: float
    runs: int
    limit: float


class Team:
    """The processes of one contestant, each pinned to its cores. All methods raise Failed, and then it is
    over.
    """

    def __init__(self, name: str, contestant: Contestant, cores: int) -> None:
        context = multiprocessing.get_context("spawn")
        allowed = sorted(os.sched_getaffinity(0))[-cores:]
        shares = [allowed] if contestant.threaded else [[core] for core in allowed]
        self.alive = True
        self._members: list[tuple[Any, Connection]] = []
        for share in shares:
            here, there = context.Pipe()
            process = context.Process(target=_member, args=(there, name, share), daemon=True)
            process.start()
            there.close()
            self._members.append((process, here))

    def open(self, index_path: Path) -> None:
        """Makes the contestant ready for a corpus, in all processes."""
        self._ask([("open", str(index_path))] * len(self._members), SETUP_SECONDS)

    def check(self, requests: Sequence[ClipRequest], expected: Path) -> tuple[float, float]:
        """Compares the frames of some requests: (difference, difference but for colour), the largest of each.

        expected: .npz with an array for each request, by its place. The other processes warm up on one.
        """
        first = ("check", list(requests), str(expected))
        others = ("check", list(requests[:1]), str(expected))
        found = self._ask([first] + [others] * (len(self._members) - 1), SETUP_SECONDS)
        return float(found[0][0]), float(found[0][1])

    def run(self, requests: Sequence[ClipRequest], times: Times) -> list[list[Window]]:
        """The windows of each process, which goes round in its share of the requests."""
        count = len(self._members)
        shares = [list(requests[number::count] or requests) for number in range(count)]
        messages = [("run", share, times) for share in shares]
        return self._ask(messages, SETUP_SECONDS + 2 * times.limit)

    def ceiling(self, sessions: int, seconds: float) -> float:
        """Frames per second of NVDEC when it decodes the files of the corpus from end to end."""
        return float(self._ask([("ceiling", sessions, seconds)], SETUP_SECONDS + seconds)[0])

    def close(self) -> None:
        """Lets go of the corpus; the processes stay."""
        self._ask([("close",)] * len(self._members), SETUP_SECONDS)

    def end(self) -> None:
        """Ends the processes."""
        self.alive = False
        for process, pipe in self._members:
            pipe.close()
            process.join(0.5)
            if process.is_alive():
                process.kill()
                process.join()

    def _ask(self, messages: list[tuple[Any, ...]], seconds: float) -> list[Any]:
        try:
            for (_, pipe), message in zip(self._members, messages, strict=True):
                pipe.send(message)
            until = time.monotonic() + seconds
            found = []
            for process, pipe in self._members:
                if not pipe.poll(max(0.0, until - time.monotonic())):
                    raise Failed(f"no answer to {messages[0][0]!r} in {seconds:.0f} s")
                try:
                    found.append(pipe.recv())
                except (EOFError, OSError):
                    process.join(5)
                    raise Failed(f"its process died, exit code {process.exitcode}") from None
        except (Failed, OSError) as error:
            self.end()
            raise Failed(str(error)) from error
        problem = next((answer for answer in found if isinstance(answer, str)), None)
        if problem is not None:
            self.end()
            raise Failed(problem)
        return found


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started, of ended ones, too, once they are waited for."""
    times = os.times()
    used = times.user + times.system + times.children_user + times.children_system
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            theirs = process.cpu_times()
            used += theirs.user + theirs.system
    return used


def measure(stream: Stream, requests: Sequence[ClipRequest], times: Times) -> list[Window]:
    """Windows of a stream that is under way: from the end of one batch to the end of another."""
    clips = stream(requests, True)
    windows: list[Window] = []
    try:
        begin = time.perf_counter()
        next(clips)
        while time.perf_counter() - begin < times.warmup:
            next(clips)
        begin = time.perf_counter()
        while len(windows) < times.runs and (not windows or time.perf_counter() - begin < times.limit):
            count = fed = 0
            before, work = time.perf_counter(), cpu_seconds()
            while True:
                batch = next(clips)
                count += len(batch)
                fed += sum(getattr(clip, "decoded_frames", 0) for _, clip in batch)
                del batch  # its memory can be used again
                seconds = time.perf_counter() - before
                if seconds >= times.window:
                    break
            windows.append(Window(count, seconds, cpu_seconds() - work, fed))
    finally:
        clips.close()  # type: ignore[attr-defined]
    return windows


def _check(stream: Stream, requests: Sequence[ClipRequest], path: str) -> tuple[float, float]:
    from contestant import rgb
    from same_frames import difference, difference_but_colour

    missing = {request.sample: place for place, request in enumerate(requests)}
    worst = worst_but_colour = 0.0
    with np.load(path) as expected:
        for batch in stream(requests, False):
            for request, clip in batch:
                place = missing.pop(request.sample, None)
                if place is None:  # a reader that fills its last batch with clips it gave before
                    continue
                frames, wanted = rgb(clip), expected[str(place)]
                apart = difference(frames, wanted)
                worst = max(worst, apart)
                if apart > 1:
                    apart = min(apart, difference_but_colour(frames, wanted))
                worst_but_colour = max(worst_but_colour, apart)
    if missing:
        raise RuntimeError(f"it gave no frames for {len(missing)} of {len(requests)} clips")
    return worst, worst_but_colour


def _member(pipe: Connection, name: str, cores: list[int]) -> None:
    """A process of a contestant: answers until the pipe closes."""
    os.sched_setaffinity(0, cores)
    # A contestant that takes all memory is to die, not the benchmark.
    Path("/proc/self/oom_score_adj").write_text("500")
    from contestant import CLOSE
    from contestants import contestant_of
    from surgrec.loaders.packet_index import PacketIndex

    stream: Any = None
    index: Any = None
    contestant = contestant_of(name)
    if contestant is not None:
        for module in contestant.modules:
            try:
                importlib.import_module(module)
            except Exception:  # `open` will say it
                break
    while True:
        try:
            what, *rest = pipe.recv()
        except (EOFError, OSError):
            return
        answer: Any = True
        try:
            if what == "open":
                index = PacketIndex.open(rest[0])
                if contestant is not None:
                    stream = contestant.open(index, len(cores))
            elif what == "check":
                answer = _check(stream, *rest)
            elif what == "run":
                answer = measure(stream, *rest)
            elif what == "ceiling":
                import torch
                from surgrec.loaders.engines.nvdec_ceiling import sequential_rate

                answer = float(sequential_rate(index, torch.device("cuda", 0), *rest))
            else:
                getattr(stream, CLOSE, lambda: None)()
                stream = index = None
                _let_go()
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            answer = f"{what} fails: {type(error).__name__}: {error}"[:500] + f" ({place.name})"
        try:
            pipe.send(answer)
        except OSError:
            return


def _let_go() -> None:
    """Gives the GPU back what torch keeps for later: the next contestant may want it."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
