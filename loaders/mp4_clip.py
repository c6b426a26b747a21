"""A small MP4 file in memory around packets that are there already: one video track, no edit list.

Boxes: ISO/IEC 14496-12 (2022); sample entries avc1 and hvc1 and their records: ISO/IEC 14496-15 (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack

import numpy as np
from numpy.typing import NDArray
from surgrec.loaders.nal import to_rbsp

TICKS_PER_SECOND = 25
"""Each packet lasts one tick: times in the file number the pictures, they tell nothing of the clip's rate."""

_IDENTITY = pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def write_mp4(
    codec: str,
    sets: Sequence[bytes],
    size: tuple[int, int],
    samples: Sequence[bytes],
    order: Sequence[int],
    full_range: bool,
) -> NDArray[np.uint8]:
    """uint8 [bytes]: the file.

    codec: "h264" or "hevc". sets: NAL units of the parameter sets. size: width and height of the coded
    picture. samples: the packets in decode order, with four bytes of length before each NAL unit; the first
    is marked as the only key frame, so that a reader that seeks begins there. order: the place on display of
    each, 0 to P - 1. full_range: write that luma uses the full range; otherwise nothing is written of colour.
    """
    kind = pack(">4sI8s", b"isom", 512, b"isommp41")
    head = _box(b"ftyp", kind)
    movie = _movie(codec, sets, size, samples, order, full_range, 0)
    start = len(head) + len(movie) + 8
    movie = _movie(codec, sets, size, samples, order, full_range, start)
    data = b"".join((head, movie, pack(">I4s", 8 + sum(map(len, samples)), b"mdat"), *samples))
    return np.frombuffer(data, np.uint8)


def _movie(
    codec: str,
    sets: Sequence[bytes],
    size: tuple[int, int],
    samples: Sequence[bytes],
    order: Sequence[int],
    full_range: bool,
    start: int,
) -> bytes:
    count = len(samples)
    width, height = size
    # A packet is decoded at tick k and shown at its place plus a delay that leaves no offset below zero.
    offsets = np.asarray(order, np.int64) - np.arange(count)
    offsets -= min(0, int(offsets.min()))
    composition = np.stack((np.ones(count, np.int64), offsets), 1).astype(">u4").tobytes()
    sizes = np.array([len(sample) for sample in samples]).astype(">u4").tobytes()
    table = _box(
        b"stbl",
        _full(b"stsd", pack(">I", 1) + _entry(codec, sets, size, full_range)),
        _full(b"stts", pack(">III", 1, count, 1)),
        _full(b"ctts", pack(">I", count) + composition),
        _full(b"stss", pack(">II", 1, 1)),
        _full(b"stsc", pack(">IIII", 1, 1, count, 1)),
        _full(b"stsz", pack(">II", 0, count) + sizes),
        _full(b"stco", pack(">II", 1, start)),
    )
    media = _box(
        b"mdia",
        _full(b"mdhd", pack(">IIIIHH", 0, 0, TICKS_PER_SECOND, count, 0x55C4, 0)),  # language "und"
        _full(b"hdlr", pack(">I4s12x", 0, b"vide") + b"\0"),
        _box(
            b"minf",
            _full(b"vmhd", bytes(8), flags=1),
            _box(b"dinf", _full(b"dref", pack(">I", 1) + _full(b"url ", b"", flags=1))),
            table,
        ),
    )
    track = _full(
        b"tkhd",
        pack(">5I8x4H", 0, 0, 1, 0, count, 0, 0, 0, 0) + _IDENTITY + pack(">II", width << 16, height << 16),
        flags=3,
    )
    header = _full(
        b"mvhd",
        pack(">4IIH10x", 0, 0, TICKS_PER_SECOND, count, 1 << 16, 0x0100)
        + _IDENTITY
        + bytes(24)
        + pack(">I", 2),
    )
    return _box(b"moov", header, _box(b"trak", track, media))


def _box(name: bytes, *content: bytes) -> bytes:
    return pack(">I4s", 8 + sum(map(len, content)), name) + b"".join(content)


def _full(name: bytes, content: bytes, flags: int = 0) -> bytes:
    return _box(name, pack(">I", flags), content)


def _entry(codec: str, sets: Sequence[bytes], size: tuple[int, int], full_range: bool) -> bytes:
    fixed = pack(">6xH16xHHIIIH32xHh", 1, *size, 72 << 16, 72 << 16, 0, 1, 24, -1)
    # Primaries, transfer and matrix 2: unspecified.
    colour = _box(b"colr", pack(">4sHHHB", b"nclx", 2, 2, 2, 0x80)) if full_range else b""
    if codec == "h264":
        return _box(b"avc1", fixed, _box(b"avcC", _avc_record(sets)), colour)
    return _box(b"hvc1", fixed, _box(b"hvcC", _hevc_record(sets)), colour)


def _avc_record(sets: Sequence[bytes]) -> bytes:
    sequence = [unit for unit in sets if unit[0] & 31 == 7]
    picture = [unit for unit in sets if unit[0] & 31 == 8]
    record = b"\1" + sequence[0][1:4] + b"\xff" + bytes([0xE0 | len(sequence)])
    record += b"".join(pack(">H", len(unit)) + unit for unit in sequence)
    record += bytes([len(picture)]) + b"".join(pack(">H", len(unit)) + unit for unit in picture)
    if sequence[0][1] in (100, 110, 122, 144):
        record += b"\xfd\xf8\xf8\0"  # 4:2:0, 8 bits, no extensions
    return record


def _hevc_record(sets: Sequence[bytes]) -> bytes:
    kinds = sorted({unit[0] >> 1 & 63 for unit in sets})
    sequence = to_rbsp(next(unit for unit in sets if unit[0] >> 1 & 63 == 33)[2:])
    # Profile, tier, level; nothing known of segmentation, parallelism; 4:2:0, 8 bits; lengths of 4 bytes.
    record = b"\1" + sequence[1:13] + b"\xf0\0\xfc\xfd\xf8\xf8\0\0\x0f" + bytes([len(kinds)])
    for kind in kinds:
        units = [unit for unit in sets if unit[0] >> 1 & 63 == kind]
        record += pack(">BH", 0x80 | kind, len(units))
        record += b"".join(pack(">H", len(unit)) + unit for unit in units)
    return record
