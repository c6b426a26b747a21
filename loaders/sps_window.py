"""The picture that a sequence parameter set describes, and the same set without its cropping window.

Syntax: ITU-T H.264 (08/2021) 7.3.2.1.1, 7.4.1.1; ITU-T H.265 (08/2021) 7.3.2.2.1, 7.3.1.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from surgrec.loaders.nal import to_rbsp
from surgrec.loaders.parameter_sets import HIGH_PROFILES, BitReader


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
    return _h264(unit) if codec == "h264" else _hevc(unit)


class _Reader(BitReader):
    """Knows where it is, and offsets that may be absent."""

    @property
    def position(self) -> int:
        return self._at

    def window(self) -> tuple[int, int, int, int]:
        """left, right, top, bottom in chroma units, behind a flag."""
        if not self.bits(1):
            return 0, 0, 0, 0
        return self.golomb(), self.golomb(), self.golomb(), self.golomb()


def _h264(unit: bytes) -> SpsPicture:
    payload = to_rbsp(unit[1:])
    reader = _Reader(payload)
    profile = reader.bits(8)
    reader.bits(16)
    reader.golomb()
    chroma, depth = 1, 8
    if profile in HIGH_PROFILES:
        chroma = reader.golomb()
        if chroma == 3:
            reader.bits(1)
        depth = reader.golomb() + 8
        reader.golomb()
        reader.bits(1)
        if reader.bits(1):
            for number in range(12 if chroma == 3 else 8):
                if reader.bits(1):
                    _skip_scaling_list(reader, 16 if number < 6 else 64)
    reader.golomb()
    order_type = reader.golomb()
    if order_type == 0:
        reader.golomb()
    elif order_type == 1:
        reader.bits(1)
        reader.signed_golomb()
        reader.signed_golomb()
        for _ in range(reader.golomb()):
            reader.signed_golomb()
    reader.golomb()
    reader.bits(1)
    columns, rows = reader.golomb() + 1, reader.golomb() + 1
    progressive = bool(reader.bits(1))
    if not progressive:
        reader.bits(1)
    reader.bits(1)
    step_x = 1 if chroma in (0, 3) else 2
    step_y = (2 if chroma == 1 else 1) * (1 if progressive else 2)
    width, height = columns * 16, rows * 16 * (1 if progressive else 2)
    steps = step_x, step_y
    return _picture(unit[:1], payload, reader, (width, height), steps, (chroma, depth), progressive)


def _hevc(unit: bytes) -> SpsPicture:
    payload = to_rbsp(unit[2:])
    reader = _Reader(payload)
    reader.bits(4)
    sub_layers = reader.bits(3)
    reader.bits(1)
    reader.bits(96)  # general profile and level
    present = [(reader.bits(1), reader.bits(1)) for _ in range(sub_layers)]
    if sub_layers:
        reader.bits(2 * (8 - sub_layers))
    for profile, level in present:
        reader.bits(88 * profile + 8 * level)
    reader.golomb()
    chroma = reader.golomb()
    if chroma == 3:
        reader.bits(1)
    width, height = reader.golomb(), reader.golomb()
    steps = (2 if chroma in (1, 2) else 1, 2 if chroma == 1 else 1)
    ahead = _Reader(payload)
    ahead.bits(reader.position)
    ahead.window()
    depth = ahead.golomb() + 8
    return _picture(unit[:2], payload, reader, (width, height), steps, (chroma, depth), True)


def _picture(
    header: bytes,
    payload: bytes,
    reader: _Reader,
    size: tuple[int, int],
    steps: tuple[int, int],
    samples: tuple[int, int],
    progressive: bool,
) -> SpsPicture:
    """`reader` stands before the flag of the cropping window."""
    start = reader.position
    left, right, top, bottom = reader.window()
    width, height = size
    shown_width, shown_height = width - (left + right) * steps[0], height - (top + bottom) * steps[1]
    if shown_width < 1 or shown_height < 1:
        raise ValueError(f"parameter set crops all of its {width}x{height} pictures")
    whole = header + _escape(_without(payload, start, reader.position))
    return SpsPicture(
        width=width,
        height=height,
        top=top * steps[1],
        left=left * steps[0],
        shown_height=shown_height,
        shown_width=shown_width,
        chroma=samples[0],
        depth=samples[1],
        progressive=progressive,
        whole=whole,
    )


def _skip_scaling_list(reader: BitReader, length: int) -> None:
    last = following = 8
    for _ in range(length):
        if following:
            following = (last + reader.signed_golomb()) % 256
        last = following or last


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
