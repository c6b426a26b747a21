"""Processes that scan files side by side, and survive files that crash or hang a demuxer.

Each file is one job of one worker process. A worker that dies or does not answer in time costs its file,
which gets an ERROR row, and is replaced; everything else goes on.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from surgrec.corpus.journal import Journal

BYTES_PER_EXTRA_SECOND: Final = {False: 2_000_000, True: 100_000}
"""Of a file that is only scanned, and of one that is verified, too."""
POLL_SECONDS: Final = 1.0


class ScanAborted(RuntimeError):  # noqa: N818 - not an error of its own, but the end of the run
    """A worker could not store its result; the message is that of the operating system."""


@dataclass(frozen=True, slots=True)
class Job:
    """A file to scan, and to verify. Where its content has the digest `known_digest`, it is unchanged."""

    path: str
    known_digest: str = ""
    size: int = 0
    verify: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to a job: a record is in the journal, unless the file is `unchanged`."""

    path: str
    unchanged: bool
    crash: str = ""
    """Why the worker did not answer. There is no record then, but of the scan before a verification."""


def run_jobs(
    jobs: Sequence[Job], out: Path, workers: int, timeout: float, target: Callable[..., None] | None = None
) -> Iterator[Done]:
    """Do all jobs in `workers` processes, and yield each answer as it comes.

    `timeout` is in seconds, to which the size of the file adds. `target` replaces the worker's main
    function in tests. Raises ScanAborted where a worker cannot write the journal.
    """
    pending = list(reversed(jobs))
    pool = [_Worker(out, target or work) for _ in range(min(max(1, workers), len(jobs)))]
    try:
        while pending or any(worker.job for worker in pool):
            for worker in pool:
                if worker.job is None and pending:
                    worker.give(pending.pop(), timeout)
            busy = [worker for worker in pool if worker.job is not None]
            wait([worker.connection for worker in busy], timeout=POLL_SECONDS)
            for worker in busy:
                answer = worker.answer(timeout)
                if answer is not None:
                    yield answer
    finally:
        for worker in pool:
            worker.stop()


class _Worker:
    def __init__(self, out: Path, target: Callable[..., None]) -> None:
        self._out = out
        self._target = target
        self.job: Job | None = None
        self._deadline = 0.0
        self._start()

    def _start(self) -> None:
        # spawn: a fork would copy the parent's threads' locks, and its open index.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process: Any = context.Process(target=self._target, args=(other, str(self._out)), daemon=True)
        self._process.start()
        other.close()

    def give(self, job: Job, timeout: float) -> None:
        self.job = job
        self._deadline = time.monotonic() + timeout + job.size / BYTES_PER_EXTRA_SECOND[job.verify]
        try:
            self.connection.send((job.path, job.known_digest, job.verify))
        except OSError:
            # It died between two files; `answer` sees that at once and starts another.
            self._deadline = 0.0

    def answer(self, timeout: float) -> Done | None:
        """The answer to the current job, once it is there, or the worker is not any more."""
        job = self.job
        assert job is not None
        crash = ""
        try:
            if self.connection.poll():
                kind, detail = self.connection.recv()
                self.job = None
                if kind == "failed":
                    raise ScanAborted(detail)
                return Done(job.path, kind == "unchanged")
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            name = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
            crash = f"the process that read the file died ({name})"
        if not crash and time.monotonic() > self._deadline:
            extra = f"a second per {BYTES_PER_EXTRA_SECOND[job.verify] / 1e6:g} MB"
            crash = (
                f"the file kept its reader busy for longer than {timeout:g} s and {extra};"
                " allow more (--timeout)"
            )
        if not crash:
            return None
        self.job = None
        self.stop()
        self._start()
        return Done(job.path, False, crash)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def work(connection: Connection, out: str) -> None:
    """Main function of a worker: scan what comes through `connection` until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    import av.logging

    from surgrec.corpus.journal import Journal

    av.logging.set_level(av.logging.PANIC)
    journal = Journal(Path(out))
    # Once the parent is gone, so is the other end of the connection.
    with suppress(EOFError, ConnectionError):
        while True:
            path, known_digest, verify = connection.recv()
            kind, detail = _scan(journal, Path(path), known_digest, verify)
            connection.send((kind, detail))
            if kind == "failed":
                return


def _scan(journal: Journal, path: Path, known_digest: str, verify: bool) -> tuple[str, str]:
    """Scans one file into the journal: ("done" or "unchanged", ""), or ("failed", why it was not written)."""
    from surgrec.loaders.engines.verify import verified
    from surgrec.loaders.packet_scan import digest_file, scan_file

    with suppress(OSError):  # scan_file says in the row what is wrong with the file
        if known_digest and digest_file(path) == known_digest:
            return "unchanged", ""
    scanned = scan_file(path)
    try:
        # Verifying may take hours, and be killed for it: what the scan found is kept.
        journal.write(scanned)
        if verify:
            journal.write(verified(scanned))
    except OSError as error:
        return "failed", f"{journal.folder}: {error.strerror or error}"
    return "done", ""
