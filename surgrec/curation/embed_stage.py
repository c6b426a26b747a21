"""Stage `embed`: a vector for each segment, from the pictures that stage `quality` looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from surgrec.curation.descriptor import DIMENSIONS, describe
from surgrec.curation.per_video import Progress, Workers, find_all
from surgrec.curation.pictures import NoPictures, PictureReader
from surgrec.curation.quality_stage import Bounds, tasks_of
from surgrec.curation.records import Arrays, Found, VideoRecords, digest_of, key_of
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable

VERSION: Final = 1


def embed_segments(
    index: PacketIndex,
    segments: Arrays,
    crop: NDArray[np.int32],
    records: VideoRecords,
    workers: Workers,
    progress: Progress,
) -> Found:
    """vectors: float16 [n, 384] of unit length; failed: bool [n], segments without one, whose row is 0. Noted
    are the videos of which no segment has one, with the reason.

    segments: as find_segments gives them. crop: int32 [V, 4], where the content of each video is. Raises
    CurationError and OSError as find_all does.
    """
    table = SegmentTable(**segments)
    vectors = np.zeros((len(table), DIMENSIONS), np.float16)
    failed = np.ones(len(table), bool)
    notes: dict[str, str] = {}
    complete = True
    rows = table.by_video()
    tasks = []
    for task in tasks_of(index, table, "embed", VERSION):
        area = crop[task.video].tolist()
        tasks.append(replace(task, key=key_of(task.key, area), argument=(task.argument, area)))
    for done, finding in enumerate(find_all("embed", _embed, tasks, records, index, workers), 1):
        if finding.arrays is None:
            notes[index.videos.path[finding.video]], complete = finding.reason, False
        else:
            vectors[rows[finding.video]] = finding.arrays["vectors"]
            failed[rows[finding.video]] = finding.arrays["failed"]
        progress(done, len(tasks))
    return Found({"vectors": vectors, "failed": failed}, notes, complete)


def embed_key(index: PacketIndex, segments: Arrays, crop: NDArray[np.int32]) -> str:
    """Of the stage's table."""
    return key_of("embed", VERSION, index.digest, digest_of(segments | {"crop": crop}))


def within(pictures: NDArray[np.uint8], size: tuple[int, int], crop: list[int]) -> NDArray[np.uint8]:
    """Pictures [T, h, w, 3] cut to a crop (top, left, height, width) of pictures of another size (height,
    width); whole where it is all 0."""
    top, left, height, width = crop
    if height == 0:
        return pictures
    down, along = pictures.shape[1] / size[0], pictures.shape[2] / size[1]
    first, last = round(top * down), max(round(top * down) + 1, round((top + height) * down))
    begin, end = round(left * along), max(round(left * along) + 1, round((left + width) * along))
    return pictures[:, first:last, begin:end]


def _embed(index: PacketIndex, video: int, about: tuple[Bounds, list[int]]) -> Arrays:
    """Runs in a process of per_video."""
    bounds, crop = about
    vectors = np.zeros((len(bounds), DIMENSIONS), np.float16)
    failed = np.ones(len(bounds), bool)
    reason = ""
    reader = PictureReader(index)
    try:
        for row, (start, end) in enumerate(bounds):
            found: Any = reader.segment(video, start, end)
            if isinstance(found, NoPictures):
                reason = found.reason
            else:
                height, width = found.luma.shape[1:]
                vectors[row] = describe(within(found.rgb, (height, width), crop))
                failed[row] = False
    finally:
        reader.close()
    if failed.all():
        raise BadClip(reason)
    return {"vectors": vectors, "failed": failed}
