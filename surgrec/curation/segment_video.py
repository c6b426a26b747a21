"""One video cut into segments: of a length in seconds, and never across a cut between scenes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import cut_positions


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
