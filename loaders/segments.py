"""Segments: every usable video cut into pieces of a fixed length in seconds, which clips are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from surgrec.loaders.clip_plan import ClipTooLong, clip_frames, frame_time
from surgrec.loaders.packet_index import OK, SEQUENTIAL, STATUS_NAMES, PacketIndex


@dataclass(frozen=True, slots=True)
class SegmentTable:
    """video int32 [n], number in the index; start, end int64 [n], display positions, `end` not included.

    Segments of a video follow one another without gap or overlap.
    """

    video: NDArray[np.int32]
    start: NDArray[np.int64]
    end: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.video) == len(self.start) == len(self.end):
            raise ValueError(
                f"columns of unequal length: video {len(self.video)}, start {len(self.start)}, "
                f"end {len(self.end)}"
            )
        bad = np.flatnonzero((self.start < 0) | (self.end <= self.start) | (self.video < 0))
        if len(bad):
            k = bad[0]
            raise ValueError(
                f"segment {k} is frames [{self.start[k]}, {self.end[k]}) of video {self.video[k]}: "
                f"it must hold at least one frame, numbered from 0"
            )

    def __len__(self) -> int:
        return len(self.video)

    def by_video(self) -> dict[int, slice]:
        """The rows of each video that has some. Rows must be in the order of the videos."""
        videos, firsts = np.unique(self.video, return_index=True)
        ends = np.append(firsts, len(self.video))[1:]
        return {int(v): slice(int(a), int(b)) for v, a, b in zip(videos, firsts, ends, strict=True)}


@dataclass(frozen=True, slots=True)
class Unusable:
    """A video of the index that no clip is drawn from, and why."""

    video: int
    path: str
    reason: str


def cut_segments(
    index: PacketIndex,
    seconds: float,
    frames: int,
    stride: int | None = None,
    fps: float | None = None,
    allow_sequential: bool = False,
    videos: Sequence[int] | None = None,
) -> tuple[SegmentTable, list[Unusable]]:
    """Cut the videos of an index into segments of `seconds`, by time stamps.

    A last piece shorter than half a segment joins its neighbour, so that a segment lasts between half and one
    and a half times `seconds`; a video shorter than that is one segment. Where a video has a hole in time,
    the next segment begins behind the hole.

    Args:
        index: the packet index.
        seconds: length of a segment, above 0.
        frames, stride, fps: shape of a clip as in clip_frames; a video too short for one clip is left out.
        allow_sequential: take videos without random access too; every clip of theirs is decoded from the
            start of the file.
        videos: numbers of the videos to cut; all of the index by default.

    Returns:
        The segments, and the videos left out, each with the reason. None is left out in silence: the caller
        reports the list.

    Raises:
        ValueError: `seconds` is not above 0, or no video is usable.
    """
    if not (np.isfinite(seconds) and seconds > 0):
        raise ValueError(f"segment length is {seconds} s; it must be above 0")
    table = index.videos
    unusable: list[Unusable] = []
    used: list[int] = []
    cuts: list[NDArray[np.int64]] = []
    for video in range(len(index)) if videos is None else videos:
        reason = refusal(index, video, frames, stride, fps, allow_sequential)
        if reason is not None:
            unusable.append(Unusable(video, table.path[video], reason))
            continue
        used.append(video)
        cuts.append(cut_positions(index, video, seconds, 0, int(table.frame_count[video])))
    if not used:
        raise ValueError(_nothing_usable(index, unusable))
    counts = [len(cut) - 1 for cut in cuts]
    segments = SegmentTable(
        video=np.repeat(np.array(used, np.int32), counts),
        start=np.concatenate([cut[:-1] for cut in cuts]),
        end=np.concatenate([cut[1:] for cut in cuts]),
    )
    return segments, unusable


def cut_positions(index: PacketIndex, video: int, seconds: float, first: int, end: int) -> NDArray[np.int64]:
    """Display positions, int64 [segments + 1], at which frames [first, end) of a video are cut, by time
    stamps, into pieces of `seconds`, as cut_segments does it; the first is `first`, the last `end`."""
    table = index.videos
    ticks = seconds * int(table.time_base_den[video]) / int(table.time_base_num[video])
    stack, frame_ticks = int(table.stack[video]), int(table.frame_ticks[video])
    pts, display = index.pts[index.packets(video)], index.frames(video)
    found: NDArray[np.int64] = _cut(pts, display, stack, frame_ticks, ticks, first, end)
    return found


def refusal(
    index: PacketIndex,
    video: int,
    frames: int,
    stride: int | None,
    fps: float | None,
    allow_sequential: bool,
) -> str | None:
    """Why no clip can be drawn from a video, or None."""
    table = index.videos
    status = int(table.status[video])
    if status == SEQUENTIAL and not allow_sequential:
        return f"no random access: {table.reason[video]}; or set data.sequential"
    if status not in (OK, SEQUENTIAL):
        return f"status {STATUS_NAMES[status]} in the index: {table.reason[video]}"
    count = int(table.frame_count[video])
    if count == 0:
        return "the index knows no frame of it"
    try:
        clip_frames(index, video, 0, count, 0.0, frames, stride=stride, fps=fps)
    except ClipTooLong as error:
        return str(error).removeprefix(f"{table.path[video]}: ")
    return None


def _nothing_usable(index: PacketIndex, unusable: list[Unusable]) -> str:
    shown = "".join(f"\n  {entry.path}: {entry.reason}" for entry in unusable[:5])
    more = f"\n  and {len(unusable) - 5} more" if len(unusable) > 5 else ""
    return (
        f"{index.path}: none of its {len(index)} videos gives a clip.{shown}{more}\n"
        f"Index other videos, or shorten the clip (frames, stride, fps)."
    )


@numba.njit(cache=True)
def _cut(pts, display, stack, frame_ticks, ticks, begin, end):
    """As cut_positions has it.

    pts int64 [packets], display uint32 [frames]; stack, frame_ticks: as in VideoInfo; ticks: length of a
    segment in units of the time base; begin < end.
    """
    cuts = [begin]
    while True:
        # The first frame not before the end of this segment, half a tick allowed for rounding.
        target = frame_time(pts, display, 0, 0, stack, frame_ticks, cuts[-1]) + ticks - 0.5
        low, high = cuts[-1] + 1, end
        while low < high:
            middle = (low + high) // 2
            if frame_time(pts, display, 0, 0, stack, frame_ticks, middle) < target:
                low = middle + 1
            else:
                high = middle
        if low >= end:
            break
        cuts.append(low)
    first = frame_time(pts, display, 0, 0, stack, frame_ticks, begin)
    last = frame_time(pts, display, 0, 0, stack, frame_ticks, end - 1)
    step = (last - first) / (end - begin - 1) if end - begin > 1 else 0.0
    rest = last - frame_time(pts, display, 0, 0, stack, frame_ticks, cuts[-1])
    if len(cuts) > 1 and rest + step < 0.5 * ticks:
        cuts.pop()
    cuts.append(end)
    return np.array(cuts)
