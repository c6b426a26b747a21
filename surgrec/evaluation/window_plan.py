"""Windows that are slid over a video, and the pieces in which their frames are decoded.

Windows overlap, and decoding starts at key frames. So the frames that any window wants, *, are cut into
pieces at key frames, K, and each is decoded once:

    window 0    *  *  *  *
    window 1          *  *  *  *
    window 2                *  *  *  *
    video       K........|...K......|..
    pieces      [*  *  *  *] [*  *  *  *]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from surgrec.evaluation.extraction import SLACK, seconds_of
from surgrec.evaluation.feature_models import Choose
from surgrec.evaluation.features import FeatureError
from surgrec.loaders.clip_plan import ClipRequest, ClipTooLong, clip_frames
from surgrec.loaders.packet_index import KEY, OPEN_KEY, PacketIndex
from surgrec.loaders.picture_bytes import picture_bytes

LEAST: Final = 32
"""Frames of a piece before it ends at a key frame: fewer would cost more in the making than in decoding."""


@dataclass(frozen=True, slots=True)
class Window:
    """frames: display positions of its clip. start, end: seconds [start, end) that the clip stands for,
    counted from the first frame of the video on."""

    frames: tuple[int, ...]
    start: float
    end: float


def duration_of(index: PacketIndex, video: int) -> float:
    """Seconds from the first frame's start to the last one's end, where that lasts as long as most do."""
    seconds = seconds_of(index, video)
    return float(seconds[-1]) + _frame_seconds(index, video, seconds)


def _frame_seconds(index: PacketIndex, video: int, seconds: NDArray[np.float64]) -> float:
    steps = np.diff(seconds)
    return float(np.median(steps)) if len(steps) else float(index.videos.duration[video])


def plan_windows(
    index: PacketIndex,
    video: int,
    geometry: dict[str, Any],
    choose: Choose,
    every: float,
    length: float | None,
) -> list[Window]:
    """A window each `every` seconds, and one that ends with the video.

    geometry, choose: of the network's clips. length: seconds of a window; None takes those that a clip of the
    network lasts. The clip of a longer window is chosen as extraction does it for a row of that length. A
    video that is shorter than a window is one window.

    Raises FeatureError for an image model without a length: its pictures are spread over any.
    """
    if length is None and "frames" not in geometry:
        raise FeatureError(
            "the network sees pictures, spread over as long a window as one likes: give --window, the seconds"
            " that the clips of its training last"
        )
    seconds = seconds_of(index, video)
    step = _frame_seconds(index, video, seconds)
    count = len(seconds)
    starts = np.searchsorted(seconds, np.arange(0, seconds[-1] + SLACK, every) - SLACK)
    # Where a video has a hole in time, several windows would begin at the frame behind it.
    starts = np.unique(starts[starts < count])
    found: list[Window] = []
    for start in starts.tolist():
        if length is None:
            window = _clip_at(index, video, geometry, start, seconds, step)
        else:
            window = _span_at(index, video, choose, start, length, seconds, step)
        if window is None:
            return [_whole(index, video, choose, seconds, step)]
        if not found or window.frames != found[-1].frames:
            found.append(window)
        if window.frames[0] < start or window.end >= seconds[-1] + step - SLACK:
            break  # it ends with the video
    return found


def _clip_at(
    index: PacketIndex,
    video: int,
    geometry: dict[str, Any],
    start: int,
    seconds: NDArray[np.float64],
    step: float,
) -> Window | None:
    """The clip that starts at a frame, or the last one that fits; None where the video is too short."""
    try:
        frames = clip_frames(
            index,
            video,
            start,
            start + 1,
            0.0,
            geometry["frames"],
            stride=geometry.get("stride"),
            fps=geometry.get("fps"),
        )
    except ClipTooLong:
        return None
    return Window(frames, float(seconds[frames[0]]), float(seconds[frames[-1]]) + step)


def _span_at(
    index: PacketIndex,
    video: int,
    choose: Choose,
    start: int,
    length: float,
    seconds: NDArray[np.float64],
    step: float,
) -> Window | None:
    """As _clip_at, of a window of `length` seconds."""
    whole = float(seconds[-1]) + step
    if length > whole + SLACK:
        return None
    if seconds[start] + length > whole + SLACK:
        start = int(np.searchsorted(seconds, whole - length - SLACK))
    end = max(start + 1, int(np.searchsorted(seconds, seconds[start] + length - SLACK)))
    return Window(
        choose(index, video, start, end, 0, 1), float(seconds[start]), float(seconds[end - 1]) + step
    )


def _whole(
    index: PacketIndex, video: int, choose: Choose, seconds: NDArray[np.float64], step: float
) -> Window:
    frames = choose(index, video, 0, len(seconds), 0, 1)
    return Window(frames, 0.0, float(seconds[-1]) + step)


def pieces_of(
    index: PacketIndex, video: int, windows: Sequence[Window], device: torch.device, most_bytes: int
) -> list[tuple[int, ...]]:
    """The frames that any of the windows wants, each in one piece; pieces are in order.

    A piece ends before a key frame, or where its pictures take most_bytes: the next one is then decoded from
    the same key frame.
    """
    if not windows:
        return []
    wanted = np.unique(np.concatenate([window.frames for window in windows]))
    flags = index.flags[index.packets(video)][index.frames(video)]
    keys = np.cumsum(flags & (KEY | OPEN_KEY) != 0)[wanted]
    frame = picture_bytes(index, ClipRequest(0, video, (0,)), device)
    most = max(1, most_bytes // max(1, frame))
    pieces, first = [], 0
    for at in range(1, len(wanted)):
        if at - first >= most or (at - first >= min(LEAST, most) and keys[at] > keys[at - 1]):
            pieces.append(tuple(wanted[first:at].tolist()))
            first = at
    return [*pieces, tuple(wanted[first:].tolist())]
