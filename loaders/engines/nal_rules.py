"""Bytes that no H.264 or HEVC encoder writes. NVDEC takes zeros for the end of a picture's data, silently.

Within a NAL unit two zero bytes are followed by 3 or more, for every 00 00 00, 00 00 01 and 00 00 02 is
written as 00 00 03 .. (ITU-T H.264 (08/2021) 7.4.1, ITU-T H.265 (08/2021) 7.4.2).
"""

from __future__ import annotations

from typing import Final

from numba import njit

MOST_PADDING: Final = 32
"""Zero bytes at the end of a unit that some recorders fill up with."""


@njit(nogil=True, cache=True)
def first_unlawful(data, places, sizes, length_size):
    """The first packet with a NAL unit that no encoder writes, or -1.

    data: uint8 [N]. places, sizes: int64 [P], where the packets lie in it. length_size: bytes of the length
    in front of a unit, 0 for start codes. Units whose lengths lie are for others to find.
    """
    for k in range(places.size):
        at, end = places[k], places[k] + sizes[k]
        if length_size == 0:
            if _is_unlawful(data, at, end, True):
                return k
            continue
        while at + length_size <= end:
            length = 0
            for j in range(length_size):
                length = length << 8 | int(data[at + j])
            at += length_size
            if length > end - at:
                break
            if _is_unlawful(data, at, at + length, False):
                return k
            at += length
    return -1


@njit(nogil=True, cache=True)
def _is_unlawful(data, start, stop, start_codes):
    """Whether data[start:stop] cannot be a NAL unit, or several between start codes."""
    end = stop
    while end > start and data[end - 1] == 0:
        end -= 1
    if stop - end > MOST_PADDING:
        return True
    at = start + 1
    while at < end:
        if data[at] != 0:  # of two zeros in a row one is met
            at += 2
            continue
        first = at - 1 if data[at - 1] == 0 else at
        behind = at + 1
        while data[behind] == 0:  # data[end - 1] is not
            behind += 1
        zeros, following = behind - first, data[behind]
        lawful = zeros < 2 or (zeros == 2 and following > 2) or (start_codes and following == 1)
        if not lawful:
            return True
        at = behind + 2
    return False
