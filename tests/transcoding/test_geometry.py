"""Sizes of proxies and what they show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgrec.transcoding.geometry import GeometryError, make_geometry


@pytest.mark.parametrize(
    ("height", "width", "sar", "rotation", "out"),
    [
        (1080, 1920, (1, 1), 0, (256, 448)),
        (480, 854, (1, 1), 0, (256, 448)),
        (1080, 1920, (1, 1), 90, (448, 256)),
        (576, 720, (16, 15), 0, (256, 336)),
        (576, 720, (64, 45), 0, (256, 448)),
        (480, 720, (8, 9), 270, (336, 256)),
        (96, 160, (1, 1), 0, (96, 160)),
        (250, 251, (1, 1), 0, (240, 240)),
        (7, 5, (1, 1), 0, (16, 16)),
        (2160, 3840, (1, 1), 180, (256, 448)),
    ],
)
def test_sizes(height: int, width: int, sar: tuple[int, int], rotation: int, out: tuple[int, int]) -> None:
    found = make_geometry(height, width, sar, rotation, 256)
    # 455 pixels lie nearer to 448 than to 464; 341 nearer to 336.
    assert (found.out_height, found.out_width) == out


def test_area_is_upright_and_even() -> None:
    found = make_geometry(100, 200, (1, 1), 90, 64, area=(11, 3, 150, 90))
    assert (found.top, found.left, found.height, found.width) == (12, 4, 148, 88)
    assert (found.out_height, found.out_width) == (112, 64)
    odd = make_geometry(101, 99, (1, 1), 0, 64, area=(0, 0, 101, 99))
    assert (odd.height, odd.width) == (101, 99)


@pytest.mark.parametrize(
    "area", [(0, 0, 101, 10), (-2, 0, 10, 10), (0, 199, 10, 10), (0, 0, 0, 10), (1, 1, 2, 2)]
)
def test_bad_areas(area: tuple[int, int, int, int]) -> None:
    with pytest.raises(GeometryError, match="area"):
        make_geometry(100, 200, (1, 1), 0, 64, area)


def test_too_long_and_thin() -> None:
    with pytest.raises(GeometryError, match="8192 at most"):
        make_geometry(100, 20_000, (1, 1), 0, 256)


@given(
    st.integers(16, 3000),
    st.integers(16, 3000),
    st.sampled_from([(1, 1), (4, 3), (8, 9)]),
    st.sampled_from([0, 90, 180, 270]),
    st.sampled_from([64, 256]),
)
def test_shape_is_kept(height: int, width: int, sar: tuple[int, int], rotation: int, short: int) -> None:
    try:
        found = make_geometry(height, width, sar, rotation, short)
    except GeometryError:
        return
    assert found.out_height % 16 == 0
    assert found.out_width % 16 == 0
    assert min(found.out_height, found.out_width) <= short
    shown = width * sar[0] / sar[1] / height
    if rotation % 180 == 90:
        shown = 1 / shown
    longer, shorter = max(shown, 1 / shown), min(found.out_height, found.out_width)
    assert max(found.out_height, found.out_width) == pytest.approx(longer * shorter, abs=8.001)
