"""Stage `embed`: a vector for each segment, from the pictures that stage `quality` looked at, or a clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from surgrec.configs.curate import CurateConfig
from surgrec.curation.describe_video import describe_video
from surgrec.curation.embedders import embedder_of
from surgrec.curation.local_workers import LocalWorkers
from surgrec.curation.network_workers import NetworkWorkers
from surgrec.curation.per_video import Progress, Task, Workers, find_all
from surgrec.curation.quality_stage import tasks_of
from surgrec.curation.ranks import Ranks, start_ranks
from surgrec.curation.records import Arrays, CurationError, Found, VideoRecords, digest_of, key_of
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable

VERSION: Final = 3


@dataclass(frozen=True)
class Embedding:
    """How a run embeds. workers: what this rank computes with; None leaves it to those of the other stages.
    identity: differs where vectors would."""

    identity: str
    ranks: Ranks
    workers: Workers | None

    def help(self, index: PacketIndex, records: VideoRecords) -> None:
        """What ranks other than 0 do: their share of the videos. Raises as Ranks.follow does."""
        assert self.workers is not None
        workers = self.workers

        def share(own: Sequence[Task]) -> None:
            _share(own, records, index, workers, lambda done, of: None)

        self.ranks.follow(self.identity, share, records)


@contextmanager
def start_embedding(config: CurateConfig, processes: int) -> Iterator[Embedding]:
    """Takes this process's place among the ranks, and finds the embedder.

    Raises CurationError as embedder_of does, and for ranks and a Ray cluster at once; UserError for a device
    that is not there.
    """
    embedder = embedder_of(config.embed)
    device = "cpu" if embedder.load is None else config.embed.device
    with start_ranks(device) as ranks:
        world = ranks.world
        workers: Workers | None = None
        here = max(1, processes // ranks.on_this_machine)
        if world.size > 1 and config.engine == "ray":
            raise CurationError(
                "--engine ray and torchrun both share work out: run the stages segments and quality on the"
                " cluster first, then embed with torchrun and --engine local"
            )
        identity = embedder.identity
        if embedder.load is not None:
            workers = NetworkWorkers(embedder, world.device, config.embed.batch, here)
            identity += f" on {world.device.type}, {config.embed.batch} at a time"
        elif world.size > 1:
            workers = LocalWorkers(here)
        try:
            yield Embedding(identity, ranks, workers)
        finally:
            if world.first:
                ranks.dismiss()


def embed_segments(
    index: PacketIndex,
    segments: Arrays,
    crop: NDArray[np.int32],
    embedding: Embedding,
    records: VideoRecords,
    workers: Workers,
    progress: Progress,
) -> Found:
    """vectors: float16 [n, D] of unit length, D 384 for the descriptor; failed: bool [n], segments without
    one, whose row is 0. Noted are the videos of which no segment has one, with the reason.

    segments: as find_segments gives them. crop: int32 [V, 4], where the content of each video is. Raises
    CurationError and OSError as find_all does.
    """
    table = SegmentTable(**segments)
    vectors = np.zeros((len(table), 0), np.float16)
    failed = np.ones(len(table), bool)
    notes: dict[str, str] = {}
    complete = True
    rows = table.by_video()
    tasks = []
    for task in tasks_of(index, table, "embed", VERSION):
        area = crop[task.video].tolist()
        key = key_of(task.key, area, embedding.identity)
        tasks.append(replace(task, key=key, argument=(task.argument, area)))
    shown = 0
    if embedding.ranks.world.size > 1:
        shown = _by_ranks(tasks, embedding, records, index, progress)
    found = find_all("embed", describe_video, tasks, records, index, embedding.workers or workers)
    for done, finding in enumerate(found, 1):
        if finding.arrays is None:
            notes[index.videos.path[finding.video]], complete = finding.reason, False
        else:
            own = finding.arrays["vectors"]
            if not vectors.shape[1]:
                vectors = np.zeros((len(table), own.shape[1]), np.float16)
            vectors[rows[finding.video]] = own
            failed[rows[finding.video]] = finding.arrays["failed"]
        progress(max(done, shown), len(tasks))
    return Found({"vectors": vectors, "failed": failed}, notes, complete)


def _by_ranks(
    tasks: list[Task], embedding: Embedding, records: VideoRecords, index: PacketIndex, progress: Progress
) -> int:
    """On rank 0: all ranks make the records that are missing. Returns how far the progress is that it shows:
    as if the others were as fast. What fails is tried again by find_all, which knows the reason then."""
    missing = [task for task in tasks if records.get(task.key) is None]
    # The longest first, so that shares are of like size.
    missing.sort(key=lambda task: (-len(task.argument[0]), task.video))
    before, shown = len(tasks) - len(missing), 0

    def show(done: int, of: int) -> None:
        nonlocal shown
        shown = done
        progress(done, of)

    workers = embedding.workers
    assert workers is not None
    tell = embedding.ranks.as_if_alike(before, len(missing), show)
    embedding.ranks.lead(
        missing, embedding.identity, lambda own: _share(own, records, index, workers, tell), records
    )
    return shown


def _share(
    tasks: Sequence[Task], records: VideoRecords, index: PacketIndex, workers: Workers, progress: Progress
) -> None:
    for done, _ in enumerate(find_all("embed", describe_video, tasks, records, index, workers), 1):
        progress(done, len(tasks))


def embed_key(index: PacketIndex, segments: Arrays, crop: NDArray[np.int32], identity: str) -> str:
    """Of the stage's table. identity: of the embedding."""
    return key_of("embed", VERSION, index.digest, digest_of(segments | {"crop": crop}), identity)
