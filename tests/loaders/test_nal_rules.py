"""What NVDEC is never fed: bytes that cannot stand in a NAL unit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from surgrec.loaders.engines.nal_rules import MOST_PADDING, first_unlawful
from surgrec.loaders.packet_index import OK

few_values = st.lists(st.sampled_from((0, 0, 0, 1, 2, 3, 4, 255)), max_size=60).map(bytes)
CODE = b"\0\0\1"


def escaped(payload: bytes) -> bytes:
    """A NAL unit of type 1, its payload written as an encoder does it."""
    out = bytearray(b"\x41")
    for byte in payload + b"\x80":
        if out[-2:] == b"\0\0" and byte <= 3:
            out.append(3)
        out.append(byte)
    return bytes(out)


def found(packets: list[bytes], length_size: int) -> int:
    data = np.frombuffer(b"".join(packets) + b"\0", np.uint8)
    sizes = np.array([len(packet) for packet in packets], np.int64)
    return int(first_unlawful(data, np.cumsum(sizes) - sizes, sizes, length_size))


def packet_of(units: list[bytes], length_size: int) -> bytes:
    if length_size == 0:
        return b"".join(b"\0" + CODE + unit for unit in units)
    return b"".join(len(unit).to_bytes(length_size, "big") + unit for unit in units)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(few_values, min_size=1, max_size=3), min_size=1, max_size=4), st.sampled_from((0, 2, 4))
)
def test_what_encoders_write_passes(packets: list[list[bytes]], length_size: int) -> None:
    written = [packet_of([escaped(payload) for payload in units], length_size) for units in packets]
    assert found(written, length_size) == -1


@settings(max_examples=300, deadline=None)
@given(few_values, few_values, st.sampled_from((b"\0\0\0", b"\0\0\2", CODE)), st.sampled_from((0, 1, 4)))
@example(b"\4", b"\4", b"\0\0\0", 0)
def test_what_they_never_write_does_not(before: bytes, behind: bytes, wrong: bytes, length_size: int) -> None:
    good = packet_of([escaped(b"\4")], length_size)
    spoilt = escaped(before)[:-1] + b"\x04" + wrong + b"\x04" + escaped(behind)
    unlawful = length_size > 0 or wrong != CODE  # between start codes 00 00 01 is the next one
    assert found([good, packet_of([spoilt], length_size)], length_size) == (1 if unlawful else -1)


@pytest.mark.parametrize("length_size", [0, 4])
def test_zeros_at_the_end(length_size: int) -> None:
    """Some recorders fill up with a few; a run of them is a part of the picture that is lost."""
    unit = escaped(b"\4\5\6")
    for count, wanted in ((0, -1), (1, -1), (MOST_PADDING, -1), (MOST_PADDING + 1, 0), (500, 0)):
        assert found([packet_of([unit + bytes(count)], length_size)], length_size) == wanted


def test_lengths_that_lie_are_left_to_others() -> None:
    assert found([b"\0\0\0\x09abc", b"\0\0", b"\0\0\0\0"], 4) == -1


def test_real_streams_pass(stream_corpus) -> None:
    looked_at = 0
    for video in range(len(stream_corpus.index)):
        info = stream_corpus.index.video(video)
        if info.status != OK or info.codec not in ("h264", "hevc"):
            continue
        data = np.fromfile(info.path, np.uint8)
        packets = stream_corpus.index.packets(video)
        places = stream_corpus.index.offset[packets].astype(np.int64)
        sizes = stream_corpus.index.size[packets].astype(np.int64)
        assert first_unlawful(data, places, sizes, info.nal_length_size) == -1, info.path
        looked_at += 1
    assert looked_at > 10
