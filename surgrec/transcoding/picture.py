"""From a decoded frame to the picture of a proxy, through FFmpeg's filters."""

from __future__ import annotations

from collections import OrderedDict
from fractions import Fraction
from typing import Any, Final

import av
import av.filter
import numpy as np

from surgrec.transcoding.geometry import Geometry
from surgrec.transcoding.ssim import PictureYuv

MAX_GRAPHS: Final = 4
# Bicubic: swscale widens its kernel when it shrinks a picture, so that nothing aliases. Equal on every CPU.
SCALER: Final = "bicubic+accurate_rnd+full_chroma_int+bitexact"
TURNS: Final = {0: (), 90: ("clock",), 180: ("clock", "clock"), 270: ("cclock",)}
BT709: Final = 1
BT601: Final = (5, 6)
LIMITED: Final = 1
FULL: Final = 2
UNSPECIFIED: Final = 2
# FFmpeg's numbers (libavutil/pixfmt.h) and vf_scale's names; RGB (0) has no matrix.
MATRICES: Final = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}


class PictureError(ValueError):
    """A frame that does not belong to its video, or that FFmpeg cannot convert."""


def proxy_matrix(matrix: int) -> int:
    """FFmpeg's number of a proxy's colour matrix: BT.601 or BT.709 stay, all others become BT.709.

    An unspecified one is BT.601, for which FFmpeg and so the loader take it.
    """
    if matrix == UNSPECIFIED:
        return BT601[1]
    return matrix if matrix in BT601 else BT709


class PictureMaker:
    """Turns, crops and scales the frames of one video to 8-bit 4:2:0 of limited range.

    `height` and `width` are those of the decoded picture. one_field: of interlaced frames the top field only.
    """

    def __init__(self, geometry: Geometry, height: int, width: int, matrix: int, one_field: bool) -> None:
        self._geometry = geometry
        self._size = (height, width)
        self._matrix = proxy_matrix(matrix)
        self._one_field = one_field
        self._graphs: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self.interlaced = 0

    def make(self, frame: Any) -> Any:
        """The picture of an av.VideoFrame. Raises PictureError, av.error.FFmpegError."""
        if (frame.height, frame.width) != self._size:
            height, width = self._size
            raise PictureError(
                f"the picture changes its size from {width}x{height} to {frame.width}x{frame.height}; "
                "cut the file where it does"
            )
        half = self._one_field and frame.interlaced_frame
        self.interlaced += int(half)
        key = (frame.format.name, int(frame.colorspace), int(frame.color_range), half)
        graph = self._graphs.pop(key, None) or self._build(*key)
        self._graphs[key] = graph
        while len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        graph.push(frame)
        return graph.pull()

    def _build(self, pix_fmt: str, matrix: int, color_range: int, half: bool) -> Any:
        g = self._geometry
        height, width = self._size
        rgb = matrix == 0 or pix_fmt.startswith(("rgb", "bgr", "gbr", "pal8", "argb", "abgr", "0rgb", "0bgr"))
        full = color_range == FULL or pix_fmt.startswith("yuvj") or (rgb and color_range != LIMITED)
        steps = []
        if half:
            steps.append(("field", "type=top"))
        steps += [("transpose", f"dir={turn}") for turn in TURNS[g.rotation]]
        upright = (height, width) if g.rotation % 180 == 0 else (width, height)
        if (g.top, g.left, g.height, g.width) != (0, 0, *upright):
            # A field has half of the rows, which lie side by side once the picture is turned by 90 degrees.
            down = 2 if half and g.rotation % 180 == 0 else 1
            across = 2 if half and g.rotation % 180 == 90 else 1
            crop = (g.width // across, g.height // down, g.left // across, g.top // down)
            steps.append(("crop", ":".join(map(str, crop))))
        source = "" if rgb else f"in_color_matrix={MATRICES.get(matrix, 'bt601')}:"
        target = "bt709" if self._matrix == BT709 else "bt601"
        steps.append(
            (
                "scale",
                f"w={g.out_width}:h={g.out_height}:flags={SCALER}:{source}out_color_matrix={target}"
                f":in_range={'full' if full else 'limited'}:out_range=limited",
            )
        )
        steps += [("format", "pix_fmts=yuv420p"), ("setsar", "1")]
        graph: Any = av.filter.Graph()
        last = graph.add(
            "buffer",
            f"video_size={width}x{height}:pix_fmt={pix_fmt}:time_base=1/1000:pixel_aspect=1/1"
            f":colorspace={matrix}:range={color_range}",
        )
        for name, arguments in steps:
            filtered = graph.add(name, arguments)
            last.link_to(filtered)
            last = filtered
        last.link_to(graph.add("buffersink"))
        graph.configure()
        return graph


def stamp(frame: Any, time: int, time_base: Fraction) -> Any:
    """Gives a frame its time in the proxy; the encoder is to choose its type."""
    frame.pts = time
    frame.time_base = time_base
    frame.pict_type = av.video.frame.PictureType.NONE
    return frame


def planes_of(frame: Any) -> PictureYuv:
    """Copies of Y, U and V of a yuv420p frame: uint8 [H, W], twice [H/2, W/2]."""
    found = []
    for plane in frame.planes:
        lines = np.frombuffer(memoryview(plane), np.uint8)[: plane.height * plane.line_size]
        found.append(lines.reshape(plane.height, plane.line_size)[:, : plane.width].copy())
    return found[0], found[1], found[2]
