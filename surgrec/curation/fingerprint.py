"""What a video shows, as numbers that survive re-encoding: low spatial frequencies, averaged over quarter
seconds.

A sample is the mean of all that is on display within a quarter of a second, so that copies at another frame
rate have the same samples, and those of a trimmed copy lie between them: averages over time are smooth enough
to be interpolated. Each is kept as its lowest DCT coefficients (the whole picture, upright), in which a
mirrored picture is a change of sign of every other column, and a cropped one nearly a linear map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from surgrec.curation.frames_in_order import SmallFrame
from surgrec.loaders.packet_index import PacketIndex

RATE: Final = 4
"""Samples a second."""
SIDE: Final = 10
"""Frequencies of each direction that are kept, the mean included."""
LONGEST_STEP: Final = 2.0
"""Seconds that a frame is on display, at most: holes in the time stamps are no longer than this."""

Samples = NDArray[np.float16]
"""float16 [S, SIDE * SIDE]: sample s is of the time from s / RATE on; vertical frequencies outside,
horizontal ones inside; in levels, such that a picture of one level has that level as its first
coefficient."""


def clock_of(index: PacketIndex, video: int) -> NDArray[np.float64]:
    """float64 [frames + 1]: when each frame comes on display, in seconds from the first one, and when the
    last one is gone. Holes are LONGEST_STEP long at most, and time never runs backwards."""
    table = index.videos
    seconds = index.frame_pts(video) * (int(table.time_base_num[video]) / int(table.time_base_den[video]))
    steps = np.clip(np.diff(seconds), 0.0, LONGEST_STEP)
    last = float(np.median(steps)) if len(steps) else 1.0 / RATE
    return np.concatenate([[0.0], np.cumsum(np.append(steps, last))])


class Printer:
    """Makes the samples of one video from its frames while something else looks at them."""

    def __init__(self, clock: NDArray[np.float64], rotation: int) -> None:
        """clock: as clock_of has it. rotation: degrees by which the picture is turned clockwise for
        display."""
        self._times = clock * RATE
        self._rotation = rotation
        self._samples = np.zeros((max(1, round(float(self._times[-1]))), SIDE * SIDE), np.float16)
        self._number, self._filled, self._since = 0, 0.0, 0.0
        self._last: NDArray[np.uint8] | None = None
        self._total = np.zeros((1, 1), np.float32)

    def passing(self, frames: Iterable[SmallFrame]) -> Iterator[SmallFrame]:
        """The frames as they are: in order, of one size, not turned."""
        for frame in frames:
            self._show(float(self._times[frame.position]))
            # Green is nearly luma, and costs nothing.
            self._last = frame.pixels[..., 1]
            yield frame

    def samples(self) -> Samples:
        """All samples, once the frames have passed. Where some are missing, the one before is taken to stay;
        all 0 if none came."""
        self._show(float(self._times[-1]))
        if self._number < len(self._samples):
            if self._filled > 0:
                self._close()
            if self._number:
                self._samples[self._number :] = self._samples[self._number - 1]
        return self._samples

    def _show(self, until: float) -> None:
        """Adds the last frame for the time that it was on display."""
        if self._last is None:
            return  # the first frame is taken to have been there from the start
        if self._total.shape != self._last.shape:
            self._total = np.zeros(self._last.shape, np.float32)
        while self._since < until and self._number < len(self._samples):
            part = min(until, self._number + 1.0) - self._since
            self._total += self._last * np.float32(part)
            self._filled += part
            self._since += part
            if self._since >= self._number + 1.0 - 1e-9:
                self._close()

    def _close(self) -> None:
        self._samples[self._number] = _coefficients(self._total / np.float32(self._filled), self._rotation)
        self._total[:] = 0
        self._number, self._filled = self._number + 1, 0.0


def _coefficients(picture: NDArray[np.float32], rotation: int) -> NDArray[np.float32]:
    picture = np.rot90(picture, -rotation // 90)
    height, width = picture.shape
    found: NDArray[np.float32] = (dct_rows(height) @ picture @ dct_rows(width).T).ravel().astype(np.float32)
    return found


@cache
def dct_rows(size: int) -> NDArray[np.float32]:
    """float32 [SIDE, size]: rows of the DCT-II, of unit mean square."""
    place = (np.arange(size) + 0.5) / size
    rows = (
        np.cos(np.pi * np.arange(SIDE)[:, None] * place) * np.where(np.arange(SIDE) > 0, 2**0.5, 1)[:, None]
    )
    return (rows / size).astype(np.float32)
