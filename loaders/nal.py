"""NAL units of H.264 and HEVC: what a packet is to random access, read from its headers alone.

Formulas: ITU-T H.264 (08/2021) 7.3.1, 7.3.3, D.1.8; ITU-T H.265 (08/2021) 7.3.1.2, 7.3.6.1, table 7-1.
The scan runs over the mapped file from (offset, size) arrays; with length-prefixed units it touches only
the headers, with start codes (Annex B) every byte.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

# What a packet holds, one bit each.
IDR: Final = 1  # a slice of an IDR picture (H.264 type 5; HEVC types 19, 20)
VCL: Final = 2  # a coded slice
REFERENCE: Final = 4  # H.264: a slice with nal_ref_idc above 0
RECOVERY: Final = 8  # H.264: a recovery point at this picture, with exact match
PARAMETERS: Final = 16  # parameter sets: VPS, SPS, PPS
FIELD: Final = 32  # H.264: a slice with field_pic_flag
DAMAGED: Final = 64  # a length that leaves the packet, or a header that is cut
END_OF_SEQUENCE: Final = 128  # HEVC: end of sequence or of bitstream behind the picture
NO_PRIOR_OUTPUT: Final = 256  # HEVC: no_output_of_prior_pics_flag

NO_TYPE: Final = 255
HEADER_BYTES: Final = 32  # of a slice header, more than first_mb .. field_pic_flag can take
FNV_PRIME: Final = 0x100000001B3
FNV_BASIS: Final = 0xCBF29CE484222325


class H264SliceFields(NamedTuple):
    """Of the SPS, what it takes to read a slice header: log2_max_frame_num, frame_mbs_only_flag,
    separate_colour_plane_flag, and log2_max_pic_order_cnt_lsb, 0 where the slices carry no order."""

    frame_num_bits: int
    frame_mbs_only: bool
    colour_planes: bool
    order_bits: int


class HevcSliceFields(NamedTuple):
    """Of SPS and PPS: log2_max_pic_order_cnt_lsb (0: unknown), num_extra_slice_header_bits,
    separate_colour_plane_flag."""

    order_bits: int
    extra_bits: int
    colour_planes: bool


@njit(cache=True)
def find_start_code(data: NDArray[np.uint8], at: int, end: int) -> int:
    """Index behind the next 00 00 01 in data[at:end], or -1."""
    i = at + 2
    while i < end:
        byte = data[i]
        if byte > 1:
            i += 3
        elif byte == 1:
            if data[i - 1] == 0 and data[i - 2] == 0:
                return i + 1
            i += 3
        else:
            i += 1
    return -1


@njit(cache=True)
def next_unit(data: NDArray[np.uint8], at: int, end: int, length_size: int) -> tuple[int, int, int]:
    """(start, stop, next) of the NAL unit at or behind `at`; start is -1 at the end, -2 where damaged.

    With start codes, `at` is the index behind one, or the start of the packet for the first call.
    """
    if length_size == 0:
        start = find_start_code(data, at, end)
        if start < 0:
            return -1, end, end
        following = find_start_code(data, start, end)
        stop = end if following < 0 else following - 3
        return start, stop, stop
    if at >= end:
        return -1, end, end
    if at + length_size > end:
        return -2, end, end
    length = 0
    for i in range(length_size):
        length = (length << 8) | int(data[at + i])
    start = at + length_size
    if length > end - start:
        return -2, end, end
    return start, start + length, start + length


@njit(cache=True)
def unescape(data: NDArray[np.uint8], start: int, stop: int, out: NDArray[np.uint8]) -> int:
    """Copy data[start:stop] to `out` less its emulation-prevention bytes; the number of bytes copied."""
    zeros = 0
    count = 0
    for i in range(start, stop):
        if count == out.shape[0]:
            break
        byte = data[i]
        if zeros >= 2 and byte == 3:
            zeros = 0
            continue
        zeros = zeros + 1 if byte == 0 else 0
        out[count] = byte
        count += 1
    return count


@njit(cache=True)
def _bits(data: NDArray[np.uint8], at: int, count: int) -> int:
    value = 0
    for i in range(at, at + count):
        value = (value << 1) | (int(data[i >> 3]) >> (7 - (i & 7)) & 1)
    return value


@njit(cache=True)
def _golomb(data: NDArray[np.uint8], at: int, end: int) -> int:
    """Bit index behind one ue(v) value; `end` where it runs out of data."""
    zeros = 0
    while at < end and _bits(data, at, 1) == 0:
        zeros += 1
        at += 1
    return min(at + 1 + zeros, end)


@njit(cache=True)
def _h264_slice(
    data: NDArray[np.uint8], start: int, stop: int, fields: H264SliceFields, scratch: NDArray[np.uint8]
) -> tuple[bool, int]:
    """(field_pic_flag, pic_order_cnt_lsb or -1) of the H.264 slice whose NAL header is at `start`."""
    end = 8 * unescape(data, start + 1, stop, scratch)
    at = 0
    for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
        at = _golomb(scratch, at, end)
    at += (2 if fields.colour_planes else 0) + fields.frame_num_bits
    field = False
    if not fields.frame_mbs_only:
        field = at < end and _bits(scratch, at, 1) == 1
        at += 2 if field else 1
    if data[start] & 31 == 5:
        at = _golomb(scratch, at, end)  # idr_pic_id
    if fields.order_bits == 0 or at + fields.order_bits > end:
        return field, -1
    return field, _bits(scratch, at, fields.order_bits)


@njit(cache=True)
def _hevc_order(
    data: NDArray[np.uint8], start: int, stop: int, fields: HevcSliceFields, scratch: NDArray[np.uint8]
) -> int:
    """slice_pic_order_cnt_lsb, or -1, of the first slice segment whose NAL header is at `start`."""
    kind = data[start] >> 1 & 63
    if kind == 19 or kind == 20:
        return 0
    end = 8 * unescape(data, start + 2, stop, scratch)
    at = 2 if 16 <= kind <= 23 else 1  # first_slice_segment_in_pic_flag, no_output_of_prior_pics_flag
    at = _golomb(scratch, at, end) + fields.extra_bits
    at = _golomb(scratch, at, end) + (2 if fields.colour_planes else 0)
    if fields.order_bits == 0 or at + fields.order_bits > end:
        return -1
    return _bits(scratch, at, fields.order_bits)


@njit(cache=True)
def _recovery_point(data: NDArray[np.uint8], start: int, stop: int) -> bool:
    """Whether the SEI unit at `start` (its header byte) says: recovery_frame_cnt 0 and exact_match_flag 1."""
    at = start + 1
    zeros = 0
    state = 0  # 0 payload type, 1 payload size, 2 payload
    kind = 0
    size = 0
    first = True
    while at < stop:
        byte = int(data[at])
        at += 1
        if zeros >= 2 and byte == 3:
            zeros = 0
            continue
        zeros = zeros + 1 if byte == 0 else 0
        if state == 0:
            kind += byte
            if byte != 255:
                state = 1
        elif state == 1:
            size += byte
            if byte != 255:
                state = 2
                first = True
                if size == 0:
                    state, kind = 0, 0
        else:
            # ue(v) zero is a single 1 bit; exact_match_flag is the bit behind it.
            if first and kind == 6:
                return byte & 0xC0 == 0xC0
            first = False
            size -= 1
            if size == 0:
                state, kind = 0, 0
    return False


@njit(cache=True)
def _fnv(data: NDArray[np.uint8], start: int, stop: int, state: np.uint64) -> np.uint64:
    for i in range(start, stop):
        state = (state ^ np.uint64(data[i])) * np.uint64(FNV_PRIME)
    return state


@njit(cache=True, nogil=True)
def scan_h264(
    data: NDArray[np.uint8],
    offset: NDArray[np.int64],
    size: NDArray[np.int64],
    length_size: int,
    fields: H264SliceFields,
) -> tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.uint64], NDArray[np.int64]]:
    """What each packet of an H.264 stream holds.

    data: uint8, the file. offset, size: int64 [P], every range inside the file. length_size: bytes of the
    length before each unit, 0 for start codes. Returns bits u32 [P], pictures u8 [P] (first slices: 2 in a
    packet of two fields), a hash u64 [P] of the parameter sets, 0 for none, and pic_order_cnt_lsb i64 [P] of
    the first slice, -1 where unknown.
    """
    count = offset.shape[0]
    bits = np.zeros(count, np.uint32)
    pictures = np.zeros(count, np.uint8)
    hashes = np.zeros(count, np.uint64)
    order = np.full(count, -1, np.int64)
    scratch = np.zeros(HEADER_BYTES, np.uint8)
    for packet in range(count):
        at = offset[packet]
        end = at + size[packet]
        found = 0
        state = np.uint64(FNV_BASIS)
        while True:
            start, stop, at = next_unit(data, at, end, length_size)
            if start < 0:
                if start == -2:
                    found |= DAMAGED
                break
            if start == stop:
                continue
            kind = data[start] & 31
            if 1 <= kind <= 5:
                found |= VCL
                if kind == 5:
                    found |= IDR
                if data[start] & 0x60:
                    found |= REFERENCE
                if kind != 3 and kind != 4:  # data partitions B and C open with slice_id
                    if stop - start < 2:
                        found |= DAMAGED
                    else:
                        if data[start + 1] & 0x80 and pictures[packet] < 255:  # first_mb_in_slice is 0
                            pictures[packet] += 1
                        if order[packet] < 0:
                            field, order[packet] = _h264_slice(data, start, stop, fields, scratch)
                            if field:
                                found |= FIELD
            elif kind == 6:
                if _recovery_point(data, start, stop):
                    found |= RECOVERY
            elif kind == 7 or kind == 8:
                found |= PARAMETERS
                state = _fnv(data, start, stop, state)
        if found & PARAMETERS:
            hashes[packet] = state
        bits[packet] = found
    return bits, pictures, hashes, order


@njit(cache=True, nogil=True)
def scan_hevc(
    data: NDArray[np.uint8],
    offset: NDArray[np.int64],
    size: NDArray[np.int64],
    length_size: int,
    fields: HevcSliceFields,
) -> tuple[
    NDArray[np.uint32],
    NDArray[np.uint8],
    NDArray[np.uint64],
    NDArray[np.int64],
    NDArray[np.uint8],
    NDArray[np.uint8],
]:
    """What each packet of an HEVC stream holds; arguments as of scan_h264. Only layer 0 counts.

    Returns bits u32, pictures u8, parameter-set hash u64, and of the first slice slice_pic_order_cnt_lsb i64
    (-1 unknown), nal_unit_type u8 (NO_TYPE without slices) and TemporalId u8, each [P].
    """
    count = offset.shape[0]
    bits = np.zeros(count, np.uint32)
    pictures = np.zeros(count, np.uint8)
    hashes = np.zeros(count, np.uint64)
    types = np.full(count, NO_TYPE, np.uint8)
    layers = np.zeros(count, np.uint8)
    order = np.full(count, -1, np.int64)
    scratch = np.zeros(HEADER_BYTES, np.uint8)
    for packet in range(count):
        at = offset[packet]
        end = at + size[packet]
        found = 0
        state = np.uint64(FNV_BASIS)
        while True:
            start, stop, at = next_unit(data, at, end, length_size)
            if start < 0:
                if start == -2:
                    found |= DAMAGED
                break
            if start == stop:
                continue
            if stop - start < 2:
                found |= DAMAGED
                continue
            kind = data[start] >> 1 & 63
            if data[start] & 1 or data[start + 1] >> 3:  # nuh_layer_id
                continue
            if kind < 32:
                found |= VCL
                if stop - start < 3:
                    found |= DAMAGED
                    continue
                if types[packet] == NO_TYPE:
                    types[packet] = kind
                    layers[packet] = max(int(data[start + 1] & 7) - 1, 0)
                if kind == 19 or kind == 20:
                    found |= IDR
                if data[start + 2] & 0x80 and pictures[packet] < 255:  # first_slice_segment_in_pic_flag
                    pictures[packet] += 1
                    if order[packet] < 0:
                        order[packet] = _hevc_order(data, start, stop, fields, scratch)
                if 16 <= kind <= 23 and data[start + 2] & 0x40:
                    found |= NO_PRIOR_OUTPUT
            elif 32 <= kind <= 34:
                found |= PARAMETERS
                state = _fnv(data, start, stop, state)
            elif kind == 36 or kind == 37:
                found |= END_OF_SEQUENCE
        if found & PARAMETERS:
            hashes[packet] = state
        bits[packet] = found
    return bits, pictures, hashes, order, types, layers


def split_units(packet: bytes, length_size: int) -> list[bytes]:
    """The NAL units of one packet, without lengths, start codes and trailing zeros; damaged ones left out."""
    data = np.frombuffer(packet, np.uint8)
    units: list[bytes] = []
    at = 0
    while True:
        start, stop, at = next_unit(data, at, len(data), length_size)
        if start < 0:
            return units
        if stop > start:
            units.append(packet[start:stop].rstrip(b"\0") if length_size == 0 else packet[start:stop])


def to_rbsp(unit: bytes) -> bytes:
    """A NAL unit without its emulation-prevention bytes."""
    out = np.empty(len(unit), np.uint8)
    return out[: unescape(np.frombuffer(unit, np.uint8), 0, len(unit), out)].tobytes()
