"""Stage `embed`: a vector for each segment, from a few of its pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from surgrec.configs.curate import EmbedOptions
from surgrec.curation.descriptor import DIMENSIONS, describe
from surgrec.curation.per_video import Task, find_all
from surgrec.curation.records import Arrays, VideoRecords, digest_of, key_of
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.base import BadClip, DecodedClip
from surgrec.loaders.engines.cpu import CpuEngine
from surgrec.loaders.packet_index import BROKEN, FAULTY, KEY, OPEN_KEY, SEQUENTIAL, PacketIndex
from surgrec.loaders.segments import SegmentTable

VERSION: Final = 1

Progress = Callable[[int, int], None]


def embed_segments(
    index: PacketIndex,
    segments: Arrays,
    options: EmbedOptions,
    records: VideoRecords,
    workers: int,
    progress: Progress,
) -> tuple[Arrays, dict[str, str]]:
    """vectors: float16 [n, 384] of unit length; failed: bool [n], segments without one, whose row is 0. And
    the videos that none could be made of, by path, with the reason.

    segments: as find_segments gives them. Raises ValueError for options that make no sense, CurationError and
    OSError as find_all does.
    """
    if options.pictures < 1:
        raise ValueError(f"{options.pictures} pictures of a segment: 1 is the least")
    table = SegmentTable(**segments)
    vectors = np.zeros((len(table), DIMENSIONS), np.float16)
    failed = np.ones(len(table), bool)
    notes: dict[str, str] = {}
    rows = table.by_video()
    tasks = []
    for number, own in rows.items():
        bounds = np.stack([table.start[own], table.end[own]], 1)
        key = key_of("embed", VERSION, options.pictures, index.videos.xxh3[number], digest_of({"b": bounds}))
        tasks.append(Task(number, key, (bounds.tolist(), options.pictures)))
    for done, finding in enumerate(find_all("embed", _embed, tasks, records, index, workers), 1):
        if finding.arrays is None:
            notes[index.videos.path[finding.video]] = finding.reason
        else:
            vectors[rows[finding.video]] = finding.arrays["vectors"]
            failed[rows[finding.video]] = finding.arrays["failed"]
        progress(done, len(tasks))
    return {"vectors": vectors, "failed": failed}, notes


def embed_key(segments_key: str, options: EmbedOptions) -> str:
    """Of the stage's table."""
    return key_of("embed", VERSION, segments_key, options.pictures)


def picture_positions(index: PacketIndex, video: int, start: int, end: int, count: int) -> list[int]:
    """Up to `count` display positions in [start, end), ascending: key frames spread over the segment where it
    has any, for they cost one decode each; else its first frame."""
    part, shown = index.packets(video), index.frames(video)[start:end]
    flags = index.flags[part][shown]
    good = (flags & (KEY | OPEN_KEY) != 0) & (flags & (BROKEN | FAULTY) == 0)
    keys = np.flatnonzero(good)
    stack = int(index.videos.stack[video])
    keys = keys[(keys + start) % stack == 0]
    if index.videos.status[video] == SEQUENTIAL or len(keys) == 0:
        return [start]
    places = np.unique(((np.arange(count) + 0.5) / count * len(keys)).astype(int))
    return [int(start + keys[place]) for place in places]


def _embed(index: PacketIndex, video: int, about: tuple[list[list[int]], int]) -> Arrays:
    """Runs in a process of per_video."""
    bounds, count = about
    requests = [
        ClipRequest(row, video, tuple(picture_positions(index, video, start, end, count)))
        for row, (start, end) in enumerate(bounds)
    ]
    vectors = np.zeros((len(bounds), DIMENSIONS), np.float16)
    failed = np.ones(len(bounds), bool)
    reason = ""
    with CpuEngine(index, threads=1) as engine:
        for row, clip in enumerate(engine.decode(requests)):
            if isinstance(clip, DecodedClip):
                pictures: NDArray[np.uint8] | Any = clip.frames
                vectors[row] = describe(pictures)
                failed[row] = False
            else:
                reason = clip.reason
    if failed.all():
        raise BadClip(reason)
    return {"vectors": vectors, "failed": failed}
