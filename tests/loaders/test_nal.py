"""The NAL scanners against packets whose content is known, and against a plain restatement."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders import nal
from surgrec.loaders.nal import H264SliceFields, HevcSliceFields
from surgrec.loaders.parameter_sets import (
    length_size,
    parse_h264_sps,
    parse_hevc_pps,
    parse_hevc_sps,
    units_of_extradata,
)

PROGRESSIVE = H264SliceFields(4, True, False, 0)


def escape(rbsp: bytes) -> bytes:
    """Emulation prevention, H.264 7.4.1."""
    out = bytearray()
    zeros = 0
    for byte in rbsp:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(out)


def pack(units: list[bytes], size: int) -> bytes:
    """Units with lengths of `size` bytes, or start codes where it is 0."""
    if size == 0:
        return b"".join((b"\0\0\1" if n % 2 else b"\0\0\0\1") + unit for n, unit in enumerate(units))
    return b"".join(len(unit).to_bytes(size, "big") + unit for unit in units)


def lay_out(packets: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(file, offsets, sizes), with other bytes between the packets, read-only like a mapped file."""
    offsets, content = [], bytearray(b"\xff\0\0")
    for packet in packets:
        offsets.append(len(content))
        content += packet + b"\0\0\1\x65\x88"  # what lies behind a packet must not matter
    data = np.frombuffer(bytes(content), np.uint8)
    return data, np.array(offsets, np.int64), np.array([len(p) for p in packets], np.int64)


def bits_to_bytes(bits: str) -> bytes:
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def golomb(value: int) -> str:
    return "0" * ((value + 1).bit_length() - 1) + format(value + 1, "b")


@st.composite
def sei(draw: st.DrawFn) -> tuple[bytes, bool]:
    """(SEI unit, whether its first recovery point message says count 0 and exact match)."""
    body, recovery = b"", None
    messages = draw(
        st.lists(st.tuples(st.sampled_from([0, 4, 5, 6, 45, 300]), st.binary(max_size=300)), max_size=3)
    )
    for kind, payload in messages:
        if kind == 6:
            count, exact = draw(st.integers(0, 3)), draw(st.booleans())
            payload = bits_to_bytes(golomb(count) + ("1" if exact else "0") + "000")
            recovery = (count == 0 and exact) if recovery is None else recovery
        body += b"\xff" * (kind // 255) + bytes([kind % 255])
        body += b"\xff" * (len(payload) // 255) + bytes([len(payload) % 255]) + payload
    return b"\x06" + escape(body + b"\x80"), bool(recovery)


@st.composite
def h264_packet(draw: st.DrawFn) -> tuple[list[bytes], int, int]:
    """(units, expected bits, expected first slices)."""
    units, bits, pictures = [], 0, 0
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 19]))
        if kind == 6:
            unit, recovery = draw(sei())
            bits |= nal.RECOVERY if recovery else 0
        else:
            reference = draw(st.integers(0, 3))
            payload = draw(st.binary(min_size=1, max_size=40)) + b"\x80"
            unit = bytes([reference << 5 | kind]) + escape(payload)
            if kind <= 5:
                bits |= nal.VCL | (nal.IDR if kind == 5 else 0) | (nal.REFERENCE if reference else 0)
                pictures += kind not in (3, 4) and payload[0] >= 0x80
            if kind in (7, 8):
                bits |= nal.PARAMETERS
        units.append(unit)
    return units, bits, pictures


@settings(max_examples=200, deadline=None)
@given(st.lists(h264_packet(), min_size=1, max_size=6), st.sampled_from([0, 2, 4]))
def test_h264_scan_finds_what_the_packets_were_made_of(packets: list, size: int) -> None:
    data, offset, sizes = lay_out([pack(units, size) for units, _, _ in packets])
    bits, pictures, hashes, _ = nal.scan_h264(data, offset, sizes, size, PROGRESSIVE)
    assert bits.tolist() == [expected for _, expected, _ in packets]
    assert pictures.tolist() == [expected for _, _, expected in packets]
    assert (hashes != 0).tolist() == [bool(expected & nal.PARAMETERS) for _, expected, _ in packets]


@settings(max_examples=100, deadline=None)
@given(st.lists(h264_packet(), min_size=1, max_size=4), st.sampled_from([0, 1, 2, 4]), st.data())
def test_scan_of_damaged_bytes_stays_inside_the_packet(packets: list, size: int, data: st.DataObject) -> None:
    content = bytearray(b"".join(pack(units, size or 4) for units, _, _ in packets) or b"\0")
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(content)))
    array = np.frombuffer(bytes(content), np.uint8)
    at, length = np.zeros(1, np.int64), np.array([cut], np.int64)
    whole = nal.scan_h264(array, at, length, size, PROGRESSIVE)
    alone = nal.scan_h264(array[:cut].copy(), at, length, size, PROGRESSIVE)
    for first, second in zip(whole, alone, strict=True):
        assert first.tolist() == second.tolist()


@given(st.lists(st.integers(0, 255), min_size=1, max_size=30), st.sampled_from([1, 2, 3, 4]))
def test_lengths_that_leave_the_packet_are_damage(payload: list[int], size: int) -> None:
    unit = bytes([0x41, 0x80, *payload])
    packet = pack([unit], size)
    data, offset, sizes = lay_out([packet, packet[:-1], packet[: size - 1] if size > 1 else packet[:1]])
    bits, *_ = nal.scan_h264(data, offset, sizes, size, PROGRESSIVE)
    assert ((bits & nal.DAMAGED) > 0).tolist() == [False, True, True]


@settings(deadline=None)
@given(
    st.integers(0, 3000),
    st.integers(0, 9),
    st.integers(0, 255),
    st.integers(0, 2**8 - 1),
    st.sampled_from(["frame", "top", "bottom"]),
    st.booleans(),
    st.integers(0, 65535),
    st.integers(0, 2**10 - 1),
)
def test_h264_slice_header(
    first_mb: int, kind: int, pps: int, number: int, structure: str, idr: bool, idr_id: int, order: int
) -> None:
    fields = H264SliceFields(8, False, False, 10)
    bits = golomb(first_mb) + golomb(kind) + golomb(pps) + format(number, "08b")
    bits += {"frame": "0", "top": "10", "bottom": "11"}[structure]
    bits += (golomb(idr_id) if idr else "") + format(order, "010b")
    unit = bytes([0x65 if idr else 0x41]) + escape(bits_to_bytes(bits) + b"\xaa" * 4)
    data, offset, sizes = lay_out([pack([unit], 4)])
    found, pictures, _, low = nal.scan_h264(data, offset, sizes, 4, fields)
    assert bool(found[0] & nal.FIELD) == (structure != "frame")
    assert low[0] == order
    assert pictures[0] == (first_mb == 0)


@settings(deadline=None)
@given(
    st.integers(0, 31),
    st.integers(0, 6),
    st.booleans(),
    st.integers(0, 255),
    st.integers(0, 2),
    st.sampled_from([0, 1]),
    st.integers(0, 63),
)
def test_hevc_slice_header(
    kind: int, layer: int, drops: bool, order: int, slice_type: int, scalable: int, pps: int
) -> None:
    fields = HevcSliceFields(8, 2, False)
    irap = 16 <= kind <= 23
    bits = (
        "1"
        + (str(int(drops)) if irap else "")
        + golomb(pps)
        + "00"
        + golomb(slice_type)
        + format(order, "08b")
    )
    unit = bytes([kind << 1, scalable << 3 | (layer + 1)]) + escape(bits_to_bytes(bits) + b"\xaa" * 4)
    data, offset, sizes = lay_out([pack([unit], 4)])
    found, pictures, _, low, types, layers = nal.scan_hevc(data, offset, sizes, 4, fields)
    if scalable:  # units of other layers are as good as absent
        assert found[0] == 0
        assert types[0] == nal.NO_TYPE
        return
    assert types[0] == kind
    assert layers[0] == layer
    assert pictures[0] == 1
    assert bool(found[0] & nal.NO_PRIOR_OUTPUT) == (irap and drops)
    assert bool(found[0] & nal.IDR) == (kind in (19, 20))
    assert low[0] == (0 if kind in (19, 20) else order)


@given(st.binary(max_size=200))
def test_emulation_prevention_round_trip(rbsp: bytes) -> None:
    assert nal.to_rbsp(escape(rbsp)) == rbsp


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=5), st.sampled_from([0, 1, 2, 4]))
def test_split_units_is_the_inverse_of_packing(payloads: list[bytes], size: int) -> None:
    units = [b"\x67" + escape(payload + b"\x80") for payload in payloads]
    assert nal.split_units(pack(units, size), size) == units


@pytest.mark.parametrize("size", [(160, 96), (162, 98), (1920, 1080)])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("header", ["", "global"])
def test_parameter_sets_of_encoders(codec: str, size: tuple[int, int], header: str) -> None:
    options = {"preset": "ultrafast", "bf": "2"} | ({"x265-params": "log-level=none"} if "5" in codec else {})
    context = av.CodecContext.create(codec, "w")
    context.width, context.height = size
    context.pix_fmt, context.options = "yuv420p", options
    context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
    if header:
        context.flags |= av.codec.context.Flags.global_header
    frame = av.VideoFrame(*size, "yuv420p")
    packets = [bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]]
    content = bytes(context.extradata or b"") if header else packets[0]
    units = nal.split_units(content, 0)
    if codec == "libx264":
        found = parse_h264_sps(next(u for u in units if u[0] & 31 == 7))
        assert found.slice_fields.frame_mbs_only
        assert found.reorder is not None
    else:
        found = parse_hevc_sps(next(u for u in units if u[0] >> 1 & 63 == 33))
        assert parse_hevc_pps(next(u for u in units if u[0] >> 1 & 63 == 34)) == (False, 0)
    assert (found.width, found.height) == size


def test_sets_of_configuration_records() -> None:
    sps, pps, vps = b"\x67" + b"abc", b"\x68" + b"de", b"\x40\x01f"
    record = b"\x01\x64\0\x1f\xff\xe1" + b"\0\x04" + sps + b"\x01" + b"\0\x03" + pps
    assert length_size("h264", record) == 4
    assert units_of_extradata("h264", record) == [sps, pps]
    assert units_of_extradata("h264", record[:-1]) == [sps]
    record = b"\x01" + bytes(20) + b"\xfd\x01" + b"\xa0\0\x01" + b"\0\x03" + vps
    assert length_size("hevc", record) == 2
    assert units_of_extradata("hevc", record) == [vps]
    assert length_size("h264", b"\0\0\0\1" + sps) == 0
    assert units_of_extradata("h264", b"\0\0\0\1" + sps + b"\0\0\1" + pps) == [sps, pps]
    assert length_size("vp9", record) == 0


@pytest.mark.parametrize("cut", range(1, 12))
def test_cut_parameter_sets_are_value_errors(cut: int) -> None:
    unit = bytes.fromhex("6764000aacb2026c80")
    assert parse_h264_sps(unit + bytes.fromhex("0000030080000019078912d0")).width > 0
    if cut < len(unit):
        with pytest.raises(ValueError, match="parameter set"):
            parse_h264_sps(unit[:cut])
