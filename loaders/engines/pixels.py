"""From FFmpeg's frames to the pictures of a clip: RGB, or planes that a GPU will convert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from surgrec.kernels.colour import Colour
from surgrec.loaders.engines.base import BadClip

# Formats whose planes go to the GPU as they are, and their depth.
PLANAR: Final = {
    f"yuv{'j' if full else ''}{name}p{'' if depth == 8 else f'{depth}le'}": depth
    for name in ("420", "422", "444")
    for depth in (8, 10, 12)
    for full in ((False, True) if depth == 8 else (False,))
}
# FFmpeg's numbers and the index's names (libavutil/pixfmt.h); what is unspecified, swscale takes for BT.601.
MATRICES: Final = {
    1: "bt709",
    2: "bt601",
    4: "fcc",
    5: "bt601",
    6: "bt601",
    7: "smpte240m",
    9: "bt2020",
    10: "bt2020",
}
MATRIX_NAMES: Final = {
    "": "bt601",
    "bt709": "bt709",
    "fcc": "fcc",
    "bt470bg": "bt601",
    "smpte170m": "bt601",
    "smpte240m": "smpte240m",
    "bt2020nc": "bt2020",
    "bt2020c": "bt2020",
}
FULL_RANGE: Final = 2

Layout = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and type of an array."""


class ClipPictures(Protocol):
    """Takes the frames of one clip."""

    def add(self, frame: VideoFrame, rows: list[int]) -> None:
        """The decoded picture that these rows show, each at its place.

        Raises BadClip where its size is not the clip's.
        """

    def finish(self) -> NDArray[np.uint8] | PlaneArrays | None:
        """The clip once all rows are there; None where no frame came."""


class PictureWriter(Protocol):
    """Makes pictures of frames. One per thread: it may hold FFmpeg's scaler."""

    def start(self, places: Sequence[int], stack: int, rotation: int) -> ClipPictures:
        """A clip that is turned by `rotation` degrees clockwise (0, 90, 180 or 270).

        places: for each row which of the `stack` frames in its picture it shows, from 0 at the top.
        """


class RgbWriter:
    """Converts frames to upright RGB in memory, the way FFmpeg does.

    The matrix and range are the stream's own; an unspecified matrix is what FFmpeg takes it for.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def start(self, places: Sequence[int], stack: int, rotation: int) -> ClipPictures:
        return _RgbClip(self, places, stack, rotation)

    def convert(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] in FFmpeg's memory, not turned; valid while `frame` or the result is held."""
        # One thread: FFmpeg would start one per core for every frame otherwise.
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        return plane_lines(rgb.planes[0], rgb.height, rgb.width * 3, np.uint8).reshape(
            rgb.height, rgb.width, 3
        )


class _RgbClip:
    def __init__(self, writer: RgbWriter, places: Sequence[int], stack: int, rotation: int) -> None:
        self._writer = writer
        self._places = places
        self._stack = stack
        self._rotation = rotation
        self._clip: NDArray[np.uint8] | None = None

    def add(self, frame: VideoFrame, rows: list[int]) -> None:
        for place, shown in by_place(rows, self._places):
            part = frame if self._stack == 1 else part_of(frame, place, self._stack)
            image = self._writer.convert(part)
            if self._rotation:
                image = np.rot90(image, -self._rotation // 90)
            if self._clip is None:
                self._clip = np.empty((len(self._places), *image.shape), np.uint8)
            _same_size(self._clip.shape[1:3], image.shape[:2])
            for row in shown:
                self._clip[row] = image

    def finish(self) -> NDArray[np.uint8] | None:
        return self._clip


@dataclass(frozen=True, slots=True)
class PlaneArrays:
    """The pictures of a clip as FFmpeg left them, in memory.

    arrays: three of uint8 or uint16 [K, h, w] (Y, Cb, Cr), or one of uint8 [K, H, W, 3] (RGB). rows, colour,
    rotation: as Planes has them.
    """

    arrays: tuple[NDArray[Any], ...]
    rows: tuple[int, ...]
    colour: Colour
    rotation: int

    @property
    def height(self) -> int:
        """Of the upright picture."""
        return int(self.arrays[0].shape[2 if self.rotation % 180 else 1])

    @property
    def width(self) -> int:
        """Of the upright picture."""
        return int(self.arrays[0].shape[1 if self.rotation % 180 else 2])


class PlaneWriter:
    """Keeps the planes of frames as they are; formats that are no YUV of 8, 10 or 12 bit become RGB.

    allocate: called once for a clip with the arrays' (shape, dtype) wanted; gives the arrays. Those of the
    clip before are no longer needed then.
    """

    def __init__(self, allocate: Callable[[Sequence[Layout]], list[NDArray[Any]]]) -> None:
        self.allocate = allocate
        self.rgb = RgbWriter()

    def start(self, places: Sequence[int], stack: int, rotation: int) -> ClipPictures:
        return _PlaneClip(self, places, stack, rotation)


class _PlaneClip:
    def __init__(self, writer: PlaneWriter, places: Sequence[int], stack: int, rotation: int) -> None:
        self._writer = writer
        self._rows = [-1] * len(places)
        self._places = places
        self._stack = stack
        self._rotation = rotation
        self._colour: Colour | None = None
        self._arrays: list[NDArray[Any]] = []
        self._count = 0

    def add(self, frame: VideoFrame, rows: list[int]) -> None:
        colour, whole = self._images(frame)
        for place, shown in by_place(rows, self._places):
            self._add(colour, [_band(image, place, self._stack) for image in whole], shown)

    def _add(self, colour: Colour, images: list[NDArray[Any]], rows: list[int]) -> None:
        if self._colour is None:
            self._colour = colour
            layouts = [((len(self._rows), *image.shape), image.dtype) for image in images]
            self._arrays = self._writer.allocate(layouts)
        else:
            _same_size(self._arrays[0].shape[1:3], images[0].shape[:2])
            if colour != self._colour or images[-1].shape != self._arrays[-1].shape[1:]:
                raise BadClip("the picture changes its colour format within the clip; cut the file there")
        for array, image in zip(self._arrays, images, strict=True):
            array[self._count] = image
        for row in rows:
            self._rows[row] = self._count
        self._count += 1

    def finish(self) -> PlaneArrays | None:
        if self._colour is None:
            return None
        arrays = tuple(array[: self._count] for array in self._arrays)
        return PlaneArrays(arrays, tuple(self._rows), self._colour, self._rotation)

    def _images(self, frame: VideoFrame) -> tuple[Colour, list[NDArray[Any]]]:
        """The frame's planes, or its RGB, in FFmpeg's memory."""
        name = frame.format.name
        matrix = MATRICES.get(int(frame.colorspace))
        depth = PLANAR.get(name)
        if depth is None or matrix is None:
            return Colour("rgb", full_range=True), [self._writer.rgb.convert(frame)]
        full = name.startswith("yuvj") or int(frame.color_range) == FULL_RANGE
        kind: Any = np.uint8 if depth == 8 else np.uint16
        return Colour(matrix, full, depth), [plane_lines(p, p.height, p.width, kind) for p in frame.planes]


def plane_lines(plane: Any, height: int, width: int, kind: Any) -> NDArray[Any]:
    """[height, width] view of a plane of FFmpeg's."""
    stride = abs(plane.line_size)
    lines = np.frombuffer(memoryview(plane), kind, count=height * stride // np.dtype(kind).itemsize)
    lines = lines.reshape(height, -1)
    if plane.line_size < 0:  # stored bottom-up
        lines = lines[::-1]
    return lines[:, :width]


def by_place(rows: list[int], places: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The rows that a picture gives by their place in it, from the top."""
    found: dict[int, list[int]] = {}
    for row in rows:
        found.setdefault(places[row], []).append(row)
    return sorted(found.items())


def _band(image: NDArray[Any], place: int, stack: int) -> NDArray[Any]:
    """The frame at a place in a stacked picture, [H, ...], or in one of its planes. A view."""
    height = len(image) // stack
    if height * stack != len(image):
        raise BadClip(f"a picture of {len(image)} lines does not hold {stack} frames; transcode it again")
    return image[place * height : (place + 1) * height]


def part_of(frame: VideoFrame, place: int, stack: int) -> VideoFrame:
    """The frame at a place in a stacked picture of yuv420p, as a picture of its own."""
    if frame.format.name != "yuv420p" or frame.height % (2 * stack):
        raise BadClip(
            f"a picture of {frame.format.name} and {frame.height} lines does not hold {stack} frames; "
            "transcode it again"
        )
    part = VideoFrame(frame.width, frame.height // stack, frame.format.name)
    part.colorspace, part.color_range = frame.colorspace, frame.color_range
    for source, target in zip(frame.planes, part.planes, strict=True):
        band = _band(plane_lines(source, source.height, source.width, np.uint8), place, stack)
        plane_lines(target, target.height, target.width, np.uint8)[:] = band
    return part


def _same_size(clip: tuple[int, ...], image: tuple[int, ...]) -> None:
    if clip != image:
        raise BadClip(
            f"the picture changes its size within the clip, from {clip[1]}x{clip[0]} to"
            f" {image[1]}x{image[0]}; cut the file where it does"
        )
