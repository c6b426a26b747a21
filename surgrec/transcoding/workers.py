"""Processes that transcode side by side, and survive files that crash or hang FFmpeg.

Each video is one task of one process. A process that dies, or gives no sign of life in time, costs its video
and is replaced; everything else goes on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

from surgrec.transcoding.encoder import probe_encoder
from surgrec.transcoding.journal import ProxyJournal
from surgrec.transcoding.manifest import MANIFEST_NAME
from surgrec.transcoding.options import ProxyOptions
from surgrec.transcoding.proxy_file import ProxyError, Task, make_proxy, partial_of

BYTES_PER_EXTRA_SECOND: Final = 2_000_000
POLL_SECONDS: Final = 1.0
BEAT_SECONDS: Final = 0.5
PROBE_SECONDS: Final = 120.0


class TranscodeAborted(RuntimeError):  # noqa: N818 - not an error of its own, but the end of the run
    """A worker could not store its proxy; the message is that of the operating system."""


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to a task: "made" (a record is in the journal), "unchanged", or "failed" with the reason."""

    task: Task
    kind: str
    reason: str = ""


def run_tasks(
    tasks: Sequence[Task],
    workers: int,
    timeout: float,
    progress: Callable[[str, float], None] | None = None,
    target: Callable[..., None] | None = None,
) -> Iterator[Done]:
    """Do all tasks in `workers` processes, and yield each answer as it comes.

    timeout: seconds without a sign of life; to the first, which comes once a file's packets are read, the
    size of the file adds. progress(path, share) tells how far a video is. `target` replaces the worker's main
    function in tests. Raises TranscodeAborted where a worker cannot write.
    """
    pending = list(reversed(tasks))
    pool = [_Worker(target or work, timeout, progress) for _ in range(min(workers, len(tasks)))]
    try:
        while pending or any(worker.task for worker in pool):
            for worker in pool:
                if worker.task is None and pending:
                    worker.give(pending.pop())
            busy = [worker for worker in pool if worker.task is not None]
            wait([worker.connection for worker in busy], timeout=POLL_SECONDS)
            for worker in busy:
                answer = worker.answer()
                if answer is not None:
                    yield answer
    finally:
        for worker in pool:
            worker.stop()


def why_no_encoder(name: str, options: ProxyOptions) -> str:
    """Why encoder `name` cannot be used, empty where it can; a driver may crash only a process of its own."""
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    process = context.Process(target=_probe, args=(other, name, options), daemon=True)
    process.start()
    other.close()
    try:
        if not connection.poll(PROBE_SECONDS):
            return f"no answer within {PROBE_SECONDS:g} s"
        return str(connection.recv())
    except (EOFError, ConnectionResetError):
        process.join()
        return f"the process that tried it died ({_death(process.exitcode)})"
    finally:
        process.kill()
        process.join()
        connection.close()


def _probe(connection: Connection, name: str, options: ProxyOptions) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import av.logging

    # Any other level would have FFmpeg's threads wait for Python, which waits for them: they would lock up.
    av.logging.set_level(None)
    connection.send(probe_encoder(name, options))


def _death(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"


class _Worker:
    def __init__(
        self, target: Callable[..., None], timeout: float, progress: Callable[[str, float], None] | None
    ) -> None:
        self._target = target
        self._timeout = timeout
        self._progress = progress
        self.task: Task | None = None
        self._deadline = 0.0
        self._start()

    def _start(self) -> None:
        # spawn: a fork would copy the parent's threads' locks.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process: Any = context.Process(target=self._target, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def give(self, task: Task) -> None:
        self.task = task
        try:
            size = os.stat(task.wanted.path).st_size
        except OSError:
            size = 0  # the worker says what is wrong with the file
        self._deadline = time.monotonic() + self._timeout + size / BYTES_PER_EXTRA_SECOND
        try:
            self.connection.send(task)
        except OSError:
            # It died between two files; `answer` sees that at once and starts another.
            self._deadline = 0.0

    def answer(self) -> Done | None:
        """The answer to the current task, once it is there, or the worker is not any more."""
        task = self.task
        assert task is not None
        crash = ""
        try:
            while self.connection.poll():
                kind, detail = self.connection.recv()
                if kind == "beat":
                    self._deadline = time.monotonic() + self._timeout
                    if self._progress:
                        self._progress(task.wanted.path, detail)
                    continue
                self.task = None
                if kind == "aborted":
                    raise TranscodeAborted(detail)
                return Done(task, kind, detail)
        except (EOFError, ConnectionResetError):
            self._process.join()
            crash = f"the process that transcoded it died ({_death(self._process.exitcode)})"
        if not crash and time.monotonic() > self._deadline:
            crash = f"no sign of life for {self._timeout:g} s"
        if not crash:
            return None
        self.task = None
        self.stop()
        with contextlib.suppress(OSError):
            partial_of(task.target).unlink()
        self._start()
        return Done(task, "failed", crash)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def work(connection: Connection) -> None:
    """Main function of a worker: transcode what comes through `connection` until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    import av.logging

    # Any other level would have FFmpeg's threads wait for Python, which waits for them: they would lock up.
    av.logging.set_level(None)
    last = 0.0

    def beat(share: float) -> None:
        nonlocal last
        if time.monotonic() - last > BEAT_SECONDS:
            last = time.monotonic()
            connection.send(("beat", share))

    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            record = make_proxy(task, beat)
            if record is None:
                connection.send(("unchanged", ""))
                continue
            ProxyJournal(Path(task.out) / MANIFEST_NAME).write(record)
        except ProxyError as error:
            connection.send(("failed", str(error)))
        except OSError as error:
            where = error.filename or task.target
            connection.send(("aborted", f"{where}: {error.strerror or error}"))
            return
        else:
            connection.send(("made", ""))
