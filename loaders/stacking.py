"""Stacked proxies: several frames in one coded picture, one above the other.

    picture 0    frame 0    picture 1    frame 4    picture 2    frame 8     of 10 frames, 4 in a picture;
                 frame 1                 frame 5                 frame 9     what repeats the last one is
                 frame 2                 frame 6                 (frame 9)   no frame of the video
                 frame 3                 frame 7                 (frame 9)

A decoder's cost for each picture is then shared by its frames. Nothing in the stream says that it is stacked:
the proxy's own tag does (loaders/proxy_tag.py), and a tag that does not fit the stream is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from surgrec.loaders.video_stream import UnusableVideoError, VideoStream

MAX_STACK: Final = 16
PIX_FMT: Final = "yuv420p"
BLOCK: Final = 16
"""Heights of frames are multiples of it: no block of the codec holds lines of two frames, none is cropped."""
REMEDY: Final = "transcode its source again"


@dataclass(frozen=True, slots=True)
class Stacking:
    """How frames stand in pictures. frames: of the whole video. height: of a frame. ticks: between frames."""

    stack: int
    frames: int
    height: int
    ticks: int

    def display(self, pictures: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """uint32 [frames]: the packet of each frame, from that of each picture, in display order."""
        return np.repeat(pictures, self.stack)[: self.frames]

    def times(self, pts: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [frames]: pts of each frame, from that of each picture, in display order."""
        places = np.arange(self.stack, dtype=np.int64) * self.ticks
        return (pts[:, None] + places).ravel()[: self.frames]


def tag_values(stack: int, frames: int, height: int, width: int, seconds: Fraction) -> dict[str, Any]:
    """What the tag of a stacked proxy says. height, width: of a frame. seconds: between two frames."""
    return {
        "stack": stack,
        "frames": frames,
        "frame_height": height,
        "frame_width": width,
        "frame_seconds": str(seconds),
    }


def stacking_of(stream: VideoStream, pts: NDArray[np.int64]) -> Stacking | None:
    """How the frames of a video stand in its pictures; None where each is a picture of its own.

    pts: int64 [pictures], in display order, in units of the stream's time base. Raises UnusableVideoError
    where the tag is damaged, or does not fit the stream: the file was changed after it was transcoded.
    """
    tag = stream.tag
    if tag is None or tag.get("stack", 1) == 1:
        return None
    try:
        stack, frames, height, width = (
            int(tag[name]) for name in ("stack", "frames", "frame_height", "frame_width")
        )
        step = Fraction(tag["frame_seconds"]) / Fraction(*stream.time_base)
        sound = 2 <= stack <= MAX_STACK and frames > 0 and height > 0 and height % BLOCK == 0 and step > 0
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        sound = False
    if not sound:
        raise UnusableVideoError(f"a stacked proxy whose tag is damaged; {REMEDY}")
    problem = _misfit(stream.values, stack, frames, height, width, len(pts))
    if not problem and step.denominator != 1:
        problem = f"its time base cannot count {tag['frame_seconds']} s"
    if not problem and not np.array_equal(pts, pts[0] + np.arange(len(pts)) * int(step) * stack):
        problem = f"its pictures are not {stack} x {tag['frame_seconds']} s apart"
    if problem:
        raise UnusableVideoError(f"a proxy of {stack} stacked frames, but {problem}; {REMEDY}")
    return Stacking(stack, frames, height, int(step))


def _misfit(values: dict[str, Any], stack: int, frames: int, height: int, width: int, pictures: int) -> str:
    """In what the stream is not as the tag says, or nothing."""
    if (values["height"], values["width"]) != (stack * height, width):
        return (
            f"its pictures are {values['width']}x{values['height']}, not {stack} frames of {width}x{height}"
        )
    if not (pictures - 1) * stack < frames <= pictures * stack:
        return f"it has {pictures} pictures, which cannot hold its {frames} frames and no others"
    if values["rotation"]:
        return f"players are asked to turn it by {values['rotation']} degrees"
    if values["sar_num"] != values["sar_den"]:
        return f"its pixels are not square ({values['sar_num']}:{values['sar_den']})"
    if values["pix_fmt"] != PIX_FMT:
        return f"its pixel format is {values['pix_fmt']}, not {PIX_FMT}"
    return ""
