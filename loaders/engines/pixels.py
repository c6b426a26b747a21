"""From decoded frames to rows of one RGB array, the way FFmpeg converts them."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from surgrec.loaders.engines.base import BadClip


class PixelWriter:
    """Converts frames to upright RGB. One per thread: it holds FFmpeg's scaler.

    The matrix and range are the stream's own; an unspecified matrix is what FFmpeg takes it for.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def write(
        self, frame: VideoFrame, clip: NDArray[np.uint8] | None, rows: list[int], length: int, rotation: int
    ) -> NDArray[np.uint8]:
        """Writes the frame into clip[rows], uint8 [length, H, W, 3], and returns clip; None makes it.

        rotation: 0, 90, 180 or 270 degrees clockwise. Raises BadClip where the frame's size is not the
        clip's.
        """
        # One thread: FFmpeg would start one per core for every frame otherwise.
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        plane = rgb.planes[0]
        height, width = rgb.height, rgb.width
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(height, abs(plane.line_size))
        if plane.line_size < 0:  # stored bottom-up
            lines = lines[::-1]
        image = lines[:, : width * 3].reshape(height, width, 3)
        if rotation:
            image = np.rot90(image, -rotation // 90)
        if clip is None:
            clip = np.empty((length, *image.shape), np.uint8)
        elif clip.shape[1:] != image.shape:
            raise BadClip(
                f"the picture changes its size within the clip, from {clip.shape[2]}x{clip.shape[1]} to"
                f" {image.shape[1]}x{image.shape[0]}; cut the file where it does"
            )
        for row in rows:
            clip[row] = image
        return clip
