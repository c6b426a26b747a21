"""Clips of one decode: where they begin, what is decoded for them, which rows are theirs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from surgrec.kernels.planes import Colour, Planes
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.base import DecodedClip
from surgrec.loaders.index_writer import Packets, Row, Source, default_values, write_index
from surgrec.loaders.packet_index import KEY, OK, SEQUENTIAL, PacketIndex
from surgrec.loaders.shared_decode import further_starts, share

unit_draws = st.floats(0, 1, exclude_max=True)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> PacketIndex:
    """300 frames, key frames 0, 100 and 200; the same without random access."""
    path = tmp_path_factory.mktemp("index") / "index.h5"
    n = 300
    flags = np.zeros(n, np.uint8)
    flags[::100] = KEY

    def source(number: int, status: int) -> Source:
        values = default_values(f"video{number}.mp4")
        values.update(status=status, packet_count=n, frame_count=n, rate=25.0, duration=n / 25)
        values.update(time_base_num=1, time_base_den=25, width=64, height=48)
        numbers = np.arange(n, dtype=np.uint32)
        packets = Packets(
            offset=numbers.astype(np.uint64) * 10,
            size=np.full(n, 10, np.uint32),
            pts=numbers.astype(np.int64),
            rank=numbers,
            flags=flags,
            checksum=numbers,
            display=numbers,
        )
        return Source(Row(values), lambda: packets)

    write_index(path, [source(0, OK), source(1, SEQUENTIAL)])
    return PacketIndex.open(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 269), st.lists(unit_draws, min_size=1, max_size=6))
def test_further_clips_begin_where_the_decode_goes_along(
    index: PacketIndex, first: int, draws: Sequence[float]
) -> None:
    clip = tuple(range(first, first + 31, 10))
    segment = (first // 50 * 50, first // 50 * 50 + 50)
    starts = further_starts(index, 0, segment, clip, 269, draws)
    assert len({first, *starts}) == len(draws) + 1
    for start in starts:
        assert first // 100 * 100 <= start <= first + 30
        assert start <= 269
    low, high = max(segment[0], first // 100 * 100), min(segment[1], first + 31, 270)
    if high - low > len(draws):
        assert all(low <= start < high for start in starts)


def test_every_start_of_the_stretch_is_drawn(index: PacketIndex) -> None:
    clip = (120, 130)
    found = [further_starts(index, 0, (110, 150), clip, 290, [draw])[0] for draw in np.arange(0, 1, 0.001)]
    counts = np.bincount(found, minlength=150)[110:131]
    assert counts[10] == 0
    assert set(np.delete(counts, 10)) <= {49, 50, 51}


def test_a_short_segment_borrows_from_its_video(index: PacketIndex) -> None:
    assert sorted(further_starts(index, 0, (120, 121), (120, 130), 290, [0.0, 0.9])) == [121, 122]
    # At the end of the video, from before the segment; a key frame bounds it.
    assert sorted(further_starts(index, 0, (290, 300), (290, 299), 290, [0.0, 0.9])) == [288, 289]
    assert further_starts(index, 0, (200, 201), (200, 299), 200, [0.0, 0.9]) == [200, 200]


def test_without_random_access_all_before_is_decoded_anyhow(index: PacketIndex) -> None:
    assert further_starts(index, 1, (0, 300), (150, 160), 290, [0.0]) == [0]
    assert further_starts(index, 0, (0, 300), (150, 160), 290, [0.0]) == [100]


def test_frames_are_decoded_once_and_each_clip_takes_its_rows() -> None:
    decode = share(7, 3, [(4, 6, 8), (6, 8, 10), (1, 2, 2)], [(50, 0), (61, 1), (72, 2), (83, 0)])
    assert decode.request == ClipRequest(50, 3, (1, 2, 4, 6, 8, 10))
    frames = np.random.default_rng(0).integers(0, 256, (6, 4, 6, 3), dtype=np.uint8)
    clips = decode.cut(DecodedClip(decode.request, frames, 12, 1, 1))
    for clip, sample, expected in zip(
        clips, (50, 61, 72, 83), ((4, 6, 8), (6, 8, 10), (1, 2, 2), (4, 6, 8)), strict=True
    ):
        assert clip.request == ClipRequest(sample, 3, expected)
        rows = [decode.request.frames.index(frame) for frame in expected]
        assert np.array_equal(clip.frames, frames[rows])


def test_planes_are_shared() -> None:
    decode = share(7, 3, [(4, 6), (6, 8)], [(50, 0), (61, 1)])
    planes = tuple(torch.zeros(9, 4, 6, dtype=torch.uint8) for _ in range(3))
    whole = Planes((planes[0], planes[1], planes[2]), (8, 0, 3), Colour("bt709", False), 90)
    clips = decode.cut(DecodedClip(decode.request, whole, 12, 1, 1))
    assert [clip.frames.rows for clip in clips] == [(8, 0), (0, 3)]
    for clip in clips:
        assert clip.frames.planes is whole.planes
        assert (clip.height, clip.width, clip.frames.rotation) == (6, 4, 90)


@pytest.mark.parametrize("frames", [(4, 6, 8), (1, 1, 2)])
def test_one_clip_is_decoded_as_it_is(frames: tuple[int, ...]) -> None:
    decode = share(7, 3, [frames], [(50, 0), (51, 0)])
    assert decode.request == ClipRequest(50, 3, frames)
    pixels = np.zeros((3, 4, 6, 3), np.uint8)
    for clip in decode.cut(DecodedClip(decode.request, pixels, 12, 1, 1)):
        assert clip.frames is pixels


def test_rows_do_not_decide_what_is_decoded() -> None:
    """Whether a unit decodes must be the same for each rank, whichever members it shows."""
    clips = [(4, 6), (6, 8), (9, 11)]
    whole = share(7, 0, clips, [(1, 0), (2, 1), (3, 2)])
    for shown in ([(1, 0)], [(3, 2)], [(2, 1), (3, 2)]):
        assert share(7, 0, clips, shown).request.frames == whole.request.frames
