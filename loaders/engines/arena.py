"""Memory that a decoding process fills and its parent reads: an anonymous file that both have mapped."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from surgrec.loaders.engines.pixels import Layout

ALIGNMENT: Final = 64


class Arena:
    """Arrays of one clip at a time; grows with the largest. It goes with the last process that has it."""

    def __init__(self, descriptor: int | None = None) -> None:
        """descriptor: of another process's arena; None makes a new one. Raises OSError."""
        self.descriptor = os.memfd_create("surgrec-clip") if descriptor is None else descriptor
        self._map: mmap.mmap | None = None
        self._size = 0

    def allocate(self, layouts: Sequence[Layout]) -> list[NDArray[Any]]:
        """Arrays of these shapes and types, over those of the last call. Raises OSError without memory."""
        places, size = _places(layouts)
        if size > os.fstat(self.descriptor).st_size:
            os.ftruncate(self.descriptor, size)
        return self.arrays(layouts, places)

    def arrays(self, layouts: Sequence[Layout], places: Sequence[int] | None = None) -> list[NDArray[Any]]:
        """The arrays that `allocate` of these layouts gave, here or in another process."""
        if places is None:
            places, _ = _places(layouts)
        end = os.fstat(self.descriptor).st_size
        if end > self._size:
            self._map, self._size = mmap.mmap(self.descriptor, end), end
        assert self._map is not None
        return [
            np.ndarray(shape, kind, self._map, place)
            for (shape, kind), place in zip(layouts, places, strict=True)
        ]

    def close(self) -> None:
        """Closes the descriptor; arrays that are held keep their memory."""
        os.close(self.descriptor)
        self._map = None


def _places(layouts: Sequence[Layout]) -> tuple[list[int], int]:
    """Where each array begins, and the bytes of all."""
    places, end = [], 0
    for shape, kind in layouts:
        places.append(end)
        size = int(np.prod(shape)) * kind.itemsize
        end += (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return places, max(end, ALIGNMENT)
