"""Decoded pictures of a clip as planes, the way decoders leave them: before colour conversion and crop."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Colour:
    """What the numbers in the planes mean.

    matrix: "bt601", "bt709", "fcc", "smpte240m" or "bt2020" for luma and two colour differences, "rgb" for
    red, green and blue. full_range: luma from 0 to the largest value, not 16..235 of 255. depth: bits of a
    value. shift: bits by which the values lie too high in their uint16, 6 for 10 bits as NVDEC stores them.
    """

    matrix: str
    full_range: bool
    depth: int = 8
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Planes:
    """K decoded pictures on one device, and which of them the T frames of a clip are.

    planes: Y, Cb and Cr, or R, G and B, each uint8 or uint16 [K, h, w] with any strides (interleaved chroma
    is two views of one tensor). Chroma may have half the luma's size in either direction, rounded up.
    rows: T numbers in [0, K). rotation: 0, 90, 180 or 270 degrees clockwise that make the picture upright.
    """

    planes: tuple[Tensor, Tensor, Tensor]
    rows: tuple[int, ...]
    colour: Colour
    rotation: int = 0

    @property
    def height(self) -> int:
        """Of the upright picture."""
        return self.planes[0].shape[2 if self.rotation % 180 else 1]

    @property
    def width(self) -> int:
        """Of the upright picture."""
        return self.planes[0].shape[1 if self.rotation % 180 else 2]

    @property
    def nbytes(self) -> int:
        """Bytes that the planes hold."""
        return sum(plane.numel() * plane.element_size() for plane in self.planes)
