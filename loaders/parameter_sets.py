"""What indexing and cutting clips need from H.264 and HEVC parameter sets and their boxes avcC and hvcC.

Syntax: ITU-T H.264 (08/2021) 7.3.2.1, E.1; ITU-T H.265 (08/2021) 7.3.2.2, 7.3.2.3; ISO/IEC 14496-15.
"""

from __future__ import annotations

from dataclasses import dataclass

from surgrec.loaders.nal import H264SliceFields, split_units, to_rbsp


class BitReader:
    """Reads bits from RBSP bytes; raises ValueError behind their end."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._bits = len(data) * 8
        self._at = 0

    @property
    def position(self) -> int:
        """Bits read so far."""
        return self._at

    def bits(self, count: int) -> int:
        """The next `count` bits as an unsigned number."""
        self._at += count
        if self._at > self._bits:
            raise ValueError("parameter set is cut short")
        return self._value >> (self._bits - self._at) & ((1 << count) - 1)

    def golomb(self) -> int:
        """ue(v)."""
        zeros = 0
        while self.bits(1) == 0:
            zeros += 1
            if zeros > 32:
                raise ValueError("parameter set holds a code longer than 32 bits")
        return (1 << zeros) - 1 + self.bits(zeros)

    def signed_golomb(self) -> int:
        """se(v)."""
        code = self.golomb()
        return (code + 1) // 2 if code & 1 else -(code // 2)


@dataclass(frozen=True, slots=True)
class CodedPicture:
    """Pictures of one sequence parameter set, as coded.

    width, height: luma samples, before cropping. chroma: chroma_format_idc, 1 for 4:2:0. depth: bits of a
    luma sample. progressive: no fields, and no frames made of field macroblocks (H.264 only; always True for
    HEVC). left, right, top, bottom: luma samples that the cropping window takes off. window_bits: [start,
    stop) of the window with its flag, in bits of the RBSP behind the NAL unit's header.
    """

    width: int
    height: int
    chroma: int
    depth: int
    progressive: bool
    left: int
    right: int
    top: int
    bottom: int
    window_bits: tuple[int, int]

    @property
    def shown_width(self) -> int:
        return self.width - self.left - self.right

    @property
    def shown_height(self) -> int:
        return self.height - self.top - self.bottom


@dataclass(frozen=True, slots=True)
class H264Parameters:
    """Of one sequence parameter set. `width` and `height` are shown; `reorder` is max_num_reorder_frames,
    None where unknown."""

    slice_fields: H264SliceFields
    width: int
    height: int
    reorder: int | None
    coded: CodedPicture


@dataclass(frozen=True, slots=True)
class HevcParameters:
    """Of one sequence parameter set. `width` and `height` are shown; `reorder` is sps_max_num_reorder_pics of
    the highest sub-layer, `order_bits` log2_max_pic_order_cnt_lsb."""

    order_bits: int
    colour_planes: bool
    width: int
    height: int
    reorder: int
    coded: CodedPicture


_HIGH_PROFILES = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))


def parse_h264_sps(unit: bytes) -> H264Parameters:
    """Sequence parameter set from its NAL unit (with header). Raises ValueError where it is malformed."""
    reader = BitReader(to_rbsp(unit[1:]))
    profile = reader.bits(8)
    constraints = reader.bits(8)
    reader.bits(8)
    reader.golomb()
    chroma, planes, depth = 1, False, 8
    if profile in _HIGH_PROFILES:
        chroma = reader.golomb()
        planes = chroma == 3 and bool(reader.bits(1))
        depth = reader.golomb() + 8
        reader.golomb()
        reader.bits(1)
        if reader.bits(1):
            for number in range(12 if chroma == 3 else 8):
                if reader.bits(1):
                    _skip_scaling_list(reader, 16 if number < 6 else 64)
    frame_num_bits = reader.golomb() + 4
    order_type = reader.golomb()
    order_bits = 0
    if order_type == 0:
        order_bits = reader.golomb() + 4
    elif order_type == 1:
        reader.bits(1)
        reader.signed_golomb()
        reader.signed_golomb()
        for _ in range(reader.golomb()):
            reader.signed_golomb()
    reader.golomb()
    reader.bits(1)
    columns, rows = reader.golomb() + 1, reader.golomb() + 1
    frame_mbs_only = bool(reader.bits(1))
    if not frame_mbs_only:
        reader.bits(1)
    reader.bits(1)
    fields = 1 if frame_mbs_only else 2
    unit_x = 1 if chroma in (0, 3) else 2
    unit_y = (2 if chroma == 1 else 1) * fields
    left, right, top, bottom, window_bits = _window(reader, unit_x, unit_y)
    coded = CodedPicture(
        width=columns * 16,
        height=rows * 16 * fields,
        chroma=chroma,
        depth=depth,
        progressive=frame_mbs_only,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        window_bits=window_bits,
    )
    reorder = 0 if order_type == 2 else None
    if reader.bits(1):
        found = _h264_vui_reorder(reader)
        # E.2.1: intra-only profiles with constraint_set3_flag imply zero where the VUI is silent.
        reorder = found if reorder is None else reorder
    if reorder is None and profile in (44, 86, 100, 110, 122, 244) and constraints & 0x10:
        reorder = 0
    return H264Parameters(
        H264SliceFields(frame_num_bits, frame_mbs_only, planes, order_bits),
        coded.shown_width,
        coded.shown_height,
        reorder,
        coded,
    )


def _window(reader: BitReader, unit_x: int, unit_y: int) -> tuple[int, int, int, int, tuple[int, int]]:
    """left, right, top, bottom of the cropping window behind its flag, in luma samples, and its bit range."""
    start = reader.position
    left = right = top = bottom = 0
    if reader.bits(1):
        left, right, top, bottom = (reader.golomb() for _ in range(4))
    return left * unit_x, right * unit_x, top * unit_y, bottom * unit_y, (start, reader.position)


def _skip_scaling_list(reader: BitReader, length: int) -> None:
    last = following = 8
    for _ in range(length):
        if following:
            following = (last + reader.signed_golomb()) % 256
        last = following or last


def _h264_vui_reorder(reader: BitReader) -> int | None:
    """max_num_reorder_frames of the VUI parameters, or None."""
    if reader.bits(1) and reader.bits(8) == 255:  # aspect ratio, Extended_SAR
        reader.bits(32)
    if reader.bits(1):  # overscan
        reader.bits(1)
    if reader.bits(1):  # video signal type
        reader.bits(4)
        if reader.bits(1):
            reader.bits(24)
    if reader.bits(1):  # chroma location
        reader.golomb()
        reader.golomb()
    if reader.bits(1):  # timing
        reader.bits(65)
    hypothetical = [_skip_hrd(reader) for _ in range(2) if reader.bits(1)]
    if hypothetical:
        reader.bits(1)
    reader.bits(1)
    if not reader.bits(1):
        return None
    reader.bits(1)
    for _ in range(4):
        reader.golomb()
    return reader.golomb()


def _skip_hrd(reader: BitReader) -> bool:
    count = reader.golomb() + 1
    reader.bits(8)
    for _ in range(count):
        reader.golomb()
        reader.golomb()
        reader.bits(1)
    reader.bits(20)
    return True


def parse_hevc_sps(unit: bytes) -> HevcParameters:
    """Sequence parameter set from its NAL unit (with header). Raises ValueError where it is malformed."""
    reader = BitReader(to_rbsp(unit[2:]))
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
    planes = chroma == 3 and bool(reader.bits(1))
    width, height = reader.golomb(), reader.golomb()
    left, right, top, bottom, window_bits = _window(
        reader, 2 if chroma in (1, 2) else 1, 2 if chroma == 1 else 1
    )
    depth = reader.golomb() + 8
    reader.golomb()
    order_bits = reader.golomb() + 4
    reorder = 0
    for _ in range(sub_layers + 1 if reader.bits(1) else 1):
        reader.golomb()
        reorder = reader.golomb()
        reader.golomb()
    coded = CodedPicture(
        width=width,
        height=height,
        chroma=chroma,
        depth=depth,
        progressive=True,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        window_bits=window_bits,
    )
    return HevcParameters(order_bits, planes, coded.shown_width, coded.shown_height, reorder, coded)


def parse_hevc_pps(unit: bytes) -> tuple[bool, int]:
    """(output_flag_present_flag, num_extra_slice_header_bits) of a picture parameter set.

    With the first, slices may say that a picture is not shown. Raises ValueError where it is malformed.
    """
    reader = BitReader(to_rbsp(unit[2:]))
    reader.golomb()
    reader.golomb()
    reader.bits(1)
    return bool(reader.bits(1)), reader.bits(3)


def length_size(codec: str, extradata: bytes) -> int:
    """Bytes of the length before each NAL unit, 0 for start codes, from the decoder configuration."""
    if codec == "h264" and len(extradata) >= 7 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) >= 23 and extradata[0] <= 1 and extradata[:3] != b"\0\0\1":
        return 0 if extradata[:4] == b"\0\0\0\1" else (extradata[21] & 3) + 1
    return 0


def units_of_extradata(codec: str, extradata: bytes) -> list[bytes]:
    """The parameter sets in avcC, hvcC or Annex B extradata, as NAL units. Cut records give what is whole."""
    if length_size(codec, extradata) == 0:
        return split_units(extradata, 0)
    units: list[bytes] = []
    if codec == "h264":
        at = _take_units(extradata, 6, extradata[5] & 31, units)
        if at < len(extradata):
            _take_units(extradata, at + 1, extradata[at], units)
        return units
    at = 23
    for _ in range(extradata[22]):  # arrays: a byte of type, two of count
        at = _take_units(extradata, at + 3, int.from_bytes(extradata[at + 1 : at + 3], "big"), units)
    return units


def _take_units(extradata: bytes, at: int, count: int, units: list[bytes]) -> int:
    """Append `count` units, each behind its length of two bytes, and return the index behind them; the end
    of the data where one is cut."""
    for _ in range(count):
        size = int.from_bytes(extradata[at : at + 2], "big")
        unit = extradata[at + 2 : at + 2 + size]
        if size == 0 or len(unit) < size:
            return len(extradata)
        units.append(unit)
        at += 2 + size
    return at
