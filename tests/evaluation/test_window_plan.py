"""Windows over a video: where they lie, what they hold at its end and at holes, and how they are decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.packet_index import PacketIndex

from surgrec.evaluation.features import FeatureError
from surgrec.evaluation.sliding import read_windows
from surgrec.evaluation.window_plan import Window, WindowPlan, pieces_of, plan_windows

MakeIndex = Callable[[Sequence[dict[str, Any]]], PacketIndex]
STRIDE = {"frames": 4, "stride": 5, "size": 32}
"""A clip spans 16 frames."""


def spread(index: PacketIndex, video: int, start: int, end: int, clip: int, clips: int) -> tuple[int, ...]:
    return tuple(np.linspace(start, end - 1, 4).astype(int).tolist())


def plan(index: PacketIndex, every: float, length: float | None = None, **geometry: Any) -> WindowPlan:
    return plan_windows(index, 0, geometry or STRIDE, spread, every, length)


def test_windows_of_the_clips_length(make_index: MakeIndex) -> None:
    found = plan(make_index([{"frames": 50}]), 0.4)
    assert found.seconds == 2.0
    assert found.holes == []
    # Each 10 frames, while a clip fits; the last one ends with the video.
    assert [window.frames for window in found.windows] == [
        (0, 5, 10, 15),
        (10, 15, 20, 25),
        (20, 25, 30, 35),
        (30, 35, 40, 45),
        (34, 39, 44, 49),
    ]
    assert [(window.start, window.end) for window in found.windows[:2]] == [(0, 0.64), (0.4, 1.04)]
    assert found.windows[-1].end == 2.0


def test_windows_by_frames_per_second(make_index: MakeIndex) -> None:
    pts = np.cumsum([0, *np.random.default_rng(0).integers(1, 4, 99)])  # units of 1/25 s
    found = plan(make_index([{"pts": pts, "frame_count": 100}]), 1.0, frames=4, fps=2.0, size=32)
    for window in found.windows[:-1]:
        times = pts[list(window.frames)] / 25
        assert (np.abs(times - times[0] - np.arange(4) / 2) <= 3 / 25).all()
    assert found.windows[-1].frames[-1] >= 97
    gaps = np.diff([window.start for window in found.windows[:-1]])
    assert (np.abs(gaps - 1) <= 4 / 25).all()


def test_windows_of_a_length_of_their_own(make_index: MakeIndex) -> None:
    index = make_index([{"frames": 100}])
    found = plan(index, 1.0, 2.0)
    assert [(window.start, window.end) for window in found.windows] == [(0, 2), (1, 3), (2, 4)]
    assert found.windows[1].frames == spread(index, 0, 25, 75, 0, 1)
    # As long as the video, and longer.
    assert [window.frames for window in plan(index, 1.0, 4.0).windows] == [(0, 33, 66, 99)]
    assert [window.frames for window in plan(index, 1.0, 9.0).windows] == [(0, 33, 66, 99)]


def test_a_video_shorter_than_a_clip_is_one_window(make_index: MakeIndex) -> None:
    found = plan(make_index([{"frames": 7}]), 1.0)
    assert found.windows == [Window((0, 2, 4, 6), 0.0, 0.28)]
    assert len(plan(make_index([{"frames": 1}]), 1.0).windows) == 1


def test_no_window_reaches_over_a_hole(make_index: MakeIndex) -> None:
    """40 frames, 60 seconds without one, 40 frames."""
    pts = np.r_[np.arange(40), np.arange(40) + 40 + 1500]
    found = plan(make_index([{"pts": pts, "frame_count": 80}]), 0.4)
    assert found.holes == [(1.6, 61.6)]
    assert found.seconds == 63.2
    before = [window for window in found.windows if window.end <= 1.6]
    after = [window for window in found.windows if window.start >= 61.6]
    assert len(before) + len(after) == len(found.windows)
    assert (before[-1].frames, after[0].frames) == ((24, 29, 34, 39), (40, 45, 50, 55))
    # One frame a second is no hole.
    assert plan(make_index([{"pts": np.arange(60) * 25, "frame_count": 60}]), 5.0).holes == []


def test_pictures_need_a_length(make_index: MakeIndex) -> None:
    with pytest.raises(FeatureError, match="give --window"):
        plan(make_index([{"frames": 50}]), 1.0, pictures=4, spread="even")
    assert plan(make_index([{"frames": 50}]), 1.0, 1.0, pictures=4, spread="even").windows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.integers(20, 400), st.integers(1, 60), st.integers(1, 12), st.integers(5, 200))
def test_every_frame_is_in_one_piece(
    make_index: MakeIndex, count: int, every: int, stride: int, most: int
) -> None:
    """Pieces are in order, hold each frame that is wanted once, and no more than there is room for."""
    index = make_index([{"frames": count}])
    found = plan(index, every / 25, frames=4, stride=stride, size=32)
    frame = 64 * 48 * 3
    pieces = pieces_of(index, 0, found.windows, torch.device("cpu"), most * frame)
    joined = [each for piece in pieces for each in piece]
    assert joined == sorted({each for window in found.windows for each in window.frames})
    assert max(map(len, pieces)) <= most


@pytest.mark.parametrize("kind", ["h264_default", "h264_open_gop", "hevc_closed"])
@pytest.mark.parametrize("most", [1 << 30, 200_000])
def test_windows_are_the_clips_that_are_read_alone(stream_corpus: Any, kind: str, most: int) -> None:
    """To the bit, with pieces of a few frames, too."""
    index, video = stream_corpus.index, stream_corpus.video[kind]
    found = plan_windows(index, video, {"frames": 4, "stride": 3, "size": 32}, spread, 0.2, None)
    windows = dict(enumerate(found.windows))
    assert len(windows) > 4
    with ClipStream(index, DataConfig(size=32), "cpu", 1, chunk=1) as stream:
        batches = list(read_windows(stream, index, video, windows, 3, most))
        requests = [ClipRequest(number, video, window.frames) for number, window in windows.items()]
        (alone,) = stream.read([requests])
    numbers = [number for batch in batches for number in batch.numbers]
    assert numbers == list(windows)
    assert not any(batch.missing for batch in batches)
    assert max(len(batch.numbers) for batch in batches) <= 3
    assert torch.equal(torch.cat([batch.frames for batch in batches]), alone.frames)
