"""Frames of a proxy, one above the other in one coded picture (loaders/stacking.py has the layout)."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Final

import av
import numpy as np

from surgrec.loaders.stacking import PIX_FMT
from surgrec.transcoding.frame_grid import FrameGrid
from surgrec.transcoding.geometry import Geometry

MAX_LINES: Final = {"h264": 4096, "hevc": 8192}
"""Lines that NVDEC decodes in a picture."""


class StackError(ValueError):
    """Frames of a source that cannot be stacked as asked; the message says why, and what helps."""


def check_lines(geometry: Geometry, stack: int, codec: str) -> None:
    """Raises StackError where a picture of `stack` frames has more lines than decoders take."""
    lines, most = geometry.out_height * stack, MAX_LINES[codec]
    if stack > 1 and lines > most:
        other = "" if codec == "hevc" else ", or --codec hevc"
        raise StackError(
            f"{stack} stacked frames of {geometry.out_width}x{geometry.out_height} have {lines} lines; of "
            f"{codec}, {most} can be decoded. Give a smaller --stack or --short-side{other}."
        )


def frame_seconds(grid: FrameGrid, source_rate: float) -> Fraction:
    """Seconds from each frame of a grid to the next. source_rate: frames per second of the source.

    Raises StackError where they are not the same throughout: the time of a frame within its picture could not
    be told.
    """
    steps = np.diff(grid.times)
    if len(steps) == 0:
        return max(1, round(1 / (grid.rate * grid.time_base))) * grid.time_base
    if (steps != steps[0]).any():
        raise StackError(
            "stacked frames must be evenly spaced, and the source's own times, which are kept, are not: give "
            f"a --rate that is not above its {source_rate:.4g} frames/s, or --stack 1"
        )
    return int(steps[0]) * grid.time_base


class Stacker:
    """Gathers frames, and gives a picture for each `stack` of them."""

    def __init__(self, stack: int) -> None:
        self._stack = stack
        self._picture: Any = None
        self._count = 0

    def add(self, frame: Any) -> Any:
        """The picture that this av.VideoFrame completes, or None. Frames are yuv420p, of one size."""
        if self._stack == 1:
            return frame
        if self._picture is None:
            self._picture = av.VideoFrame(frame.width, frame.height * self._stack, PIX_FMT)
            self._picture.colorspace, self._picture.color_range = frame.colorspace, frame.color_range
        for source, target in zip(frame.planes, self._picture.planes, strict=True):
            lines = _lines(target)[self._count * source.height : (self._count + 1) * source.height]
            lines[:, : source.width] = _lines(source)[:, : source.width]
        self._count += 1
        if self._count < self._stack:
            return None
        picture, self._picture, self._count = self._picture, None, 0
        return picture

    def rest(self) -> Any:
        """The last picture, filled up with its last frame; None where no frame is left."""
        if self._picture is None:
            return None
        for plane in self._picture.planes:
            lines = _lines(plane)
            height = plane.height // self._stack
            end = self._count * height
            lines[end:] = np.tile(lines[end - height : end], (self._stack - self._count, 1))
        return self._picture


def _lines(plane: Any) -> Any:
    """uint8 [height, line_size] view of a plane."""
    lines = np.frombuffer(memoryview(plane), np.uint8)[: plane.height * plane.line_size]
    return lines.reshape(plane.height, plane.line_size)
