"""A stage's work on each video, side by side; what is finished is kept, whatever becomes of the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from surgrec.curation.records import Arrays, VideoRecords
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.packet_index import PacketIndex

Function = Callable[[PacketIndex, int, Any], Arrays]
"""(index, video, argument) -> what is found. Defined at the top of a module, so that processes find it.
BadClip where nothing can be found, with the reason."""

Progress = Callable[[int, int], None]
"""(done, of how many): videos, or steps of a stage that knows none."""


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


class Workers(Protocol):
    """What does tasks side by side: processes of this machine, or of a cluster."""

    def run(
        self, stage: str, function: Function, tasks: Sequence[Task], index: PacketIndex
    ) -> Iterator[tuple[Task, Finding]]:
        """Each task with what came of it, as they come; none but a bounded number is under way at a time.

        Raises CurationError, naming the stage, where a process dies.
        """


def find_all(
    stage: str,
    function: Function,
    tasks: Sequence[Task],
    records: VideoRecords,
    index: PacketIndex,
    workers: Workers,
) -> Iterator[Finding]:
    """The finding of each task, as they come: from its record, or from the function, done by `workers`.
    Failures have no record, so that the next run tries again.

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
    for task, finding in workers.run(stage, function, missing, index):
        if finding.arrays is not None:
            records.put(task.key, finding.arrays)
        yield finding


def attempt(function: Function, index: PacketIndex, task: Task) -> Finding:
    """What the function finds, in the process that does the work."""
    try:
        return Finding(task.video, function(index, task.video, task.argument))
    except BadClip as error:
        return Finding(task.video, None, str(error))
