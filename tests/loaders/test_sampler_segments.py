"""Segments: cut by time stamps, none lost, none overlapping, videos left out with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from surgrec.loaders.packet_index import ERROR, REMOVED, SEQUENTIAL
from surgrec.loaders.segments import SegmentTable, cut_segments

MakeIndex = Callable[[Any], Any]


def pieces(table: SegmentTable, video: int = 0) -> list[tuple[int, int]]:
    rows = table.video == video
    return list(zip(table.start[rows].tolist(), table.end[rows].tolist(), strict=True))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [(0, 1)]),
        (249, [(0, 249)]),
        (250, [(0, 250)]),
        (374, [(0, 374)]),  # the last 124 frames are less than half a segment
        (375, [(0, 250), (250, 375)]),
        (500, [(0, 250), (250, 500)]),
        (1000, [(0, 250), (250, 500), (500, 750), (750, 1000)]),
    ],
)
def test_ten_seconds_of_25_frames(
    make_index: MakeIndex, frames: int, expected: list[tuple[int, int]]
) -> None:
    table, unusable = cut_segments(make_index([{"frames": frames}]), 10.0, frames=1, stride=1)
    assert pieces(table) == expected
    assert unusable == []


def test_uneven_rate_is_cut_by_time(make_index: MakeIndex) -> None:
    """25 frames a second for 20 s, then 5 a second for 20 s: a segment lasts 10 s in both."""
    pts = [n * 40 for n in range(500)] + [20_000 + n * 200 for n in range(100)]
    index = make_index([{"pts": pts, "time_base_num": 1, "time_base_den": 1000}])
    table, _ = cut_segments(index, 10.0, frames=1, stride=1)
    assert pieces(table) == [(0, 250), (250, 500), (500, 550), (550, 600)]


def test_first_pts_and_rounded_time_stamps_do_not_matter(make_index: MakeIndex) -> None:
    ticks = [-3000 + round(n * 1000 / 30) for n in range(900)]
    index = make_index([{"pts": ticks, "time_base_num": 1, "time_base_den": 1000}])
    table, _ = cut_segments(index, 10.0, frames=1, stride=1)
    assert pieces(table) == [(0, 300), (300, 600), (600, 900)]


def test_a_hole_in_time_makes_no_empty_segment(make_index: MakeIndex) -> None:
    pts = list(range(500)) + [10**9 + n for n in range(500)]
    table, _ = cut_segments(make_index([{"pts": pts}]), 10.0, frames=1, stride=1)
    assert pieces(table) == [(0, 250), (250, 500), (500, 750), (750, 1000)]


def test_equal_time_stamps_give_one_segment(make_index: MakeIndex) -> None:
    table, _ = cut_segments(make_index([{"pts": [5] * 700}]), 10.0, frames=1, stride=1)
    assert pieces(table) == [(0, 700)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=200), min_size=1, max_size=3),
    st.floats(0.05, 30.0),
)
def test_segments_tile_each_video(make_index: MakeIndex, steps: list[list[int]], seconds: float) -> None:
    index = make_index([{"pts": np.cumsum(video)} for video in steps])
    table, _ = cut_segments(index, seconds, frames=1, stride=1)
    for video, gaps in enumerate(steps):
        found = pieces(table, video)
        assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])]
        assert found[-1][1] == len(gaps)
        pts = np.cumsum(gaps)
        for start, end in found[:-1]:
            assert pts[end] - pts[start] >= seconds * 25 - 0.5
            # Only a single frame, before a hole, may last longer.
            assert pts[end - 1] - pts[start] < seconds * 25


def test_videos_left_out_are_listed_with_the_reason(make_index: MakeIndex) -> None:
    index = make_index(
        [
            {"frames": 100, "path": "good.mp4"},
            {"frames": 100, "path": "ts.ts", "status": SEQUENTIAL, "reason": "remux it"},
            {"frames": 0, "path": "text.mp4", "status": ERROR, "reason": "no video stream"},
            {"frames": 100, "path": "gone.mp4", "status": REMOVED, "reason": "gone"},
            {"frames": 60, "path": "short.mp4"},
            {"frames": 61, "path": "just.mp4"},
            {"frames": 0, "path": "empty.mp4"},
        ]
    )
    table, unusable = cut_segments(index, 10.0, frames=16, stride=4)
    assert table.video.tolist() == [0, 5]
    assert [(entry.video, entry.path) for entry in unusable] == [
        (1, "ts.ts"),
        (2, "text.mp4"),
        (3, "gone.mp4"),
        (4, "short.mp4"),
        (6, "empty.mp4"),
    ]
    reasons = [entry.reason for entry in unusable]
    assert "remux it" in reasons[0]
    assert "no video stream" in reasons[1]
    assert "REMOVED" in reasons[2]
    assert "span 61" in reasons[3]
    table, unusable = cut_segments(index, 10.0, frames=16, stride=4, allow_sequential=True)
    assert table.video.tolist() == [0, 1, 5]
    assert "ts.ts" not in [entry.path for entry in unusable]
    table, unusable = cut_segments(index, 10.0, frames=16, fps=5.0)
    assert table.video.tolist() == [0]  # 3 s between the first and the last frame are 76 frames
    table, unusable = cut_segments(index, 10.0, frames=1, stride=1, videos=[4, 5])
    assert table.video.tolist() == [4, 5]
    assert unusable == []


def test_no_usable_video_is_an_error_that_says_why(make_index: MakeIndex) -> None:
    index = make_index([{"frames": 3, "path": f"short{k}.mp4"} for k in range(7)])
    with pytest.raises(
        ValueError, match=r"none of its 7 videos gives a clip(.|\n)*short0.mp4(.|\n)*and 2 more"
    ):
        cut_segments(index, 10.0, frames=16, stride=4)
    with pytest.raises(ValueError, match="none of its 0 videos"):
        cut_segments(make_index([]), 10.0, frames=16, stride=4)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_refused_lengths(make_index: MakeIndex, seconds: float) -> None:
    with pytest.raises(ValueError, match="segment length is"):
        cut_segments(make_index([{"frames": 100}]), seconds, frames=1, stride=1)


def test_refused_tables() -> None:
    one = np.ones(1, np.int64)
    with pytest.raises(ValueError, match="at least one frame"):
        SegmentTable(np.zeros(1, np.int32), one, one)
    with pytest.raises(ValueError, match="unequal length"):
        SegmentTable(np.zeros(2, np.int32), one, one + 1)
