"""The picture of a proxy: upright, square pixels, sides that are multiples of 16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from surgrec.transcoding.options import MULTIPLE

MAX_SIDE: Final = 8192
"""What H.264 level 6 allows in either direction at usual areas, and NVDEC decodes."""


class GeometryError(ValueError):
    """A picture that no proxy can be made of; the message says why."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where a proxy's picture comes from.

    rotation: degrees clockwise that make the decoded picture upright. top, left, height, width: what is kept
    of the upright stored picture. out_height, out_width: pixels of the proxy.
    """

    rotation: int
    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int


def make_geometry(
    height: int,
    width: int,
    sar: tuple[int, int],
    rotation: int,
    short_side: int,
    area: tuple[int, int, int, int] | None = None,
) -> Geometry:
    """height, width, sar: of the decoded picture, before rotation. area: (top, left, height, width), upright.

    The shorter side as displayed becomes `short_side`, or the multiple of 16 below the source's own where
    that is smaller. The longer one is rounded to the nearest multiple of 16, which squeezes or stretches it
    by at most 8 pixels. An area with odd edges shrinks to even ones, where chroma samples lie. Raises
    GeometryError where the area leaves the picture, or the picture is too long and thin.
    """
    aspect = sar[0] / sar[1]
    if rotation % 180 == 90:
        height, width, aspect = width, height, 1 / aspect
    top, left, kept_height, kept_width = (0, 0, height, width) if area is None else _even(area, height, width)
    shown_height, shown_width = float(kept_height), kept_width * aspect
    # Non-square pixels: the direction with fewer samples is stretched, none is thrown away.
    if aspect < 1:
        shown_height, shown_width = kept_height / aspect, float(kept_width)
    shorter, longer = sorted((shown_height, shown_width))
    short = max(MULTIPLE, min(short_side, int(shorter) // MULTIPLE * MULTIPLE))
    long = max(short, round(longer * short / shorter / MULTIPLE) * MULTIPLE)
    if long > MAX_SIDE:
        raise GeometryError(
            f"a picture of {shown_width:.0f}x{shown_height:.0f} would become {long} pixels long; "
            f"{MAX_SIDE} at most can be decoded. Give a smaller --short-side or a --content-area."
        )
    tall = shown_height > shown_width
    out_height, out_width = (long, short) if tall else (short, long)
    return Geometry(rotation, top, left, kept_height, kept_width, out_height, out_width)


def _even(area: tuple[int, int, int, int], height: int, width: int) -> tuple[int, int, int, int]:
    top, left, kept_height, kept_width = area
    inside = min(top, left) >= 0 and top + kept_height <= height and left + kept_width <= width
    if not inside or kept_height < 2 or kept_width < 2:
        raise GeometryError(
            f"the content area (top {top}, left {left}, {kept_width}x{kept_height}) is not within the "
            f"upright picture of {width}x{height}"
        )
    bottom, right = top + kept_height, left + kept_width
    top, left = top + top % 2, left + left % 2
    # The last row and column of an odd picture may stay: nothing lies behind them.
    bottom -= bottom % 2 if bottom < height else 0
    right -= right % 2 if right < width else 0
    if bottom - top < 2 or right - left < 2:
        raise GeometryError(f"the content area {area} is smaller than 2x2 pixels")
    return top, left, bottom - top, right - left
