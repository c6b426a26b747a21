"""Checksums of packets: whether the bytes that are read are those that were indexed.

The low 32 bits of XXH64 with seed 0 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md): the
xxhash package computes them while a file is indexed, compiled code without the interpreter when a clip is
read.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

MASK: Final = 0xFFFFFFFF

_P1: Final = np.uint64(0x9E3779B185EBCA87)
_P2: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_P3: Final = np.uint64(0x165667B19E3779F9)
_P4: Final = np.uint64(0x85EBCA77C2B2AE63)
_P5: Final = np.uint64(0x27D4EB2F165667C5)
_ALL: Final = np.uint64(64)
_MASK: Final = np.uint64(MASK)


def checksum_of(content: Any) -> int:
    """The checksum of a packet: bytes, or what gives them as a buffer."""
    return int(xxhash.xxh64_intdigest(content)) & MASK


@njit(nogil=True, cache=True)
def first_changed(
    data: NDArray[np.uint8],
    places: NDArray[np.int64],
    sizes: NDArray[np.int64],
    packets: NDArray[np.int64],
    checksums: NDArray[np.uint32],
    start: int,
) -> int:
    """Number of the first packet, counted among those given, whose bytes are not those indexed, or -1.

    data: uint8, contiguous. places, sizes: int64 [P], where the packets lie in it. packets: int64 [P], their
    numbers within their video, whose first entry in `checksums`, uint32 of all packets of the index, is
    `start`.
    """
    for k in range(places.size):
        if checksum(data, places[k], sizes[k]) != checksums[start + packets[k]]:
            return k
    return -1


@njit(nogil=True, cache=True)
def checksum(data: NDArray[np.uint8], start: int, size: int) -> np.uint32:
    """uint32: the checksum of data[start : start + size]; contiguous uint8."""
    at, end = start, start + size
    if size >= 32:
        count = size // 32 * 4
        words = data[at : at + 8 * count].view(np.uint64)
        a, b, c, d = _P1 + _P2, _P2, np.uint64(0), np.uint64(0) - _P1
        for k in range(0, count, 4):
            a = _round(a, words[k])
            b = _round(b, words[k + 1])
            c = _round(c, words[k + 2])
            d = _round(d, words[k + 3])
        state = _turn(a, 1) + _turn(b, 7) + _turn(c, 12) + _turn(d, 18)
        for lane in (a, b, c, d):
            state = (state ^ _round(np.uint64(0), lane)) * _P1 + _P4
        at += 8 * count
    else:
        state = _P5
    state += np.uint64(size)
    while at + 8 <= end:
        state = _turn(state ^ _round(np.uint64(0), _number(data, at, 8)), 27) * _P1 + _P4
        at += 8
    if at + 4 <= end:
        state = _turn(state ^ (_number(data, at, 4) * _P1), 23) * _P2 + _P3
        at += 4
    while at < end:
        state = _turn(state ^ (np.uint64(data[at]) * _P5), 11) * _P1
        at += 1
    state = (state ^ (state >> np.uint64(33))) * _P2
    state = (state ^ (state >> np.uint64(29))) * _P3
    return np.uint32((state ^ (state >> np.uint64(32))) & _MASK)


@njit(nogil=True, cache=True)
def _round(state, word):
    return _turn(state + word * _P2, 31) * _P1


@njit(nogil=True, cache=True)
def _turn(value, bits):
    left = np.uint64(bits)
    return (value << left) | (value >> (_ALL - left))


@njit(nogil=True, cache=True)
def _number(data, at, count):
    """Little-endian, of fewer bytes than it is worth a view."""
    value = np.uint64(0)
    for k in range(count):
        value |= np.uint64(data[at + k]) << np.uint64(8 * k)
    return value
