"""A stage's work on each video, in processes; what is finished is kept, whatever becomes of the rest."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgrec.curation.records import Arrays, CurationError, VideoRecords
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.packet_index import PacketIndex

Function = Callable[[PacketIndex, int, Any], Arrays]
"""(index, video, argument) -> what is found. Defined at the top of a module, so that processes find it.
BadClip where nothing can be found, with the reason."""

Progress = Callable[[int, int], None]
"""(done, of how many): videos, or steps of a stage that knows none."""

_index: PacketIndex


@dataclass(frozen=True)
class Task:
    """Work on one video. key: of its record. argument: plain values, for the function."""

    video: int
    key: str
    argument: Any


@dataclass(frozen=True)
class Finding:
    """What came of a task: arrays, or the reason why there are none."""

    video: int
    arrays: Arrays | None
    reason: str = ""


def find_all(
    stage: str,
    function: Function,
    tasks: Sequence[Task],
    records: VideoRecords,
    index: PacketIndex,
    workers: int,
) -> Iterator[Finding]:
    """The finding of each task, as they come: from its record, or from the function in one of `workers`
    processes. Failures have no record, so that the next run tries again.

    Raises CurationError where a process dies, OSError where a record cannot be written.
    """
    missing = []
    for task in tasks:
        found = records.get(task.key)
        if found is None:
            missing.append(task)
        else:
            yield Finding(task.video, found)
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(missing)), context, _start, (index.path,))
    try:
        waiting: dict[Future[Finding], Task] = {}
        upcoming = iter(missing)
        for task in upcoming:
            waiting[pool.submit(_work, function, task)] = task
            if len(waiting) >= 2 * workers:
                break
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                task = waiting.pop(future)
                finding = future.result()
                if finding.arrays is not None:
                    records.put(task.key, finding.arrays)
                yield finding
                following = next(upcoming, None)
                if following is not None:
                    waiting[pool.submit(_work, function, following)] = following
    except BrokenProcessPool as error:
        raise CurationError(
            f"stage {stage}: a process was killed, perhaps because memory ran out. Finished videos are kept:"
            f" run the same command again, with fewer --workers if it happens again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(path: Path) -> None:
    global _index
    _index = PacketIndex.open(path)


def _work(function: Function, task: Task) -> Finding:
    try:
        return Finding(task.video, function(_index, task.video, task.argument))
    except BadClip as error:
        return Finding(task.video, None, str(error))
