"""H.264 and HEVC packets as decoders without a container want them: start codes, parameter sets in front."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit
from surgrec.loaders.packet_index import VideoInfo
from surgrec.loaders.parameter_sets import units_of_extradata

START_CODE = b"\0\0\0\1"


def parameter_sets(info: VideoInfo) -> bytes:
    """The parameter sets of a video's extradata with start codes; empty for codecs that have none."""
    return _sets(info.codec, info.extradata)


@lru_cache(maxsize=4096)
def _sets(codec: str, extradata: bytes) -> bytes:
    if codec not in ("h264", "hevc"):
        return b""
    return b"".join(START_CODE + unit for unit in units_of_extradata(codec, extradata))


@njit(nogil=True, cache=True)
def to_start_codes(data, places, sizes, length_size):
    """Packets whose NAL units have lengths before them, with start codes instead.

    data: uint8 [N]. places, sizes: int64 [P], where the packets lie in it. length_size: bytes of a length, 1
    to 4. Gives (the first packet whose lengths lie, or -1; data; places; sizes). Lengths of four bytes are
    overwritten in place, shorter ones cost a copy. Compiled, needs no interpreter.
    """
    if length_size == 4:
        return _overwrite(data, places, sizes), data, places, sizes
    # A unit of no bytes behind a length of one grows the most.
    room = np.empty(4 * sizes.sum(), np.uint8)
    new_places, new_sizes = np.empty_like(places), np.empty_like(sizes)
    bad = _rewrite(data, places, sizes, length_size, room, new_places, new_sizes)
    return bad, room, new_places, new_sizes


@njit(nogil=True, cache=True)
def _overwrite(data, places, sizes):
    """The first packet whose lengths lie, or -1."""
    for k in range(places.size):
        at, end = places[k], places[k] + sizes[k]
        while at < end:
            if at + 4 > end:
                return k
            length = (
                np.int64(data[at]) << 24
                | np.int64(data[at + 1]) << 16
                | np.int64(data[at + 2]) << 8
                | np.int64(data[at + 3])
            )
            if length > end - at - 4:
                return k
            data[at], data[at + 1], data[at + 2], data[at + 3] = 0, 0, 0, 1
            at += 4 + length
    return -1


@njit(nogil=True, cache=True)
def _rewrite(data, places, sizes, length_size, room, new_places, new_sizes):
    out = np.int64(0)
    for k in range(places.size):
        at, end = places[k], places[k] + sizes[k]
        new_places[k] = out
        while at < end:
            if at + length_size > end:
                return k
            length = np.int64(0)
            for j in range(length_size):
                length = length << 8 | np.int64(data[at + j])
            at += length_size
            if length > end - at:
                return k
            room[out], room[out + 1], room[out + 2], room[out + 3] = 0, 0, 0, 1
            room[out + 4 : out + 4 + length] = data[at : at + length]
            out += 4 + length
            at += length
        new_sizes[k] = out - new_places[k]
    return -1
