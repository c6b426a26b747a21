"""Which frames of which video each row of a manifest needs, in chunks that are computed together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from surgrec.configs.extract import ExtractConfig
from surgrec.curation.records import key_of
from surgrec.evaluation.feature_models import FeatureModel
from surgrec.evaluation.manifest import Row, SplitManifest
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.packet_index import ERROR, REMOVED, PacketIndex

VERSION: Final = 1
SLACK: Final = 1e-3
"""Seconds by which a frame may be early: bounds are written with three digits."""


@dataclass(frozen=True)
class PlannedChunk:
    """Rows that are computed together. key: of the record of their features. requests: S / views for each row
    that can be read, their samples the numbers of clips in the chunk. missing: number in the chunk -> why a
    row cannot be read."""

    key: str
    count: int
    requests: list[ClipRequest]
    missing: dict[int, str]


def plan_chunks(
    config: ExtractConfig,
    manifest: SplitManifest,
    paths: list[str],
    index: PacketIndex,
    model: FeatureModel,
    device: torch.device,
) -> list[PlannedChunk]:
    """All rows of a manifest, in its order. paths: of their files, of which the index knows every one."""
    numbers = {path: number for number, path in enumerate(index.videos.path)}
    size = max(1, config.batch // config.clips)
    chunks = []
    for first in range(0, len(manifest.rows), size):
        rows = manifest.rows[first : first + size]
        requests: list[ClipRequest] = []
        missing: dict[int, str] = {}
        about = []
        for number, row in enumerate(rows):
            video = numbers[paths[first + number]]
            about.append([row.path, row.start, row.end, index.videos.xxh3[video]])
            span = span_of(index, video, row)
            if isinstance(span, str):
                missing[number] = span
                continue
            for clip in range(config.clips):
                frames = model.choose(index, video, *span, clip, config.clips)
                requests.append(ClipRequest(number * config.clips + clip, video, frames))
        key = key_of(
            VERSION,
            model.identity,
            model.geometry,
            config.clips,
            config.views,
            config.tokens,
            device.type,
            about,
        )
        chunks.append(PlannedChunk(key, len(rows), requests, missing))
    return chunks


def span_of(index: PacketIndex, video: int, row: Row) -> tuple[int, int] | str:
    """Display positions [start, end) of a row's time, counted in seconds from the first frame on; or why
    there are none."""
    table = index.videos
    if table.status[video] in (ERROR, REMOVED):
        return table.reason[video] or "the video is gone"
    seconds = seconds_of(index, video)
    if not len(seconds):
        return "the video has no frame"
    start = 0 if row.start is None else int(np.searchsorted(seconds, row.start - SLACK))
    end = len(seconds) if row.end is None else int(np.searchsorted(seconds, row.end - SLACK))
    if start >= len(seconds):
        return (
            f"seconds {row.start:g} to {row.end or np.inf:g} begin behind the last frame, at {seconds[-1]:g}"
        )
    return start, max(end, start + 1)


def seconds_of(index: PacketIndex, video: int) -> NDArray[np.float64]:
    """float64 [F]: when each frame of a video is shown, counted from the first one on; never decreasing."""
    times = index.frame_pts(video)
    num, den = int(index.videos.time_base_num[video]), int(index.videos.time_base_den[video])
    first = times[0] if len(times) else 0
    return np.maximum.accumulate((times - first) * (num / den))
