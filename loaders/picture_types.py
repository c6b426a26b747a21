"""Picture headers of the codecs without NAL units: intra or not, shown or not, referred to or not.

Each scan runs over the mapped file from (offset, size) arrays, every range inside the file, and returns
kind u8 [P] (INTRA, PREDICTED, BIDIRECTIONAL; NO_PICTURE where the packet holds none), shown u8 [P] (frames
that the packet puts on display) and extra u8 [P] (bits CLOSED, DAMAGED, PARAMETERS).
Formulas: ISO/IEC 13818-2 6.2.2.6, 6.2.3; ISO/IEC 14496-2 6.2.3, 6.2.5; RFC 6386 9.1; VP9 bitstream
specification 6.2 and annex B; AV1 bitstream specification 5.3, 5.9.2; FFmpeg libavcodec/msmpeg4dec.c.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray
from surgrec.loaders.nal import find_start_code
from surgrec.loaders.parameter_sets import BitReader

NO_PICTURE: Final = 0
INTRA: Final = 1
PREDICTED: Final = 2
BIDIRECTIONAL: Final = 3

CLOSED: Final = 1  # MPEG-1/2: the group's leading pictures need nothing before it
DAMAGED: Final = 2  # the header is cut or impossible
PARAMETERS: Final = 4  # sequence header, VOL or AV1 sequence header inside

Scan = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


@njit(cache=True, nogil=True)
def scan_mpeg12(data: NDArray[np.uint8], offset: NDArray[np.int64], size: NDArray[np.int64]) -> Scan:
    """MPEG-1 and MPEG-2. Two field pictures in a packet are one frame; `shown` is 0 for a single field."""
    count = offset.shape[0]
    kind = np.zeros(count, np.uint8)
    shown = np.zeros(count, np.uint8)
    extra = np.zeros(count, np.uint8)
    for packet in range(count):
        end = offset[packet] + size[packet]
        at = find_start_code(data, offset[packet], end)
        halves = 0
        half = 2
        while at >= 0 and at < end:
            code = data[at]
            if code == 0 and at + 2 < end:
                half = 2
                halves += half
                found = data[at + 2] >> 3 & 7
                if kind[packet] == NO_PICTURE:
                    kind[packet] = found if found <= 3 else PREDICTED
                if found == 0 or found > 3:
                    extra[packet] |= DAMAGED
            elif code == 0xB8 and at + 4 < end:
                if data[at + 4] & 0x40:
                    extra[packet] |= CLOSED
            elif code == 0xB3:
                extra[packet] |= PARAMETERS
            elif (
                code == 0xB5
                and at + 3 < end
                and data[at + 1] >> 4 == 8
                and half == 2
                and data[at + 3] & 3 != 3
            ):
                half = 1
                halves -= 1
            at = find_start_code(data, at, end)
        if halves & 1:
            extra[packet] |= DAMAGED
        shown[packet] = halves // 2
    return kind, shown, extra


@njit(cache=True, nogil=True)
def scan_mpeg4(
    data: NDArray[np.uint8], offset: NDArray[np.int64], size: NDArray[np.int64], time_bits: int
) -> Scan:
    """MPEG-4 part 2. time_bits: of vop_time_increment, from mpeg4_time_bits. A VOP that is not coded shows
    nothing."""
    count = offset.shape[0]
    kind = np.zeros(count, np.uint8)
    shown = np.zeros(count, np.uint8)
    extra = np.zeros(count, np.uint8)
    for packet in range(count):
        end = offset[packet] + size[packet]
        at = find_start_code(data, offset[packet], end)
        while at >= 0 and at < end:
            code = data[at]
            if code == 0xB6 and at + 1 < end:
                found = data[at + 1] >> 6
                bit = (at + 1) * 8 + 2
                last = end * 8
                while bit < last and data[bit >> 3] >> (7 - (bit & 7)) & 1:  # modulo_time_base
                    bit += 1
                bit += 1 + 1 + time_bits + 1  # its closing zero, marker, increment, marker
                if bit >= last:
                    extra[packet] |= DAMAGED
                elif data[bit >> 3] >> (7 - (bit & 7)) & 1:  # vop_coded
                    if kind[packet] == NO_PICTURE:
                        kind[packet] = (INTRA, PREDICTED, BIDIRECTIONAL, PREDICTED)[found]
                    shown[packet] += 1
            elif 0x20 <= code <= 0x2F:
                extra[packet] |= PARAMETERS
            at = find_start_code(data, at, end)
    return kind, shown, extra


@njit(cache=True, nogil=True)
def scan_vp8(data: NDArray[np.uint8], offset: NDArray[np.int64], size: NDArray[np.int64]) -> Scan:
    """VP8: the frame tag."""
    count = offset.shape[0]
    kind = np.zeros(count, np.uint8)
    shown = np.zeros(count, np.uint8)
    extra = np.zeros(count, np.uint8)
    for packet in range(count):
        if size[packet] < 3:
            extra[packet] |= DAMAGED if size[packet] > 0 else 0
            continue
        tag = data[offset[packet]]
        kind[packet] = PREDICTED if tag & 1 else INTRA
        shown[packet] = tag >> 4 & 1
    return kind, shown, extra


@njit(cache=True)
def _vp9_frame(data: NDArray[np.uint8], start: int) -> tuple[int, int]:
    """(kind, shown) of the VP9 frame whose uncompressed header is at `start`."""
    head = data[start]
    if head >> 6 != 2:
        return NO_PICTURE, 0
    profile = (head >> 5 & 1) | (head >> 4 & 1) << 1
    bit = 4 + (1 if profile == 3 else 0)
    if head >> (7 - bit) & 1:  # show_existing_frame
        return PREDICTED, 1
    return (PREDICTED if head >> (6 - bit) & 1 else INTRA), int(head >> (5 - bit) & 1)


@njit(cache=True, nogil=True)
def scan_vp9(data: NDArray[np.uint8], offset: NDArray[np.int64], size: NDArray[np.int64]) -> Scan:
    """VP9, superframes included: `kind` is that of the first frame in the packet."""
    count = offset.shape[0]
    kind = np.zeros(count, np.uint8)
    shown = np.zeros(count, np.uint8)
    extra = np.zeros(count, np.uint8)
    for packet in range(count):
        start = offset[packet]
        end = start + size[packet]
        if size[packet] == 0:
            continue
        marker = data[end - 1]
        frames = int(marker & 7) + 1
        width = int(marker >> 3 & 3) + 1
        index = 2 + width * frames
        if marker >> 5 != 6 or size[packet] < index or data[end - index] != marker:
            kind[packet], shown[packet] = _vp9_frame(data, start)
            if kind[packet] == NO_PICTURE:
                extra[packet] |= DAMAGED
            continue
        at = start
        for number in range(frames):
            length = 0
            for byte in range(width):
                length |= int(data[end - index + 1 + number * width + byte]) << (8 * byte)
            if length == 0:
                continue
            if length > end - index - at:
                extra[packet] |= DAMAGED
                break
            found, visible = _vp9_frame(data, at)
            if found == NO_PICTURE:
                extra[packet] |= DAMAGED
            if kind[packet] == NO_PICTURE:
                kind[packet] = found
            shown[packet] += visible
            at += length
    return kind, shown, extra


@njit(cache=True, nogil=True)
def scan_av1(data: NDArray[np.uint8], offset: NDArray[np.int64], size: NDArray[np.int64]) -> Scan:
    """AV1 temporal units: `kind` INTRA is a key frame that is shown at once."""
    count = offset.shape[0]
    kind = np.zeros(count, np.uint8)
    shown = np.zeros(count, np.uint8)
    extra = np.zeros(count, np.uint8)
    for packet in range(count):
        at = offset[packet]
        end = at + size[packet]
        while at < end:
            header = int(data[at])
            unit = header >> 3 & 15
            at += 2 if header & 4 else 1
            length = end - at
            if header & 2:  # obu_has_size_field: leb128
                length = 0
                for byte in range(8):
                    if at >= end:
                        break
                    value = int(data[at])
                    at += 1
                    length |= (value & 127) << (7 * byte)
                    if value < 128:
                        break
            if length > end - at or header & 0x80:
                extra[packet] |= DAMAGED
                break
            if unit == 1:
                extra[packet] |= PARAMETERS
            elif (unit == 3 or unit == 6) and length > 0:
                head = int(data[at])
                if head & 0x80:  # show_existing_frame
                    if kind[packet] == NO_PICTURE:
                        kind[packet] = PREDICTED
                    shown[packet] += 1
                else:
                    visible = head >> 4 & 1
                    if kind[packet] == NO_PICTURE:
                        kind[packet] = INTRA if head >> 5 & 3 == 0 and visible else PREDICTED
                    shown[packet] += visible
            at += length
    return kind, shown, extra


@njit(cache=True, nogil=True)
def scan_first_byte(
    data: NDArray[np.uint8],
    offset: NDArray[np.int64],
    size: NDArray[np.int64],
    mask: int,
    intra: int,
    skip: int,
    skip_mask: int,
) -> Scan:
    """Codecs that say INTRA in the bits `mask` of the first byte; headers (skip_mask) are no pictures."""
    count = offset.shape[0]
    kind = np.zeros(count, np.uint8)
    shown = np.zeros(count, np.uint8)
    extra = np.zeros(count, np.uint8)
    for packet in range(count):
        if size[packet] == 0:
            continue
        byte = data[offset[packet]]
        if skip_mask and byte & skip_mask == skip:
            continue
        kind[packet] = INTRA if byte & mask == intra else PREDICTED
        shown[packet] = 1
    return kind, shown, extra


def mpeg4_time_bits(headers: bytes) -> int | None:
    """Bits of vop_time_increment from the VOL header in extradata or a packet; None without a VOL.

    ISO/IEC 14496-2 6.2.3. Raises ValueError where the header is cut.
    """
    for code in range(0x20, 0x30):
        at = headers.find(bytes((0, 0, 1, code)))
        if at < 0:
            continue
        reader = BitReader(headers[at + 4 :])
        reader.bits(9)  # random_accessible_vol, video_object_type_indication
        version = 1
        if reader.bits(1):  # is_object_layer_identifier
            version = reader.bits(4)
            reader.bits(3)
        if reader.bits(4) == 15:  # extended pixel aspect
            reader.bits(16)
        if reader.bits(1):  # vol_control_parameters
            reader.bits(3)
            if reader.bits(1):
                reader.bits(79)
        if reader.bits(2) == 3 and version != 1:  # grayscale shape
            reader.bits(4)
        reader.bits(1)
        resolution = reader.bits(16)
        return max(1, (resolution - 1).bit_length())
    return None
