"""From FFmpeg's frames to the pictures of a clip: RGB on the CPU, or planes on a GPU."""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from surgrec.kernels.planes import Colour, Planes
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


class ClipPictures(Protocol):
    """Takes the frames of one clip."""

    def add(self, frame: VideoFrame, rows: list[int]) -> None:
        """The frame of these rows. Raises BadClip where its size is not the clip's."""

    def finish(self) -> NDArray[np.uint8] | Planes | None:
        """The clip once all rows are there; None where no frame came."""


class PictureWriter(Protocol):
    """Makes pictures of frames. One per thread: it may hold FFmpeg's scaler."""

    def start(self, length: int, rotation: int) -> ClipPictures:
        """A clip of `length` rows that is turned by `rotation` degrees clockwise (0, 90, 180 or 270)."""


class RgbWriter:
    """Converts frames to upright RGB in memory, the way FFmpeg does.

    The matrix and range are the stream's own; an unspecified matrix is what FFmpeg takes it for.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def start(self, length: int, rotation: int) -> ClipPictures:
        return _RgbClip(self, length, rotation)

    def convert(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] in FFmpeg's memory, not turned; valid while `frame` or the result is held."""
        # One thread: FFmpeg would start one per core for every frame otherwise.
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        return _lines(rgb.planes[0], rgb.height, rgb.width * 3, np.uint8).reshape(rgb.height, rgb.width, 3)


class _RgbClip:
    def __init__(self, writer: RgbWriter, length: int, rotation: int) -> None:
        self._writer = writer
        self._length = length
        self._rotation = rotation
        self._clip: NDArray[np.uint8] | None = None

    def add(self, frame: VideoFrame, rows: list[int]) -> None:
        image = self._writer.convert(frame)
        if self._rotation:
            image = np.rot90(image, -self._rotation // 90)
        if self._clip is None:
            self._clip = np.empty((self._length, *image.shape), np.uint8)
        _same_size(self._clip.shape[1:3], image.shape[:2])
        for row in rows:
            self._clip[row] = image

    def finish(self) -> NDArray[np.uint8] | None:
        return self._clip


class PlaneWriter:
    """Brings the planes of frames to a GPU as they are; formats that are no 4:2:x YUV go as RGB."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rgb = RgbWriter()
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, length: int, rotation: int) -> ClipPictures:
        return _PlaneClip(self, length, rotation)


class _PlaneClip:
    def __init__(self, writer: PlaneWriter, length: int, rotation: int) -> None:
        self._writer = writer
        self._rows = [-1] * length
        self._rotation = rotation
        self._colour: Colour | None = None
        self._pictures: list[list[NDArray[Any]]] = []

    def add(self, frame: VideoFrame, rows: list[int]) -> None:
        colour, planes = self._planes(frame)
        if self._colour is None:
            self._colour = colour
        else:
            _same_size(self._pictures[0][0].shape, planes[0].shape)
            if colour != self._colour or planes[1].shape != self._pictures[0][1].shape:
                raise BadClip(
                    f"the picture changes its format within the clip, from {self._colour} to {colour}"
                )
        for row in rows:
            self._rows[row] = len(self._pictures)
        self._pictures.append(planes)

    def finish(self) -> Planes | None:
        if self._colour is None:
            return None
        if self._writer.stream is None:
            planes = self._upload()
        else:
            with torch.cuda.stream(self._writer.stream):
                planes = self._upload()
            self._writer.stream.synchronize()
        return Planes(planes, tuple(self._rows), self._colour, self._rotation)

    def _upload(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first, second, third = (
            torch.from_numpy(np.stack([picture[k] for picture in self._pictures])).to(self._writer.device)
            for k in range(3)
        )
        return first, second, third

    def _planes(self, frame: VideoFrame) -> tuple[Colour, list[NDArray[Any]]]:
        """The frame's planes, in memory of their own: FFmpeg uses its buffers again."""
        name = frame.format.name
        matrix = MATRICES.get(int(frame.colorspace))
        depth = PLANAR.get(name)
        if depth is None or matrix is None:
            image = self._writer.rgb.convert(frame)
            return Colour("rgb", full_range=True), [image[:, :, k].copy() for k in range(3)]
        full = name.startswith("yuvj") or int(frame.color_range) == FULL_RANGE
        kind: Any = np.uint8 if depth == 8 else np.uint16
        planes = [_lines(p, p.height, p.width, kind).copy() for p in frame.planes]
        return Colour(matrix, full, depth), planes


def _lines(plane: Any, height: int, width: int, kind: Any) -> NDArray[Any]:
    """[height, width] view of a plane of FFmpeg's."""
    stride = abs(plane.line_size)
    lines = np.frombuffer(memoryview(plane), kind, count=height * stride // np.dtype(kind).itemsize)
    lines = lines.reshape(height, -1)
    if plane.line_size < 0:  # stored bottom-up
        lines = lines[::-1]
    return lines[:, :width]


def _same_size(clip: tuple[int, ...], image: tuple[int, ...]) -> None:
    if clip != image:
        raise BadClip(
            f"the picture changes its size within the clip, from {clip[1]}x{clip[0]} to"
            f" {image[1]}x{image[0]}; cut the file where it does"
        )
