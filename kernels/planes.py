"""Decoded pictures of a clip as planes, the way decoders leave them: before colour conversion and crop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from surgrec.kernels.colour import Colour
from torch import Tensor

__all__ = ["Colour", "Layouts", "Nv12Pictures", "PackedPlanes", "Place", "PlaneLayout", "Planes"]

ALIGNMENT: Final = 256
"""Bytes: the chroma of Nv12Pictures begins at a multiple of it."""


@dataclass(frozen=True, slots=True)
class PlaneLayout:
    """Where a plane lies: address of its first sample, shape [K, h, w], strides in samples."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def item(self) -> int:
        """Bytes of a sample."""
        return self.dtype.itemsize


Layouts = tuple[PlaneLayout, PlaneLayout, PlaneLayout]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a plane lies in a piece of memory: its first sample, shape [K, h, w], strides; in samples."""

    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class PackedPlanes:
    """Three planes in one piece of memory.

    Stands for the tuple of them, whose views are made when they are asked for: each view that PyTorch makes
    gives the interpreter's lock away, and where many threads decode it is waited for.
    """

    __slots__ = ("_views", "memory", "places")

    def __init__(self, memory: Tensor, places: tuple[Place, Place, Place]) -> None:
        """memory: uint8 or uint16 [N]."""
        self.memory, self.places = memory, places
        self._views: tuple[Tensor, ...] | None = None

    def layouts(self) -> Layouts:
        """Where the three planes lie."""
        memory = self.memory
        dtype, device, start = memory.dtype, memory.device, memory.data_ptr()
        first, second, third = (
            PlaneLayout(start + place.start * dtype.itemsize, place.shape, place.strides, dtype, device)
            for place in self.places
        )
        return first, second, third

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._made())

    def __getitem__(self, number: int) -> Tensor:
        return self._made()[number]

    def _made(self) -> tuple[Tensor, ...]:
        if self._views is None:
            begin = self.memory.storage_offset()
            self._views = tuple(
                self.memory.as_strided(place.shape, place.strides, begin + place.start)
                for place in self.places
            )
        return self._views


class Nv12Pictures(PackedPlanes):
    """Y, Cb and Cr of K pictures of 4:2:0, chroma interleaved, as NVDEC has them."""

    __slots__ = ("count",)

    def __init__(self, memory: Tensor, count: int, height: int, width: int) -> None:
        """memory: uint8 or uint16 [values(count, height, width, its type)]: luma [K, h, w], and at the next
        multiple of ALIGNMENT bytes chroma [K, (h + 1) // 2, (w + 1) // 2, 2].
        """
        rows, columns = (height + 1) // 2, (width + 1) // 2
        shape, strides = (count, rows, columns), (2 * rows * columns, 2 * columns, 2)
        chroma = self.chroma_at(count, height, width, memory.dtype)
        luma = Place(0, (count, height, width), (height * width, width, 1))
        super().__init__(memory, (luma, Place(chroma, shape, strides), Place(chroma + 1, shape, strides)))
        self.count = count

    @staticmethod
    def values(count: int, height: int, width: int, dtype: torch.dtype) -> int:
        """Values that K pictures take, with the gap between luma and chroma."""
        chroma = 2 * count * ((height + 1) // 2) * ((width + 1) // 2)
        return Nv12Pictures.chroma_at(count, height, width, dtype) + chroma

    @staticmethod
    def chroma_at(count: int, height: int, width: int, dtype: torch.dtype) -> int:
        """Values before the chroma."""
        each = ALIGNMENT // dtype.itemsize
        return -(count * height * width // -each) * each


@dataclass(frozen=True, slots=True)
class Planes:
    """K decoded pictures on one device, and which of them the T frames of a clip are.

    planes: Y, Cb and Cr, or R, G and B, each uint8 or uint16 [K, h, w] with any strides (interleaved chroma
    is two views of one tensor). Chroma may have half the luma's size in either direction, rounded up.
    rows: T numbers in [0, K). rotation: 0, 90, 180 or 270 degrees clockwise that make the picture upright.
    """

    planes: tuple[Tensor, Tensor, Tensor] | PackedPlanes
    rows: tuple[int, ...]
    colour: Colour
    rotation: int = 0

    def layouts(self) -> Layouts:
        """Where the three planes lie."""
        if isinstance(self.planes, PackedPlanes):
            return self.planes.layouts()
        first, second, third = map(_layout, self.planes)
        return first, second, third

    @property
    def device(self) -> torch.device:
        """Where the first plane is; check_planes sees to it that all are there."""
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the first plane's samples."""
        return self._first.dtype

    @property
    def height(self) -> int:
        """Of the upright picture."""
        return self._size[1 if self.rotation % 180 else 0]

    @property
    def width(self) -> int:
        """Of the upright picture."""
        return self._size[0 if self.rotation % 180 else 1]

    @property
    def _first(self) -> Tensor:
        return self.planes.memory if isinstance(self.planes, PackedPlanes) else self.planes[0]

    @property
    def _size(self) -> tuple[int, ...]:
        if isinstance(self.planes, PackedPlanes):
            return self.planes.places[0].shape[1:]
        return tuple(self.planes[0].shape[1:])


def _layout(plane: Tensor) -> PlaneLayout:
    return PlaneLayout(plane.data_ptr(), tuple(plane.shape), plane.stride(), plane.dtype, plane.device)


def check_planes(b: int, clip: Planes, length: int, device: torch.device) -> Layouts:
    """Everything that the kernels rely on so as not to read outside a plane.

    b: number of the clip in its batch, for messages. length, device: what the batch has.

    Returns:
        Where the three planes lie.

    Raises:
        ValueError: the planes, rows, colour or rotation do not fit each other or the batch.
    """
    planes = clip.layouts()
    luma, *chroma = planes
    if len(clip.rows) != length or not length:
        raise ValueError(f"clip {b} has {len(clip.rows)} frames; the batch has {length}, and 1 is the least")
    if clip.rotation not in (0, 90, 180, 270):
        raise ValueError(f"clip {b} is to be turned by {clip.rotation} degrees; 0, 90, 180 and 270 can be")
    if luma.dtype not in (torch.uint8, torch.uint16) or len(luma.shape) != 3 or not math.prod(luma.shape):
        raise ValueError(
            f"clip {b} has {luma.dtype} {luma.shape} as luma; uint8 or uint16 [K, h, w] is needed"
        )
    if clip.colour.depth + clip.colour.shift > 8 * luma.item:
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
            or len(plane.shape) != 3
            or plane.shape != chroma[0].shape
            or plane.shape[0] != pictures
            or plane.shape[1] not in (height, (height + 1) // 2)
            or plane.shape[2] not in (width, (width + 1) // 2)
        ):
            raise ValueError(
                f"clip {b} has {plane.dtype} {plane.shape} as chroma of {luma.dtype} {luma.shape}; the "
                f"luma's type is needed, and in either direction its size or half of it, rounded up"
            )
    for plane in planes:
        if plane.device != device:
            raise ValueError(f"clip {b} has a plane on {plane.device}; the batch is on {device}")
        _, row, column = plane.strides
        if (row * height + column * width) * plane.item >= 2**31:
            raise ValueError(
                f"clip {b} has pictures of {height} rows that are {row} samples apart; a picture "
                f"may span 2**31 bytes"
            )
    return planes


def subsampling(planes: Layouts, rotation: int) -> tuple[int, int, int, int]:
    """half_y, half_x, phase_y, phase_x of the upright picture: pixel k lies in sample (k + phase) >> half."""
    luma, chroma, _ = planes
    _, height, width = luma.shape
    _, chroma_height, chroma_width = chroma.shape
    half_y, half_x = int(chroma_height != height), int(chroma_width != width)
    # Counted from the far end, an odd side begins with the second pixel of a pair.
    phase_y = half_y & height & int(rotation in (90, 180))
    phase_x = half_x & width & int(rotation in (180, 270))
    if rotation % 180:
        return half_x, half_y, phase_x, phase_y
    return half_y, half_x, phase_y, phase_x
