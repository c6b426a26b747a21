"""Crop windows: within the picture, of the asked area and displayed aspect, functions of (seed, sample)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders.crop import CropWindows, RandomCrop, centre_windows, display_sar

CROP = RandomCrop(11, (0.3, 1.0), (3 / 4, 4 / 3), flip=True)


PINNED = [(18, 347, 408, 438, False), (24, 274, 446, 437, False), (43, 117, 434, 405, False)]


def same(n: int, width: int, height: int, sar: float = 1.0) -> tuple[list[int], list[int], list[float]]:
    return [width] * n, [height] * n, [sar] * n


def columns(windows: CropWindows) -> list[tuple[int, ...]]:
    fields = (windows.top, windows.left, windows.height, windows.width, windows.flip)
    return list(zip(*(field.tolist() for field in fields), strict=True))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**40),
    st.integers(1, 2000),
    st.integers(1, 2000),
    st.floats(0.1, 10.0),
    st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(lambda pair: (min(pair), max(pair))),
    st.tuples(st.floats(0.2, 5.0), st.floats(0.2, 5.0)).map(lambda pair: (min(pair), max(pair))),
)
def test_windows_lie_within_the_picture(
    sample: int,
    width: int,
    height: int,
    sar: float,
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> None:
    crop = RandomCrop(sample % 5, scale, aspect, flip=False)
    ((top, left, h, w, flip),) = columns(crop.windows([sample], [width], [height], [sar]))
    assert 0 <= top < top + h <= height
    assert 0 <= left < left + w <= width
    assert not flip


@pytest.mark.parametrize("sar", [1.0, 16 / 15, 0.5])
def test_area_and_aspect_are_drawn_on_the_displayed_picture(sar: float) -> None:
    n, width, height = 20_000, round(720 / sar), 640
    windows = CROP.windows(np.arange(n), *same(n, width, height, sar))
    aspect = windows.width * sar / windows.height
    area = windows.width * windows.height / (width * height)
    tolerance = 0.01  # of rounding to whole pixels
    assert aspect.min() > 3 / 4 - tolerance
    assert aspect.max() < 4 / 3 + tolerance
    assert area.min() > 0.3 - tolerance
    # Log-uniform: as many windows wider than high as higher than wide, for small areas that always fit.
    small = area < 0.5
    assert np.mean(aspect[small] > 1) == pytest.approx(0.5, abs=0.02)
    assert np.mean(area < 0.4) / np.mean((area >= 0.4) & (area < 0.5)) == pytest.approx(1.0, abs=0.08)
    # Places are uniform over those possible.
    room = windows.height < height
    assert np.mean(windows.top[room] / (height - windows.height[room])) == pytest.approx(0.5, abs=0.01)
    assert np.mean(windows.flip) == pytest.approx(0.5, abs=0.02)


def test_non_square_pixels_give_the_window_of_the_displayed_picture() -> None:
    """The same picture stored with half the columns: the same windows, half as wide."""
    n = 200
    square = CROP.windows(np.arange(n), *same(n, 1024, 576))
    narrow = CROP.windows(np.arange(n), *same(n, 512, 576, 2.0))
    np.testing.assert_allclose(narrow.width * 2, square.width, atol=1.01)
    np.testing.assert_allclose(narrow.left * 2, square.left, atol=2.01)
    np.testing.assert_array_equal(narrow.height, square.height)
    np.testing.assert_array_equal(narrow.top, square.top)


def test_a_window_depends_on_seed_and_sample_only() -> None:
    samples = [5, 2**40, 17, 5]
    together = columns(CROP.windows(samples, *same(4, 854, 480)))
    alone = [columns(CROP.windows([sample], *same(1, 854, 480)))[0] for sample in samples]
    assert together == alone
    assert together[0] == together[3]
    other = RandomCrop(12, CROP.scale, CROP.aspect, CROP.flip)
    assert columns(other.windows(samples, *same(4, 854, 480))) != together


def test_windows_are_pinned() -> None:
    """Resuming a run repeats its crops, so that they may never change."""
    assert columns(CROP.windows([0, 1, 2], *same(3, 854, 480))) == PINNED


def test_streams_are_independent() -> None:
    n = 20_000
    windows = CROP.windows(np.arange(n), *same(n, 1000, 1000))
    left = windows.left / np.maximum(1000 - windows.width, 1)
    top = windows.top / np.maximum(1000 - windows.height, 1)
    area = windows.width * windows.height
    for one, two in [(left, top), (left, area), (top, area), (left, windows.flip), (area, windows.flip)]:
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("width", "height", "aspect", "expected"),
    [
        (1000, 100, (0.75, 4 / 3), (0, 433, 100, 133)),  # ten tries cannot fit: the widest allowed, centred
        (100, 1000, (0.75, 4 / 3), (433, 0, 133, 100)),
        (100, 100, (1.0, 1.0), (0, 0, 100, 100)),
    ],
)
def test_central_window_where_nothing_fits(
    width: int, height: int, aspect: tuple[float, float], expected: tuple[int, ...]
) -> None:
    crop = RandomCrop(0, (1.0, 1.0), aspect, flip=False)
    assert columns(crop.windows([4], [width], [height], [1.0]))[0][:4] == expected


def test_centre_crop_is_square_as_displayed() -> None:
    windows = centre_windows([854, 480, 720, 720], [480, 854, 576, 480], [1.0, 1.0, 16 / 15, 8 / 9])
    assert columns(windows) == [
        (0, 187, 480, 480, False),
        (187, 0, 480, 480, False),
        (0, 90, 576, 540, False),
        (0, 90, 480, 540, False),
    ]
    assert len(centre_windows([], [], [])) == 0


def test_sar_of_an_upright_picture() -> None:
    assert display_sar((16, 15), 0) == display_sar((16, 15), 180) == pytest.approx(16 / 15)
    assert display_sar((16, 15), 90) == display_sar((16, 15), 270) == pytest.approx(15 / 16)
    assert display_sar((0, 1), 0) == display_sar((0, 0), 90) == 1.0


def test_refusals() -> None:
    for scale in [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (float("nan"), 1.0)]:
        with pytest.raises(ValueError, match="crop scale"):
            RandomCrop(0, scale, (1.0, 1.0), False)
    for aspect in [(0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))]:
        with pytest.raises(ValueError, match="crop aspect"):
            RandomCrop(0, (0.5, 1.0), aspect, False)
    with pytest.raises(ValueError, match="picture 1 is 0 x 480"):
        CROP.windows([0, 1], [854, 0], [480, 480], [1.0, 1.0])
    with pytest.raises(ValueError, match="pixels of aspect nan"):
        centre_windows([854], [480], [float("nan")])
