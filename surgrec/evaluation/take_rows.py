"""Rows of a mapped float16 array into memory, and whether all their values are finite, in one pass."""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

_EXPONENT = np.uint16(0x7C00)
"""All of its bits are set in infinities and in what is not a number, and in nothing else."""


@njit(
    types.int64(
        types.Array(types.uint16, 2, "C", readonly=True), types.int64[::1], types.Array(types.uint16, 2, "C")
    ),
    cache=True,
    nogil=True,
)
def _take(column, at, out):
    """Number in `at` of the first row that is not finite; -1 where all are."""
    bad = np.int64(-1)
    for number in range(len(at)):
        row = column[at[number]]
        target = out[number]
        strange = np.uint16(0)
        for k in range(row.shape[0]):
            value = row[k]
            target[k] = value
            strange |= np.uint16((value & _EXPONENT) == _EXPONENT)
        if strange and bad < 0:
            bad = np.int64(number)
    return bad


def take_finite(column: NDArray[np.float16], at: NDArray[np.int64], out: NDArray[np.float16]) -> int | None:
    """Copies rows of `column` [R, ...] to `out` [n, ...], both contiguous; the interpreter's lock is free
    meanwhile. Number in `at` of the first row with a value that is not finite; None where there is none.

    Raises IndexError for a row that is not there.
    """
    if not len(at):
        return None
    if not 0 <= at.min() <= at.max() < len(column):
        raise IndexError(f"rows {at.min()} to {at.max()} of {len(column)}")
    if out.shape != (len(at), *column.shape[1:]):
        raise ValueError(f"room of {out.shape} for {len(at)} rows of {column.shape[1:]}")
    flat = column.reshape(len(column), -1).view(np.uint16)
    found = _take(flat, np.ascontiguousarray(at), out.reshape(len(at), -1).view(np.uint16))
    return None if found < 0 else int(found)
