"""Packets with start codes: the same units as before, and damaged lengths found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from surgrec.loaders.engines.annexb import START_CODE, parameter_sets, to_start_codes
from surgrec.loaders.parameter_sets import units_of_extradata

LENGTH_SIZES = (1, 2, 3, 4)

packets_of_units = st.lists(st.lists(st.binary(max_size=40), max_size=5), min_size=1, max_size=6)


def with_lengths(units: Sequence[bytes], length_size: int) -> bytes:
    return b"".join(len(unit).to_bytes(length_size, "big") + unit for unit in units)


def with_start_codes(units: Sequence[bytes]) -> bytes:
    return b"".join(START_CODE + unit for unit in units)


def lay_out(
    packets: Sequence[bytes], gaps: Sequence[bytes]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The packets in one buffer, each behind a gap, and a gap at the end."""
    content, places = bytearray(), []
    for gap, packet in zip(gaps, packets, strict=False):
        content += gap
        places.append(len(content))
        content += packet
    content += gaps[-1]
    sizes = [len(packet) for packet in packets]
    return np.frombuffer(content, np.uint8), np.array(places, np.int64), np.array(sizes, np.int64)


def cut(data: NDArray[np.uint8], places: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[bytes]:
    ends = (places + sizes).tolist()
    return [data[place:end].tobytes() for place, end in zip(places.tolist(), ends, strict=True)]


def converted(
    data: NDArray[np.uint8], places: NDArray[np.int64], sizes: NDArray[np.int64], length_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """What to_start_codes makes of sound packets."""
    bad, *found = to_start_codes(data, places, sizes, length_size)
    assert bad == -1
    return found[0], found[1], found[2]


def units_by_length(packet: bytes, length_size: int) -> list[bytes] | None:
    """Plain reference: the units of a packet; None where a length leaves it."""
    units, at = [], 0
    while at < len(packet):
        head = packet[at : at + length_size]
        length = int.from_bytes(head, "big")
        at += length_size + length
        if len(head) < length_size or at > len(packet):
            return None
        units.append(packet[at - length : at])
    return units


@pytest.mark.parametrize("length_size", LENGTH_SIZES)
@settings(deadline=None)
@given(packets=packets_of_units, gaps=st.lists(st.binary(max_size=9), min_size=7, max_size=7))
def test_units_stay_and_gaps_are_left_alone(length_size, packets, gaps):
    gaps = gaps[: len(packets) + 1]
    data, places, sizes = lay_out([with_lengths(units, length_size) for units in packets], gaps)
    before = data.tobytes()
    old_places, old_sizes = places.copy(), sizes.copy()
    found = converted(data, places, sizes, length_size)
    assert cut(*found) == [with_start_codes(units) for units in packets]
    np.testing.assert_array_equal(places, old_places)
    np.testing.assert_array_equal(sizes, old_sizes)
    if length_size == 4:
        assert found[0] is data
        starts = [0, *(old_places + old_sizes).tolist()]
        ends = [*old_places.tolist(), len(data)]
        assert [data[a:b].tobytes() for a, b in zip(starts, ends, strict=True)] == gaps
    else:
        assert data.tobytes() == before


@pytest.mark.parametrize("length_size", LENGTH_SIZES)
@settings(deadline=None)
@given(packets=st.lists(st.binary(max_size=24), min_size=1, max_size=4), data=st.data())
def test_any_bytes_are_converted_or_refused(length_size, packets, data):
    """Small lengths are likely, so that packets of one or two units are among the examples."""
    small = st.integers(0, 6).map(lambda length: length.to_bytes(length_size, "big"))
    packets = [data.draw(small) + packet for packet in packets]
    expected = [units_by_length(packet, length_size) for packet in packets]
    found = lay_out(packets, [b"\0\0\0\2"] * (len(packets) + 1))
    if None in expected:
        assert to_start_codes(*found, length_size)[0] == expected.index(None)
    else:
        assert cut(*converted(*found, length_size)) == [with_start_codes(units) for units in expected]


@pytest.mark.parametrize("length_size", LENGTH_SIZES)
@settings(deadline=None)
@given(units=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4), lost=st.integers(1, 200))
def test_a_packet_cut_short_is_refused_unless_whole_units_are_left(length_size, units, lost):
    packet = with_lengths(units, length_size)
    assume(lost < len(packet))
    packet = packet[:-lost]
    whole = [with_lengths(units[:count], length_size) for count in range(len(units))]
    # What lies behind the packet would complete it: it must not be looked at.
    content = lay_out([packet], [b"", bytes(300)])
    if packet in whole:
        assert cut(*converted(*content, length_size)) == [with_start_codes(units[: whole.index(packet)])]
    else:
        assert to_start_codes(*content, length_size)[0] == 0


@pytest.mark.parametrize("length_size", LENGTH_SIZES)
def test_the_largest_length(length_size):
    """A length with all its bits set is large, not negative."""
    content = lay_out([b"\xff" * length_size + bytes(50)], [b"", bytes(50)])
    assert to_start_codes(*content, length_size)[0] == 0


@pytest.mark.parametrize("length_size", LENGTH_SIZES)
def test_units_of_no_bytes_and_packets_of_no_bytes(length_size):
    packets = [[b""] * 100, [], [b"", b"\x65abc", b""]]
    content = lay_out([with_lengths(units, length_size) for units in packets], [b""] * 4)
    assert cut(*converted(*content, length_size)) == [with_start_codes(units) for units in packets]


@pytest.mark.parametrize(("length_size", "size"), [(2, 65535), (3, 70_000), (4, 2**24 + 5)])
def test_units_whose_length_needs_its_upper_bytes(length_size, size):
    units = [bytes(size), b"\x41" * 300]
    content = lay_out([with_lengths(units, length_size)], [b"", b""])
    assert cut(*converted(*content, length_size)) == [with_start_codes(units)]


@pytest.fixture(scope="module")
def video(stream_corpus):
    """video(kind) -> VideoInfo."""
    return lambda kind: stream_corpus.index.video(stream_corpus.video[kind])


@pytest.mark.parametrize("kind", ["h264_default", "h264_mkv", "hevc_closed", "hevc_10bit"])
def test_parameter_sets_have_start_codes(video, kind):
    info = video(kind)
    found = parameter_sets(info)
    units = units_of_extradata(info.codec, info.extradata)
    assert found == with_start_codes(units)
    types = [unit[0] & 31 if info.codec == "h264" else unit[0] >> 1 & 63 for unit in units]
    # Sequence and picture parameter sets of H.264; video, sequence and picture parameter sets of HEVC.
    assert {7, 8} <= set(types) if info.codec == "h264" else {32, 33, 34} <= set(types)


def test_parameter_sets_of_extradata_with_start_codes(video):
    info = video("h264_default")
    with_codes = dataclasses.replace(info, extradata=parameter_sets(info), nal_length_size=0)
    assert parameter_sets(with_codes) == parameter_sets(info)


def test_no_parameter_sets(video):
    assert parameter_sets(video("vp9")) == b""
    assert parameter_sets(video("av1")) == b""
    assert parameter_sets(dataclasses.replace(video("h264_default"), extradata=b"")) == b""
