"""A network over the segments of videos, through the engines and the crop that training uses.

Batches hold segments of one video. So its vectors follow from the video, its segments, the network, the batch
size and the device, bit by bit; not from which other videos are embedded, by how many ranks, or where an
earlier run was stopped. (On a CPU also from the number of threads that torch computes with.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from surgrec.configs.data import DataConfig
from surgrec.curation.embedders import Embedder, Network
from surgrec.curation.per_video import Finding, Function, Task
from surgrec.curation.records import CurationError
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream, Group
from surgrec.loaders.packet_index import PacketIndex


@dataclass(frozen=True)
class NetworkWorkers:
    """Workers for tasks of stage embed: one network on one device, and `threads` that decode for it."""

    embedder: Embedder
    device: torch.device
    batch: int
    threads: int

    def run(
        self, stage: str, function: Function, tasks: Sequence[Task], index: PacketIndex
    ) -> Iterator[tuple[Task, Finding]]:
        """See Workers; the network takes the function's place. vectors: float16 [n, D] of unit length,
        failed: bool [n].

        Raises CurationError where the weights cannot be had, the GPU has no memory left, or a vector is not
        finite.
        """
        assert self.embedder.load is not None
        try:
            network = self.embedder.load(self.device)
            areas = np.zeros((len(index), 4), np.int32)
            for task in tasks:
                areas[task.video] = task.argument[1]
            data = DataConfig(size=network.size)
            with ClipStream(index, data, self.device, self.threads, areas) as stream:
                yield from _findings(tasks, network, stream, self.batch)
        except torch.OutOfMemoryError as error:
            raise CurationError(
                f"stage {stage}: the GPU has no memory left for {self.batch} segments at a time. Finished"
                f" videos are kept: run the same command again with a smaller --embed.batch"
            ) from error


def _findings(
    tasks: Sequence[Task], network: Network, stream: ClipStream, batch: int
) -> Iterator[tuple[Task, Finding]]:
    index = stream.index

    def groups() -> Iterator[list[ClipRequest]]:
        for task in tasks:
            for first in range(0, len(task.argument[0]), batch):
                rows = enumerate(task.argument[0][first : first + batch], first)
                yield [
                    ClipRequest(row, task.video, network.choose(index, task.video, *ends))
                    for row, ends in rows
                ]

    read = stream.read(groups())
    video: _Video | None = None
    for task in tasks:
        following = _Video(task, index.videos.path[task.video])
        for _ in range(0, len(task.argument[0]), batch):
            group = next(read)
            vectors = (
                network.encode(group.frames, [r.frames for r in group.requests]) if group.requests else None
            )
            # A GPU computes what was queued last while the one before is taken from it.
            if video is not None:
                video.settle()
                if video is not following:
                    yield video.task, video.finding()
            video = following
            video.queued = group, vectors
    if video is not None:
        video.settle()
        yield video.task, video.finding()


class _Video:
    """What is known of a video's segments so far. queued: the group that the device computes."""

    def __init__(self, task: Task, path: Path | str) -> None:
        self.task = task
        self.queued: tuple[Group, Tensor | None] | None = None
        self._path = path
        self._vectors: np.ndarray | None = None
        self._failed = np.ones(len(task.argument[0]), bool)
        self._reason = ""

    def settle(self) -> None:
        """Takes the queued group from the device."""
        assert self.queued is not None
        (group, computed), self.queued = self.queued, None
        self._reason = next((failure.reason for failure in group.failures), self._reason)
        if computed is None:
            return
        vectors = computed.cpu().numpy()
        rows = [request.sample for request in group.requests]
        if not np.isfinite(vectors).all():
            start, end = self.task.argument[0][rows[int(np.argmin(np.isfinite(vectors).all(1)))]]
            raise CurationError(
                f"{self._path}: the network gives values that are not finite for frames {start} to {end - 1}:"
                f" its weights are no good"
            )
        if self._vectors is None:
            self._vectors = np.zeros((len(self._failed), vectors.shape[1]), np.float16)
        self._vectors[rows] = vectors
        self._failed[rows] = False

    def finding(self) -> Finding:
        """Of all segments; the reason where none has a vector."""
        if self._vectors is None:
            return Finding(self.task.video, None, self._reason)
        return Finding(self.task.video, {"vectors": self._vectors, "failed": self._failed})
