"""Checksums of packets against the xxhash package."""

from __future__ import annotations

import numpy as np
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders.checksum import MASK, checksum, first_changed


def reference(content: bytes) -> int:
    return xxhash.xxh64_intdigest(content) & MASK


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(0, 9), st.integers(0, 2**32))
def test_it_is_xxh64_wherever_the_bytes_lie(size: int, start: int, seed: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, start + size + 5, np.uint8)
    assert int(checksum(data, start, size)) == reference(data[start : start + size].tobytes())


def test_sizes_of_real_packets() -> None:
    data = np.random.default_rng(1).integers(0, 256, 300_000, np.uint8)
    for size in (4096, 65_537, 299_999):
        assert int(checksum(data, 1, size)) == reference(data[1 : 1 + size].tobytes())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_first_packet_that_changed_is_found(drawn: st.DataObject) -> None:
    generator = np.random.default_rng(drawn.draw(st.integers(0, 999)))
    count = drawn.draw(st.integers(1, 12))
    sizes = generator.integers(1, 90, count)
    places = np.concatenate(([0], np.cumsum(sizes)))[:-1]
    data = generator.integers(0, 256, int(sizes.sum()), np.uint8)
    packets = np.sort(generator.permutation(40)[:count])
    start = drawn.draw(st.integers(0, 5))
    checksums = np.zeros(start + 40, np.uint32)
    for place, size, packet in zip(places.tolist(), sizes.tolist(), packets.tolist(), strict=True):
        checksums[start + packet] = reference(data[place : place + size].tobytes())
    assert first_changed(data, places, sizes, packets, checksums, start) == -1
    hit = drawn.draw(st.integers(0, len(data) - 1))
    data[hit] ^= np.uint8(1 << drawn.draw(st.integers(0, 7)))
    wanted = int(np.searchsorted(places, hit, side="right")) - 1
    assert first_changed(data, places, sizes, packets, checksums, start) == wanted
