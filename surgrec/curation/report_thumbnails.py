"""Thumbnails of segments: small JPEGs of bounded size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from surgrec.curation.per_video import Progress, Task, Workers, find_all
from surgrec.curation.pictures import NoPictures, PictureReader, choose_frames
from surgrec.curation.quality_stage import Bounds
from surgrec.curation.records import Arrays, VideoRecords, key_of
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable

VERSION: Final = 1
SIDE: Final = 160
"""Longest side, in pixels."""
BYTES: Final = 6 * 1024
"""Of a thumbnail, at most."""
QUALITIES: Final = (70, 50, 30, 10)
"""Of the JPEG: the first at which it is small enough."""


@dataclass(frozen=True)
class Thumbnail:
    """A picture of a segment. jpeg: empty where there is none, for `reason`. frame: display position of the
    picture. width, height: in pixels.
    """

    jpeg: bytes
    frame: int
    width: int = 0
    height: int = 0
    reason: str = ""


def find_thumbnails(
    index: PacketIndex,
    segments: SegmentTable,
    wanted: Sequence[int],
    records: VideoRecords,
    workers: Workers,
    progress: Progress,
) -> dict[int, Thumbnail]:
    """A thumbnail of each wanted segment, by its number. Where videos cannot be read, they have none.

    Raises CurationError and OSError as find_all does.
    """
    rows: dict[int, list[int]] = {}
    for row in sorted(set(wanted)):
        rows.setdefault(int(segments.video[row]), []).append(row)
    tasks = []
    for video, own in rows.items():
        bounds = np.stack([segments.start[own], segments.end[own]], 1).tolist()
        key = key_of("thumbnail", VERSION, SIDE, BYTES, index.videos.xxh3[video], bounds)
        tasks.append(Task(video, key, bounds))
    found: dict[int, Thumbnail] = {}
    for done, finding in enumerate(find_all("report", _thumbnails, tasks, records, index, workers), 1):
        own = rows[finding.video]
        if finding.arrays is None:
            found |= {row: Thumbnail(b"", int(segments.start[row]), reason=finding.reason) for row in own}
        else:
            found |= dict(zip(own, _unpacked(finding.arrays), strict=True))
        progress(done, len(tasks))
    return dict(sorted(found.items()))  # whichever video came first


def _thumbnails(index: PacketIndex, video: int, bounds: Bounds) -> Arrays:
    """Runs in a process of per_video."""
    made: list[Thumbnail] = []
    reader = PictureReader(index)
    try:
        for start, end in bounds:
            frames = choose_frames(index, video, start, end)
            frame = frames[len(frames) // 2]
            found = reader.read(video, [frame])
            if isinstance(found, NoPictures):
                made.append(Thumbnail(b"", frame, reason=found.reason))
            else:
                made.append(_thumbnail(found.rgb[0], frame, _pixel_shape(index, video)))
    finally:
        reader.close()
    reason = next((each.reason for each in made if not each.jpeg), "")
    if not any(each.jpeg for each in made):
        raise BadClip(reason)
    return {
        "jpeg": np.frombuffer(b"".join(each.jpeg for each in made), np.uint8),
        "about": np.array([[len(each.jpeg), each.frame, each.width, each.height] for each in made], np.int64),
        "reason": np.array(reason),
    }


def _unpacked(arrays: Arrays) -> list[Thumbnail]:
    data, found, at = arrays["jpeg"].tobytes(), [], 0
    for size, frame, width, height in arrays["about"].tolist():
        reason = "" if size else str(arrays["reason"].item())
        found.append(Thumbnail(data[at : at + size], frame, width, height, reason))
        at += size
    return found


def _pixel_shape(index: PacketIndex, video: int) -> float:
    """Width of a pixel by its height, in the upright picture."""
    numerator, denominator = int(index.videos.sar_num[video]), int(index.videos.sar_den[video])
    shape = numerator / denominator if numerator > 0 and denominator > 0 else 1.0
    return 1 / shape if int(index.videos.rotation[video]) in (90, 270) else shape


def _thumbnail(picture: NDArray[np.uint8], frame: int, pixel_shape: float) -> Thumbnail:
    """Of a picture, uint8 [h, w, 3]."""
    height, width = picture.shape[0], picture.shape[1] * pixel_shape
    share = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * share)), max(1, round(height * share))
    small = Image.fromarray(picture).resize(size, Image.Resampling.BOX)
    jpeg = b""
    for quality in QUALITIES:
        jpeg = encoded(small, quality)
        if len(jpeg) <= BYTES:
            break
    return Thumbnail(jpeg, frame, *size)


def encoded(picture: Image.Image, quality: int) -> bytes:
    """As a JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
