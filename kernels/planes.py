"""Decoded pictures of a clip as planes, the way decoders leave them: before colour conversion and crop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from surgrec.kernels.colour import Colour
from torch import Tensor

__all__ = ["Colour", "Planes"]


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


def check_planes(b: int, clip: Planes, length: int, device: torch.device) -> None:
    """Everything that the kernels rely on so as not to read outside a plane.

    b: number of the clip in its batch, for messages. length, device: what the batch has.

    Raises:
        ValueError: the planes, rows, colour or rotation do not fit each other or the batch.
    """
    luma, *chroma = clip.planes
    if len(clip.rows) != length or not length:
        raise ValueError(f"clip {b} has {len(clip.rows)} frames; the batch has {length}, and 1 is the least")
    if clip.rotation not in (0, 90, 180, 270):
        raise ValueError(f"clip {b} is to be turned by {clip.rotation} degrees; 0, 90, 180 and 270 can be")
    if luma.dtype not in (torch.uint8, torch.uint16) or luma.ndim != 3 or not luma.numel():
        raise ValueError(
            f"clip {b} has {luma.dtype} {tuple(luma.shape)} as luma; uint8 or uint16 [K, h, w] is needed"
        )
    if clip.colour.depth + clip.colour.shift > 8 * luma.element_size():
        raise ValueError(
            f"clip {b} has values of {clip.colour.depth} bits, {clip.colour.shift} bits up, in {luma.dtype}"
        )
    if min(clip.rows) < 0 or max(clip.rows) >= luma.shape[0]:
        raise ValueError(
            f"clip {b} wants rows {min(clip.rows)}..{max(clip.rows)} of {luma.shape[0]} pictures"
        )
    pictures, height, width = luma.shape
    for plane in chroma:
        if (
            plane.dtype != luma.dtype
            or plane.ndim != 3
            or plane.shape != chroma[0].shape
            or plane.shape[0] != pictures
            or plane.shape[1] not in (height, (height + 1) // 2)
            or plane.shape[2] not in (width, (width + 1) // 2)
        ):
            raise ValueError(
                f"clip {b} has {plane.dtype} {tuple(plane.shape)} as chroma of {luma.dtype} "
                f"{tuple(luma.shape)}; the luma's type is needed, and in either direction its size or "
                f"half of it, rounded up"
            )
    for plane in clip.planes:
        if plane.device != device:
            raise ValueError(f"clip {b} has a plane on {plane.device}; the batch is on {device}")
        row, column = plane.stride()[1:]
        if (row * height + column * width) * plane.element_size() >= 2**31:
            raise ValueError(
                f"clip {b} has pictures of {height} rows that are {row} samples apart; a picture "
                f"may span 2**31 bytes"
            )


def subsampling(clip: Planes) -> tuple[int, int, int, int]:
    """half_y, half_x, phase_y, phase_x of the upright picture: pixel k lies in sample (k + phase) >> half."""
    height, width = clip.planes[0].shape[1:]
    chroma_height, chroma_width = clip.planes[1].shape[1:]
    half_y, half_x = int(chroma_height != height), int(chroma_width != width)
    # Counted from the far end, an odd side begins with the second pixel of a pair.
    phase_y = half_y & height & int(clip.rotation in (90, 180))
    phase_x = half_x & width & int(clip.rotation in (180, 270))
    if clip.rotation % 180:
        return half_x, half_y, phase_x, phase_y
    return half_y, half_x, phase_y, phase_x
