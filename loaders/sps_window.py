"""A sequence parameter set without its cropping window, and what the window showed.

Syntax: ITU-T H.264 (08/2021) 7.4.1.1; ITU-T H.265 (08/2021) 7.3.1.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from surgrec.loaders.nal import to_rbsp
from surgrec.loaders.parameter_sets import parse_h264_sps, parse_hevc_sps


@dataclass(frozen=True, slots=True)
class SpsPicture:
    """Pictures of one sequence parameter set, in luma samples.

    width, height: as coded. top, left, shown_height, shown_width: the window of them that is shown. chroma:
    chroma_format_idc, 1 for 4:2:0. depth: bits of a luma sample. progressive: no fields, and no frames made
    of field macroblocks (H.264 only; always True for HEVC). whole: the NAL unit of a set that differs in
    that it shows all of the coded picture.
    """

    width: int
    height: int
    top: int
    left: int
    shown_height: int
    shown_width: int
    chroma: int
    depth: int
    progressive: bool
    whole: bytes


def sps_picture(codec: str, unit: bytes) -> SpsPicture:
    """From the NAL unit (with header) of an H.264 ("h264") or HEVC ("hevc") set; ValueError if malformed."""
    if codec == "h264":
        coded, header = parse_h264_sps(unit).coded, 1
    else:
        coded, header = parse_hevc_sps(unit).coded, 2
    if coded.shown_width < 1 or coded.shown_height < 1:
        raise ValueError(f"parameter set crops all of its {coded.width}x{coded.height} pictures")
    return SpsPicture(
        width=coded.width,
        height=coded.height,
        top=coded.top,
        left=coded.left,
        shown_height=coded.shown_height,
        shown_width=coded.shown_width,
        chroma=coded.chroma,
        depth=coded.depth,
        progressive=coded.progressive,
        whole=unit[:header] + _escape(_without(to_rbsp(unit[header:]), *coded.window_bits)),
    )


def _without(payload: bytes, start: int, stop: int) -> bytes:
    """The payload with one bit of 0 in the place of bits [start, stop)."""
    value, bits = int.from_bytes(payload, "big"), len(payload) * 8
    rest = bits - stop
    value = (value >> (bits - start)) << (rest + 1) | value & ((1 << rest) - 1)
    bits = start + 1 + rest
    unused = (value & -value).bit_length() - 1  # zeros behind the stop bit
    value, bits = value >> unused, bits - unused
    padding = -bits % 8
    return (value << padding).to_bytes((bits + padding) // 8, "big")


def _escape(payload: bytes) -> bytes:
    """With emulation-prevention bytes."""
    out = bytearray()
    zeros = 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(out)
