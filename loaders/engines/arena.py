"""Memory that a decoding process fills and its parent reads: an anonymous file that both have mapped."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from surgrec.loaders.engines.pixels import Layout

ALIGNMENT: Final = 64
Pin = Callable[[int, int], Callable[[], None]]


class Arena:
    """Arrays of one clip at a time; grows with the largest. It goes with the last process that has it."""

    def __init__(self, descriptor: int | None = None, pin: Pin | None = None) -> None:
        """descriptor: of another process's arena; None makes a new one. pin: called with the address and the
        bytes of the memory wherever it is mapped; what it returns is called before it is unmapped.

        Raises OSError.
        """
        self.descriptor = os.memfd_create("surgrec-clip") if descriptor is None else descriptor
        self._pin = pin
        self._unpin: Callable[[], None] | None = None
        self._map: mmap.mmap | None = None
        self._size = 0

    def allocate(self, layouts: Sequence[Layout]) -> list[NDArray[Any]]:
        """Arrays of these shapes and types, over those of the last call. Raises OSError without memory."""
        _, size = places_of(layouts)
        if size > os.fstat(self.descriptor).st_size:
            os.ftruncate(self.descriptor, size)
        return self.arrays(layouts)

    def arrays(self, layouts: Sequence[Layout]) -> list[NDArray[Any]]:
        """The arrays that `allocate` of these layouts gave, here or in another process."""
        places, size = places_of(layouts)
        mapped = self._mapped(size)
        return [
            np.ndarray(shape, kind, mapped, place)
            for (shape, kind), place in zip(layouts, places, strict=True)
        ]

    def content(self, size: int) -> NDArray[np.uint8]:
        """The first `size` bytes, as they are."""
        return np.ndarray((size,), np.uint8, self._mapped(size))

    def close(self) -> None:
        """Closes the descriptor; arrays that are held keep their memory."""
        self._forget()
        os.close(self.descriptor)

    def _mapped(self, size: int) -> mmap.mmap:
        if self._map is None or size > self._size:
            self._forget()
            self._size = os.fstat(self.descriptor).st_size
            self._map = mmap.mmap(self.descriptor, self._size)
            if self._pin is not None:
                address = np.frombuffer(self._map, np.uint8).ctypes.data
                self._unpin = self._pin(address, self._size)
        return self._map

    def _forget(self) -> None:
        if self._unpin is not None:
            self._unpin()
        self._map = self._unpin = None
        self._size = 0


def places_of(layouts: Sequence[Layout]) -> tuple[list[int], int]:
    """Where each array begins, and the bytes of all."""
    places, end = [], 0
    for shape, kind in layouts:
        places.append(end)
        size = int(np.prod(shape)) * kind.itemsize
        end += (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return places, max(end, ALIGNMENT)
