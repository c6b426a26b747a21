"""One decoded stretch of video and the clips that are cut from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numba
import numpy as np
from numpy.typing import NDArray
from surgrec.kernels.planes import Planes
from surgrec.loaders.clip_plan import ClipRequest, PlanError, plan_clip
from surgrec.loaders.engines.base import DecodedClip
from surgrec.loaders.packet_index import NO_RANK, SEQUENTIAL, PacketIndex

Rows = tuple[int, ...] | None
"""Rows of the decoded stretch that a clip shows; None for all, in order."""


@dataclass(frozen=True, slots=True)
class SharedDecode:
    """What is decoded at once, and the clips in it: for each sample its clip, and its rows of the result."""

    unit: int
    request: ClipRequest
    clips: tuple[tuple[ClipRequest, Rows], ...]

    def cut(self, decoded: DecodedClip) -> list[DecodedClip]:
        """The clips of a decoded `request`. Planes are shared, arrays are copied once for each clip."""
        if self.clips == ((decoded.request, None),):
            return [decoded]
        parts: dict[Rows, NDArray[np.uint8] | Planes] = {None: decoded.frames}
        for _, rows in self.clips:
            if rows is not None and rows not in parts:
                parts[rows] = _take(decoded.frames, rows)
        return [replace(decoded, request=clip, frames=parts[rows]) for clip, rows in self.clips]


def share(
    unit: int, video: int, clips: Sequence[tuple[int, ...]], shown: Sequence[tuple[int, int]]
) -> SharedDecode:
    """The decode of clips of one video: the union of their frames, known by the first sample shown.

    A decode of one clip is that clip's own request, frames that repeat included.

    Args:
        clips: frames of each clip of the unit.
        shown: (sample, clip) of those members that are wanted. The others are decoded nonetheless: whether a
            unit can be decoded must not depend on the rank that asks.
    """
    whole = clips[0] if len(set(clips)) == 1 else tuple(sorted({frame for clip in clips for frame in clip}))
    place = {frame: row for row, frame in enumerate(whole)}
    rows = [None if clip == whole else tuple(place[frame] for frame in clip) for clip in clips]
    return SharedDecode(
        unit,
        ClipRequest(shown[0][0], video, whole),
        tuple((ClipRequest(sample, video, clips[clip]), rows[clip]) for sample, clip in shown),
    )


def further_starts(
    index: PacketIndex,
    video: int,
    segment: tuple[int, int],
    clip: tuple[int, ...],
    last_start: int,
    draws: Iterable[float],
    within: bool = False,
) -> list[int]:
    """Display positions at which further clips begin that the decode of a first clip covers, or nearly.

    They lie between the key frame from which the first clip is decoded and its last frame, within its
    segment, and differ from the first clip's and each other. Where the segment has too few, the whole video's
    are taken, between the same bounds; where that has too few as well, or with `within`, they repeat.

    Args:
        segment: first frame of the first clip's segment, and the end.
        clip: frames of the first clip.
        last_start: the last frame of the video, with `within` of the segment, at which a whole clip fits.
        draws: a random number in [0, 1) for each further clip.
    """
    numbers = list(draws)
    first, count = clip[0], len(numbers) + 1
    covered, end = _covered_from(index, video, first), min(clip[-1], last_start) + 1
    low, high = min(max(covered, segment[0]), first), max(min(end, segment[1]), first + 1)
    if high - low < count and not within:
        high = max(high, min(end, low + count))
        low = min(low, max(covered, high - count))
    taken, starts = {first}, []
    for draw in numbers:
        free = [start for start in range(low, high) if start not in taken] or list(range(low, high))
        starts.append(free[int(draw * len(free))])
        taken.add(starts[-1])
    return starts


def _covered_from(index: PacketIndex, video: int, frame: int) -> int:
    """The first display position that is decoded on the way to `frame`, at any rate; at most `frame`."""
    if index.videos.status[video] == SEQUENTIAL:
        return 0
    try:
        key = int(plan_clip(index, ClipRequest(0, video, (frame,))).packets[0])
    except PlanError:
        return frame  # decoding will fail, and be reported, in the engine
    packets = index.packets(video)
    return min(_first_shown(index.pts[packets], index.rank[packets], index.frames(video), key), frame)


@numba.njit(cache=True)
def _first_shown(pts, rank, display, key):
    """The first display position whose frame is not shown before that of packet `key`."""
    by_rank = rank[key] != NO_RANK
    low, high = 0, len(display)
    while low < high:
        middle = (low + high) // 2
        packet = display[middle]
        before = rank[packet] < rank[key] if by_rank else pts[packet] < pts[key]
        if before:
            low = middle + 1
        else:
            high = middle
    return low


def _take(frames: NDArray[np.uint8] | Planes, rows: tuple[int, ...]) -> NDArray[np.uint8] | Planes:
    if isinstance(frames, Planes):
        return replace(frames, rows=tuple(frames.rows[row] for row in rows))
    return frames[list(rows)]
