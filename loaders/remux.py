"""A clip's packets as a small file of their own, for decoders that take files only and count pictures.

    plan (decode order)   K  r  w  r  w            file   K  r  w  r  w  K'
    on display            0  3  1  4  2            frame  0  3  1  4  2  5

Frames of the file are the fed packets in the order of display, each once: the place of a packet's picture is
known beforehand. K' is the first packet again. Its picture must be that of K; where a decoder leaves a
picture out, or does not give its last one, it is not.

Every packet holds one whole frame, parameter sets are in the file's header only, and no picture is cropped:
the window that the video shows is given beside the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from surgrec.loaders.clip_plan import EMPTY_FIRST, LEADING, START, ClipPlan
from surgrec.loaders.mp4_clip import write_mp4
from surgrec.loaders.nal import DAMAGED, FIELD, PARAMETERS, HevcSliceFields, scan_h264, scan_hevc, split_units
from surgrec.loaders.packet_index import NO_RANK, VideoInfo
from surgrec.loaders.parameter_sets import parse_h264_sps, parse_hevc_pps, parse_hevc_sps, units_of_extradata
from surgrec.loaders.sps_window import SpsPicture, sps_picture

_SETS = {"h264": (7, 8), "hevc": (32, 33, 34)}
_SPS = {"h264": 7, "hevc": 33}
_SKIPPED_LEADING = (8, 9)  # RASL_N, RASL_R
# HEVC: spliced behind something else, a CRA picture becomes a BLA picture: it starts a new sequence.
_CRA, _BLA_N_LP = 21, 18
# H.264: an access unit delimiter for any slice type. Without, like IDR pictures could run together.
_DELIMITER = b"\0\0\0\2\x09\xf0"


class NotRemuxable(Exception):  # noqa: N818 - it never leaves an engine
    """These packets do not make a file whose frames can be told by counting; the message is the reason."""


@dataclass(frozen=True, slots=True)
class RemuxedClip:
    """A clip as a file.

    file: uint8 [bytes]. packets: how many it holds, with the repeated one. frames: int32 [K], ascending, the
    numbers in the file of the frames to decode. rows: T numbers in [0, K), the frame of each of the clip's
    rows. first, last: numbers in [0, K) of two frames that must be equal. picture: size and window.
    """

    file: NDArray[np.uint8]
    packets: int
    frames: NDArray[np.int32]
    rows: tuple[int, ...]
    first: int
    last: int
    picture: SpsPicture


def remux_clip(
    info: VideoInfo,
    plan: ClipPlan,
    data: bytes | bytearray,
    pts: NDArray[np.int64],
    rank: NDArray[np.uint32],
    full_range: bool = False,
) -> RemuxedClip:
    """The file for a plan of an H.264 or HEVC video whose ranges hold `data`.

    pts, rank: of the plan's packets, [P]. full_range: what the file's header says of luma.

    Raises NotRemuxable where counting pictures could go wrong, or the pictures are not progressive 4:2:0 of
    8 bits.
    """
    if info.codec not in _SETS:
        raise NotRemuxable(f"codec {info.codec}")
    array = np.frombuffer(data, np.uint8)
    first = _units(data, info, plan, 0)
    sets = _parameter_sets(info, first)
    picture = _picture(info.codec, sets)
    bits, pictures, types = _scan(info, sets, array, plan)
    keep = _kept(info, plan, rank, types)
    if np.any(pictures[keep] != 1) or np.any(bits[keep] & (DAMAGED | FIELD)):
        raise NotRemuxable("a packet that is not one whole frame")
    kept = np.flatnonzero(keep)
    samples: list[bytes] = []
    known = {unit.rstrip(b"\0") for unit in sets}
    for k in kept.tolist():
        splice = bool(samples) and bool(plan.roles[k] & START)
        samples.append(_sample(data, info, plan, k, bool(bits[k] & PARAMETERS), known, splice))
    samples.append(_sample(data, info, plan, int(kept[0]), True, known, splice=True))
    order = _display_order(pts[kept], rank[kept])
    places = dict(zip(plan.packets[kept].tolist(), order.tolist(), strict=True))
    try:
        rows = [places[packet] for packet in plan.rows.tolist()]
    except KeyError as error:
        raise NotRemuxable("a wanted frame that leads an open group of pictures") from error
    last = len(samples) - 1
    frames = sorted({*rows, int(order[0]), last})
    number = {frame: k for k, frame in enumerate(frames)}
    whole = [picture.whole if _kind(info.codec, unit) == _SPS[info.codec] else unit for unit in sets]
    size = picture.width, picture.height
    file = write_mp4(info.codec, whole, size, samples, [*order.tolist(), last], full_range)
    return RemuxedClip(
        file=file,
        packets=len(samples),
        frames=np.array(frames, np.int32),
        rows=tuple(number[frame] for frame in rows),
        first=number[int(order[0])],
        last=number[last],
        picture=picture,
    )


def _kind(codec: str, unit: bytes) -> int:
    return unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63


def _units(data: bytes | bytearray, info: VideoInfo, plan: ClipPlan, k: int) -> list[bytes]:
    place, size = int(plan.places[k]), int(plan.sizes[k])
    return split_units(bytes(data[place : place + size]), info.nal_length_size)


def _parameter_sets(info: VideoInfo, first: list[bytes]) -> list[bytes]:
    """Those that the first packet brings along, if they are complete, otherwise the file's own."""
    wanted = _SETS[info.codec]
    for units in (first, units_of_extradata(info.codec, info.extradata)):
        found = [unit for unit in units if _kind(info.codec, unit) in wanted]
        if {_kind(info.codec, unit) for unit in found} == set(wanted):
            return list(dict.fromkeys(found))
    raise NotRemuxable("no parameter sets, or not all of them")


def _picture(codec: str, sets: list[bytes]) -> SpsPicture:
    try:
        found = [sps_picture(codec, unit) for unit in sets if _kind(codec, unit) == _SPS[codec]]
    except ValueError as error:
        raise NotRemuxable(f"parameter sets that cannot be read ({error})") from error
    first = found[0]
    if len(found) > 1:
        raise NotRemuxable("several sequence parameter sets")
    if first.chroma != 1 or first.depth != 8:
        raise NotRemuxable("pictures other than 4:2:0 of 8 bits")
    if not first.progressive:
        raise NotRemuxable("pictures coded as fields or field macroblocks")
    return first


def _scan(
    info: VideoInfo, sets: list[bytes], array: NDArray[np.uint8], plan: ClipPlan
) -> tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.uint8]]:
    """Of each packet: bits u32 [P], pictures u8 [P], HEVC's nal_unit_type u8 [P], zeros for H.264."""
    sps = next(unit for unit in sets if _kind(info.codec, unit) == _SPS[info.codec])
    places, sizes, length_size = plan.places, plan.sizes, info.nal_length_size
    try:
        if info.codec == "h264":
            fields = parse_h264_sps(sps).slice_fields
            bits, pictures, _, _ = scan_h264(array, places, sizes, length_size, fields)
            return bits, pictures, np.zeros(len(bits), np.uint8)
        parameters = parse_hevc_sps(sps)
        extra = max(parse_hevc_pps(unit)[1] for unit in sets if _kind(info.codec, unit) == 34)
    except ValueError as error:
        raise NotRemuxable(f"parameter sets that cannot be read ({error})") from error
    hevc = HevcSliceFields(parameters.order_bits, extra, parameters.colour_planes)
    bits, pictures, _, _, types, _ = scan_hevc(array, places, sizes, length_size, hevc)
    return bits, pictures, types


def _kept(
    info: VideoInfo, plan: ClipPlan, rank: NDArray[np.uint32], types: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """bool [P]: which packets go into the file."""
    keep = plan.sizes > 0
    if info.codec == "h264":
        # What lies before a recovery point cannot be decoded, and how decoders count it differs.
        if np.any(plan.roles & (EMPTY_FIRST | LEADING)):
            raise NotRemuxable("a start at an open group of pictures")
    else:
        # No trailing picture refers to a leading one (H.265 8.3.2); decoders skip RASL pictures at a start.
        keep &= plan.roles & LEADING == 0
        keep &= ~((rank == NO_RANK) & np.isin(types, _SKIPPED_LEADING))
    if not keep[0]:
        raise NotRemuxable("a start without a key frame")
    return keep


def _sample(
    data: bytes | bytearray,
    info: VideoInfo,
    plan: ClipPlan,
    k: int,
    has_sets: bool,
    known: set[bytes],
    splice: bool,
) -> bytes:
    """A packet with lengths of four bytes, without parameter sets; splice: not behind the packet it was."""
    if info.nal_length_size == 4 and not has_sets and not splice:
        place, size = int(plan.places[k]), int(plan.sizes[k])
        return bytes(data[place : place + size])
    found = [_DELIMITER] if splice and info.codec == "h264" else []
    for unit in _units(data, info, plan, k):
        kind = _kind(info.codec, unit)
        if kind in _SETS[info.codec]:
            if unit.rstrip(b"\0") not in known:
                raise NotRemuxable("parameter sets that change within the clip")
            continue
        if splice and info.codec == "h264" and kind == 9:
            continue
        if splice and info.codec == "hevc" and kind == _CRA:
            unit = bytes([unit[0] & 0x81 | _BLA_N_LP << 1]) + unit[1:]
        found.append(len(unit).to_bytes(4, "big") + unit)
    return b"".join(found)


def _display_order(pts: NDArray[np.int64], rank: NDArray[np.uint32]) -> NDArray[np.int64]:
    """int64 [P]: the place on display of each packet, 0 to P - 1."""
    key = pts if np.any(rank == NO_RANK) else rank
    if len(np.unique(key)) != len(key):
        raise NotRemuxable("time stamps that repeat")
    order = np.empty(len(key), np.int64)
    order[np.argsort(key)] = np.arange(len(key))
    return order
