"""Crop windows inside the content area, and a digest that knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_source import ClipSource
from surgrec.loaders.crop import CropWindows
from surgrec.loaders.engines.base import DecodedClip
from surgrec.loaders.packet_index import PacketIndex

DATA = DataConfig(frames=2, stride=1, size=16)
AREAS = np.array([[10, 20, 60, 80], [0, 0, 0, 0], [30, 5, 50, 40]], np.int32)


@pytest.fixture
def index(make_index: Callable[[Any], PacketIndex]) -> PacketIndex:
    """Pictures of 100 x 120, the last one shown turned."""
    size = {"frames": 50, "height": 100, "width": 120}
    return make_index([size, size, {**size, "rotation": 90}])


def clips(video: int, count: int, height: int = 100, width: int = 120) -> list[DecodedClip]:
    pixels = np.zeros((2, height, width, 3), np.uint8)
    return [DecodedClip(ClipRequest(sample, video, (0, 1)), pixels, 2, 1, 1) for sample in range(count)]


def edges(windows: CropWindows) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of what the windows cover together."""
    return (
        int(windows.top.min()),
        int(windows.left.min()),
        int((windows.top + windows.height).max()),
        int((windows.left + windows.width).max()),
    )


def test_windows_lie_inside_the_content(index: PacketIndex) -> None:
    source = ClipSource(index, DATA, 3, content_area=AREAS)
    assert edges(source.windows(clips(0, 500))) == (10, 20, 70, 100)
    assert edges(source.windows(clips(1, 500))) == (0, 0, 100, 120)
    assert edges(source.windows(clips(2, 500, 120, 100))) == (30, 5, 80, 45)


def test_shares_are_those_of_the_content(index: PacketIndex) -> None:
    drawn = ClipSource(index, DATA, 3, content_area=AREAS).windows(clips(0, 500))
    area = drawn.height * drawn.width / (60 * 80)
    assert 0.45 < area.min() < 0.55
    assert 0.9 < area.max() <= 1


def test_without_an_area_windows_are_as_ever(index: PacketIndex) -> None:
    plain = ClipSource(index, DATA, 3).windows(clips(0, 50))
    unknown = ClipSource(index, DATA, 3, content_area=np.zeros((3, 4))).windows(clips(0, 50))
    for name in ("top", "left", "height", "width", "flip"):
        assert np.array_equal(getattr(plain, name), getattr(unknown, name))
    expected = ClipSource(index, DATA, 3).crop.windows(range(50), [120] * 50, [100] * 50, [1.0] * 50)
    assert np.array_equal(plain.top, expected.top)
    assert np.array_equal(plain.width, expected.width)


def test_a_picture_of_another_size_is_cropped_whole(index: PacketIndex) -> None:
    source = ClipSource(index, DATA, 3, content_area=AREAS)
    assert edges(source.windows(clips(0, 500, 50, 60))) == (0, 0, 50, 60)


def test_the_digest_knows_the_area(index: PacketIndex) -> None:
    other = AREAS.copy()
    other[0, 0] += 1
    digests = [
        ClipSource(index, DATA, 3, content_area=area).digest()
        for area in (None, AREAS, other, AREAS.tolist())
    ]
    assert len(set(digests)) == 3
    assert digests[1] == digests[3]


@pytest.mark.parametrize(
    ("video", "area"),
    [
        (0, (50, 0, 60, 80)),
        (0, (0, 50, 60, 80)),
        (0, (-1, 0, 60, 80)),
        (1, (5, 5, 0, 80)),
        (2, (0, 0, 100, 120)),
    ],
)
def test_areas_outside_the_picture_are_refused(index: PacketIndex, video: int, area: tuple[int, ...]) -> None:
    areas = AREAS.copy()
    areas[video] = area
    with pytest.raises(ValueError, match=rf"video{video}\.mp4: content area"):
        ClipSource(index, DATA, 3, content_area=areas)


def test_one_rectangle_a_video(index: PacketIndex) -> None:
    with pytest.raises(ValueError, match=r"content areas are \(2, 4\); the index asks for \(3, 4\)"):
        ClipSource(index, DATA, 3, content_area=AREAS[:2])
