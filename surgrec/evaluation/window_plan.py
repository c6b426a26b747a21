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
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from surgrec.evaluation.extraction_plan import SLACK, seconds_of
from surgrec.evaluation.feature_models import Choose
from surgrec.evaluation.features import FeatureError
from surgrec.loaders.clip_plan import ClipRequest, ClipTooLong, clip_frames
from surgrec.loaders.packet_index import KEY, OPEN_KEY, PacketIndex
from surgrec.loaders.picture_bytes import picture_bytes

LEAST: Final = 32
"""Frames of a piece before it ends at a key frame: fewer would cost more in the making than in decoding."""
HOLE: Final = 1.0
"""Seconds between frames, if they are more than five frames', that no window reaches over."""
LAST: Final = 1 - 1e-9
"""Position of the last clip of a segment."""


@dataclass(frozen=True, slots=True)
class Window:
    """frames: display positions of its clip. start, end: seconds [start, end) that the clip stands for,
    counted from the first frame of the video on."""

    frames: tuple[int, ...]
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """windows: in the order of their times. holes: seconds [start, end) in which the video has no frame.
    seconds: from the first frame's start to the last one's end, where that lasts as long as most do."""

    windows: list[Window]
    holes: list[tuple[float, float]]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Run:
    """Frames [first, end) of a video without a hole in time. seconds: float64 [F], of all frames of the
    video. step: seconds that a frame lasts."""

    first: int
    end: int
    seconds: NDArray[np.float64]
    step: float

    def window(self, frames: tuple[int, ...], first: int, last: int) -> Window:
        """To the microsecond: times in binary would give ends like 4.279999999999999."""
        start, end = float(self.seconds[first]), float(self.seconds[last]) + self.step
        return Window(frames, round(start, 6), round(end, 6))


def plan_windows(
    index: PacketIndex,
    video: int,
    geometry: dict[str, Any],
    choose: Choose,
    every: float,
    length: float | None,
) -> WindowPlan:
    """A window each `every` seconds, and one that ends with the video, or before a hole in it.

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
    steps = np.diff(seconds)
    step = float(np.median(steps)) if len(steps) else float(index.videos.duration[video])
    cuts = np.flatnonzero(steps > max(HOLE, 5 * step)) + 1
    bounds = [0, *cuts.tolist(), len(seconds)]
    # The first frame at or behind each multiple of `every`, and the first behind a hole.
    grid = np.flatnonzero(np.diff(np.floor((seconds + SLACK) / every), prepend=-1) > 0)
    starts = np.unique(np.append(grid, bounds[:-1]))
    windows: list[Window] = []
    for first, end in pairwise(bounds):
        run = _Run(first, end, seconds, step)
        for start in starts[(starts >= first) & (starts < end)].tolist():
            if length is None:
                window = _clip_at(index, video, geometry, run, start)
            else:
                window = _span_at(index, video, choose, run, start, length)
            if window is None:
                window = run.window(choose(index, video, first, end, 0, 1), first, end - 1)
            if not windows or window.frames != windows[-1].frames:
                windows.append(window)
            if window.end >= seconds[end - 1] + step - SLACK:
                break
    holes = [(round(float(seconds[at - 1]) + step, 6), round(float(seconds[at]), 6)) for at in cuts.tolist()]
    return WindowPlan(windows, holes, round(float(seconds[-1]) + step, 6))


def _clip_at(
    index: PacketIndex, video: int, geometry: dict[str, Any], run: _Run, start: int
) -> Window | None:
    """The clip that starts at a frame, or the last one that fits; None where the run is too short."""
    shape: dict[str, Any] = {"stride": geometry.get("stride"), "fps": geometry.get("fps"), "within": True}
    for first, position in ((start, 0.0), (run.first, LAST)):
        with suppress(ClipTooLong):
            frames = clip_frames(index, video, first, run.end, position, geometry["frames"], **shape)
            return run.window(frames, frames[0], frames[-1])
    return None


def _span_at(
    index: PacketIndex, video: int, choose: Choose, run: _Run, start: int, length: float
) -> Window | None:
    """As _clip_at, of a window of `length` seconds."""
    until = float(run.seconds[run.end - 1]) + run.step
    if run.seconds[start] + length > until + SLACK:
        if run.seconds[run.first] + length > until + SLACK:
            return None
        start = int(np.searchsorted(run.seconds, until - length - SLACK))
    end = max(start + 1, int(np.searchsorted(run.seconds, run.seconds[start] + length - SLACK)))
    return run.window(choose(index, video, start, end, 0, 1), start, end - 1)


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
