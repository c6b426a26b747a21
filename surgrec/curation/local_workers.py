"""Tasks in processes of this machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from surgrec.curation.per_video import Finding, Function, Task, attempt
from surgrec.curation.records import CurationError
from surgrec.loaders.packet_index import PacketIndex

_index: PacketIndex


@dataclass(frozen=True)
class LocalWorkers:
    """So many processes at most, started anew for each stage."""

    processes: int

    def run(
        self, stage: str, function: Function, tasks: Sequence[Task], index: PacketIndex
    ) -> Iterator[tuple[Task, Finding]]:
        """See Workers."""
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(self.processes, len(tasks)), context, _start, (index.path,))
        try:
            waiting: dict[Future[Finding], Task] = {}
            upcoming = iter(tasks)
            for task in upcoming:
                waiting[pool.submit(_work, function, task)] = task
                if len(waiting) >= 2 * self.processes:
                    break
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), future.result()
                    following = next(upcoming, None)
                    if following is not None:
                        waiting[pool.submit(_work, function, following)] = following
        except BrokenProcessPool as error:
            raise CurationError(
                f"stage {stage}: a process was killed, perhaps because memory ran out. Finished videos are"
                f" kept: run the same command again, with fewer --workers if it happens again"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(path: Path) -> None:
    global _index
    _index = PacketIndex.open(path)


def _work(function: Function, task: Task) -> Finding:
    return attempt(function, _index, task)
