"""Stage `quality`: what the pictures of each segment are like, and where the content of each video is."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from surgrec.configs.curate import QualityThresholds
from surgrec.curation.content_area import content_areas
from surgrec.curation.per_video import Progress, Task, Workers, find_all
from surgrec.curation.quality import NUMBERS, Quality, flags, measure_segments, reasons, weights
from surgrec.curation.records import Arrays, Found, VideoRecords, digest_of, key_of
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable

VERSION: Final = 1

Bounds = list[list[int]]
"""[start, end) of each segment of a video."""


def find_quality(
    index: PacketIndex, segments: Arrays, records: VideoRecords, workers: Workers, progress: Progress
) -> Found:
    """numbers: float32 [n, len(NUMBERS)], NaN where a segment gave no picture. crop: int32 [V, 4], as
    ClipSource takes content areas. Noted are the videos of which segments gave none, with one reason.

    segments: as find_segments gives them. Raises CurationError and OSError as find_all does.
    """
    table = SegmentTable(**segments)
    numbers = np.full((len(table), len(NUMBERS)), np.nan, np.float32)
    numbers[:, NUMBERS.index("pictures")] = 0
    crop = np.zeros((len(index), 4), np.int32)
    notes: dict[str, str] = {}
    complete = True
    rows = table.by_video()
    tasks = tasks_of(index, table, "quality", VERSION)
    for done, finding in enumerate(find_all("quality", _look, tasks, records, index, workers), 1):
        path = index.videos.path[finding.video]
        if finding.arrays is None:
            notes[path], complete = finding.reason, False
        else:
            numbers[rows[finding.video]] = finding.arrays["numbers"]
            crop[finding.video] = finding.arrays["crop"]
            blind = int((finding.arrays["numbers"][:, NUMBERS.index("pictures")] == 0).sum())
            if blind:
                count = len(finding.arrays["numbers"])
                notes[path] = f"{blind} of {count} segments: {finding.arrays['reason'].item()}"
        progress(done, len(tasks))
    return Found({"numbers": numbers, "crop": crop}, notes, complete)


def tasks_of(index: PacketIndex, table: SegmentTable, stage: str, version: int) -> list[Task]:
    """One for each video that has segments, with their Bounds; its key knows the file and the bounds."""
    tasks = []
    for video, own in table.by_video().items():
        bounds = np.stack([table.start[own], table.end[own]], 1)
        key = key_of(stage, version, index.videos.xxh3[video], digest_of({"bounds": bounds}))
        tasks.append(Task(video, key, bounds.tolist()))
    return tasks


def table_of(video: int, bounds: Bounds) -> SegmentTable:
    """The segments of one video."""
    edges = np.array(bounds, np.int64).reshape(-1, 2)
    return SegmentTable(np.full(len(edges), video, np.int32), edges[:, 0].copy(), edges[:, 1].copy())


def judged(
    numbers: NDArray[np.float32], thresholds: QualityThresholds
) -> tuple[list[str], NDArray[np.bool_]]:
    """The flags of each segment, joined by commas, and whether they leave it to be drawn: bool [n]."""
    mask = flags(Quality(*np.ascontiguousarray(numbers.T)), thresholds)
    return reasons(mask), weights(mask, thresholds) > 0


def quality_key(index: PacketIndex, segments: Arrays) -> str:
    """Of the stage's table."""
    return key_of("quality", VERSION, index.digest, digest_of(segments))


def _look(index: PacketIndex, video: int, bounds: Bounds) -> Arrays:
    """Runs in a process of per_video."""
    segments = table_of(video, bounds)
    areas, _ = content_areas(index, segments, [video])
    quality, missing = measure_segments(index, segments, areas)
    numbers = np.stack([getattr(quality, name) for name in NUMBERS], 1)
    reason = next((found.reason for found in missing.values()), "")
    if len(missing) == len(bounds):
        raise BadClip(reason)
    return {"numbers": numbers, "crop": np.array(areas[video].crop, np.int32), "reason": np.array(reason)}
