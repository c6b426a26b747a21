"""One video cut into segments: of a length in seconds, and never across a scene cut; how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable, cut_positions


def segment_bounds(
    index: PacketIndex, video: int, seconds: float, scenes: Sequence[int]
) -> NDArray[np.int64]:
    """Display positions at which segments begin, and the video's end: int64 [segments + 1].

    scenes: where scenes begin, ascending, within the video. Each scene is cut by itself, as
    loaders/segments.py cuts a video: pieces last between half and one and a half times `seconds`, and a
    shorter scene is one segment.
    """
    count = int(index.videos.frame_count[video])
    edges = [0, *(int(start) for start in scenes), count]
    if any(later <= earlier for earlier, later in pairwise(edges)):
        raise ValueError(
            f"scenes begin at {list(scenes)}; ascending positions within {count} frames are needed"
        )
    pieces = [cut_positions(index, video, seconds, a, b)[:-1] for a, b in pairwise(edges)]
    return np.append(np.concatenate(pieces), count).astype(np.int64)


def seconds_of(index: PacketIndex, segments: SegmentTable) -> NDArray[np.float64]:
    """How long each segment is on display, by time stamps and, for its last frame, the mean of its others."""
    found = np.empty(len(segments))
    for video, own in segments.by_video().items():
        times = index.frame_pts(video)
        tick = int(index.videos.time_base_num[video]) / int(index.videos.time_base_den[video])
        start, last = segments.start[own], segments.end[own] - 1
        spans = (times[last] - times[start]) * tick
        steps = np.where(last > start, spans / np.maximum(last - start, 1), 0.0)
        found[own] = spans + steps
    return found
