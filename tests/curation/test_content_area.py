"""The circle or rectangle inside the black surround: drawn around real footage, and found again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from surgrec.loaders.segments import SegmentTable

from surgrec.curation.content_area import ContentArea, content_areas, find_area, iou

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless draws the surround")

LAPAROSCOPY = os.environ.get("SURGREC_LAPAROSCOPY", "")


def circle(height: int, width: int, x: float, y: float, radius: float) -> ContentArea:
    top, left = max(0, int(y - radius)), max(0, int(x - radius))
    bottom, right = min(height, int(np.ceil(y + radius))), min(width, int(np.ceil(x + radius)))
    return ContentArea(height, width, "circle", x, y, radius, (top, left, bottom - top, right - left))


def rectangle(height: int, width: int, top: int, left: int, tall: int, wide: int) -> ContentArea:
    return ContentArea(height, width, "rectangle", crop=(top, left, tall, wide))


def surrounded(
    clip: list[NDArray[np.uint8]], area: ContentArea, draw: np.random.Generator, letters: bool = False
) -> NDArray[np.uint8]:
    """uint8 [T, H, W, 3]: the clip in the area, darker towards a circle's edge, in a noisy black surround."""
    inside = area.mask(area.height, area.width)[..., None]
    top, left, tall, wide = area.crop
    found = []
    fall = np.ones((area.height, area.width, 1))
    if area.kind == "circle":
        rows, columns = np.mgrid[: area.height, : area.width] + 0.5
        far = np.hypot(rows - area.y, columns - area.x) / area.radius
        fall = (1 - 0.7 * np.clip(far, 0, 1) ** 4)[..., None]
    for picture in clip:
        whole = np.zeros((area.height, area.width, 3))
        whole[top : top + tall, left : left + wide] = cv2.resize(picture, (wide, tall)) * 0.85 + 38
        whole = np.where(inside, whole * fall, draw.uniform(0, 6)) + draw.normal(0, 2, whole.shape)
        image = np.clip(whole, 0, 255).astype(np.uint8)
        if letters:
            for row, text in enumerate(("PAT 0417", "12-03-21", "ZOOM 1.2")):
                cv2.putText(image, text, (2, 14 + 18 * row), cv2.FONT_HERSHEY_PLAIN, 1.0, (255, 255, 255), 1)
        found.append(image)
    return np.stack(found)


def luma(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images.mean(-1).astype(np.uint8)


@pytest.mark.parametrize("number", range(24))
def test_circles_and_rectangles_around_real_footage(planted: ModuleType, number: int) -> None:
    draw = np.random.default_rng([11, number])
    height, width = ((480, 640), (360, 640), (480, 854), (576, 720))[number % 4]
    if number % 2:
        tall, wide = int(draw.uniform(0.6, 0.95) * height), int(draw.uniform(0.6, 0.95) * width)
        area = rectangle(
            height,
            width,
            int(draw.integers(0, height - tall + 1)),
            int(draw.integers(0, width - wide + 1)),
            tall,
            wide,
        )
    else:
        # Whole circles, and those that the picture cuts above and below.
        radius = draw.uniform(0.38, 0.62) * height
        area = circle(
            height, width, width * draw.uniform(0.45, 0.55), height * draw.uniform(0.47, 0.53), radius
        )
    names = [name for name in planted.sources() if not name.startswith("heart")]
    clip = planted.sources()[names[number % len(names)]][::10]
    letters = area.kind == "circle" and number % 3 == 0
    found = find_area(luma(surrounded(clip, area, draw, letters)))
    assert found.kind == area.kind
    assert iou(found, area) >= 0.98
    top, left, tall, wide = found.crop
    assert min(top, left) >= 0
    assert top + tall <= height
    assert left + wide <= width


@settings(max_examples=25, deadline=None)
@given(
    x=st.floats(0.42, 0.58), y=st.floats(0.42, 0.58), radius=st.floats(0.3, 0.6), level=st.integers(60, 255)
)
def test_plain_disks(x: float, y: float, radius: float, level: int) -> None:
    area = circle(240, 320, 320 * x, 240 * y, 240 * radius)
    picture = np.where(area.mask(240, 320), level, 4).astype(np.uint8)
    found = find_area(picture[None])
    assert found.kind == "circle"
    assert iou(found, area) >= 0.985


def test_no_surround_is_full(planted: ModuleType) -> None:
    for clip in planted.sources().values():
        if clip[0].mean() > 60:
            found = find_area(luma(np.stack(clip[::10])))
            assert found.kind == "full"
            assert found.crop == (0, 0, 0, 0)


def test_black_video_is_full() -> None:
    assert find_area(np.zeros((2, 120, 160), np.uint8)).kind == "full"


def test_a_dark_quarter_in_all_pictures_does_not_spoil_the_circle() -> None:
    area = circle(480, 640, 320, 240, 230)
    picture = np.where(area.mask(480, 640), 120, 3).astype(np.uint8)
    picture[240:, 320:] = 3
    found = find_area(picture[None])
    assert found.kind == "circle"
    assert iou(found, area) >= 0.98


def test_nothing_is_cut_off_a_fan() -> None:
    rows, columns = np.mgrid[:480, :640]
    far, angle = np.hypot(columns - 320, rows + 20), np.arctan2(columns - 320, rows + 20)
    fan = (far > 60) & (far < 460) & (np.abs(angle) < 0.6)
    found = find_area(np.where(fan, 120, 2).astype(np.uint8)[None])
    assert found.kind == "rectangle"
    assert found.mask(480, 640)[fan].mean() > 0.99


def test_the_same_pictures_give_the_same_area() -> None:
    draw = np.random.default_rng(3)
    area = circle(240, 320, 160, 120, 100)
    picture = np.where(area.mask(240, 320), draw.integers(60, 200, (240, 320)), 4).astype(np.uint8)
    assert find_area(picture[None]) == find_area(picture[None])


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="T x H x W"):
        find_area(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="4 x 4 and of 4 x 5"):
        iou(ContentArea(4, 4), ContentArea(4, 5))


def test_area_of_a_video_and_of_what_cannot_be_read(
    planted: ModuleType, tmp_path: Path, build_index_of: Callable[..., Any]
) -> None:
    """Through the index; a file that is gone is reported, and has no area."""
    area = circle(240, 320, 150, 122, 100)
    clip = planted.sources()["bikes-70"]
    images = surrounded(clip, area, np.random.default_rng(5))
    path = planted.write(tmp_path / "round.mp4", list(images))
    lost = planted.write(tmp_path / "lost.mp4", list(images))
    index = build_index_of([path, lost], tmp_path / "corpus.h5")
    lost.unlink()
    segments = SegmentTable(
        np.array([0, 1], np.int32), np.zeros(2, np.int64), np.full(2, len(clip), np.int64)
    )
    order = [Path(name).name for name in index.videos.path]
    areas, missing = content_areas(index, segments)
    assert iou(areas[order.index("round.mp4")], area) >= 0.98
    assert areas[order.index("lost.mp4")] == ContentArea(240, 320)
    assert [Path(entry.path).name for entry in missing] == ["lost.mp4"]
    assert set(areas) == {0, 1}


@pytest.mark.skipif(not LAPAROSCOPY, reason="SURGREC_LAPAROSCOPY names no video with a round content area")
def test_real_laparoscopy(tmp_path: Path, build_index_of: Callable[..., Any]) -> None:
    """Against the convex hull of all that is ever lighter than 16 in any of the frames, found by OpenCV."""
    path = Path(LAPAROSCOPY)
    index = build_index_of([path], tmp_path / "corpus.h5")
    count = int(index.videos.frame_count[0])
    segments = SegmentTable(np.zeros(1, np.int32), np.zeros(1, np.int64), np.array([count], np.int64))
    (found,) = content_areas(index, segments)[0].values()
    brightest: Any = None
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            grey = frame.to_ndarray(format="gray")
            brightest = grey if brightest is None else np.maximum(brightest, grey)
    shapes, _ = cv2.findContours((brightest > 32).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(max(shapes, key=cv2.contourArea))
    expected = cv2.fillPoly(np.zeros(brightest.shape, np.uint8), [hull], 1) > 0
    mask = found.mask(*brightest.shape)
    assert (mask & expected).sum() / (mask | expected).sum() >= 0.98
