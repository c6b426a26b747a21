"""What a video shows, as numbers that survive re-encoding: low spatial frequencies, averaged over quarter seconds.

A sample is the mean of all that is on display within a quarter of a second, so that copies at another frame
rate have the same samples, and those of a trimmed copy lie between them: averages over time are smooth enough
to be interpolated. Each is kept as its lowest DCT coefficients (the whole picture, upright), in which a mirrored
picture is a change of sign of every other column, and a cropped one nearly a linear map.
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
"""float16 [S, SIDE * SIDE]: sample s is of the time from s / RATE on; vertical frequencies outside, horizontal
ones inside; in levels, such that a picture of one level has that level as its first coefficient."""


def clock_of(index: PacketIndex, video: int) -> NDArray[np.float64]:
    """float64 [frames + 1]: when each frame comes on display, in seconds from the first one, and when the last
    one is gone. Holes are LONGEST_STEP long at most, and time never runs backwards."""
    table = index.videos
    seconds = index.frame_pts(video) * (int(table.time_base_num[video]) / int(table.time_base_den[video]))
    steps = np.clip(np.diff(seconds), 0.0, LONGEST_STEP)
    last = float(np.median(steps)) if len(steps) else 1.0 / RATE
    return np.concatenate([[0.0], np.cumsum(np.append(steps, last))])


def fingerprint(frames: Iterable[SmallFrame], clock: NDArray[np.float64], rotation: int) -> Samples:
    """The samples of a video.

    frames: in order, of one size, not turned. clock: as clock_of has it. rotation: degrees by which the stored
    picture is to be turned clockwise. Where frames are missing, the one before is taken to stay.
    """
    count = max(1, round(float(clock[-1]) * RATE))
    samples = np.zeros((count, SIDE * SIDE), np.float16)
    number, filled = 0, 0.0
    total: NDArray[np.float32] | None = None
    for picture, begin, end in _on_display(frames, clock):
        if total is None:
            total = np.zeros(picture.shape, np.float32)
        at = begin
        while at < end and number < count:
            part = min(end, number + 1.0) - at
            total += picture * np.float32(part)
            filled += part
            at += part
            if at >= number + 1.0 - 1e-9:
                samples[number] = _coefficients(total / np.float32(filled), rotation)
                total[:] = 0
                number, filled = number + 1, 0.0
    if total is not None and number < count:
        if filled > 0:
            samples[number] = _coefficients(total / np.float32(filled), rotation)
            number += 1
        samples[number:] = samples[number - 1] if number else 0
    return samples


def _on_display(
    frames: Iterable[SmallFrame], clock: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.uint8], float, float]]:
    """Green of each frame, which is nearly its luma, and from when until when it is seen, in samples."""
    before: SmallFrame | None = None
    begin = 0.0
    for frame in frames:
        if before is not None:
            end = float(clock[frame.position]) * RATE
            yield before.pixels[..., 1], begin, end
            begin = end
        before = frame
    if before is not None:
        yield before.pixels[..., 1], begin, float(clock[-1]) * RATE


def _coefficients(picture: NDArray[np.float32], rotation: int) -> NDArray[np.float32]:
    picture = np.rot90(picture, -rotation // 90)
    height, width = picture.shape
    return (dct_rows(height) @ picture @ dct_rows(width).T).ravel()


@cache
def dct_rows(size: int) -> NDArray[np.float32]:
    """float32 [SIDE, size]: rows of the DCT-II, of unit mean square."""
    place = (np.arange(size) + 0.5) / size
    rows = np.cos(np.pi * np.arange(SIDE)[:, None] * place) * np.where(np.arange(SIDE) > 0, 2**0.5, 1)[:, None]
    return (rows / size).astype(np.float32)
