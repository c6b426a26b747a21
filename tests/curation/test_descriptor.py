"""The weights-free descriptor: what it is, and that it tells scenes apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgrec.curation.descriptor import DIMENSIONS, describe
from surgrec.curation.kmeans import check_points


def noise(seed: int, size: int = 96) -> np.ndarray:
    """A smooth picture of random colours."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (1, 6, 6, 3)).astype(np.uint8)
    return np.repeat(np.repeat(coarse, size // 6, 1), size // 6, 2)


def test_length_and_type() -> None:
    found = describe(noise(0))
    assert (found.shape, found.dtype, DIMENSIONS) == ((384,), np.float32, 384)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(-6, 6), st.floats(0.9, 1.1))
def test_small_changes_move_it_little(seed: int, shift: int, gain: float) -> None:
    picture = noise(seed)
    changed = np.clip(np.roll(picture, shift, 2) * gain, 0, 255).astype(np.uint8)
    same, other = (
        float(describe(picture) @ describe(changed)),
        float(describe(picture) @ describe(noise(seed + 1))),
    )
    assert same > other
    assert same > 0.8


def test_sizes_do_not_matter() -> None:
    assert float(describe(noise(3, 96)) @ describe(noise(3, 480))) > 0.99


def test_flat_pictures_have_a_direction() -> None:
    """Whoever keeps black segments (--quality.zero without black) can group them."""
    black, grey, white = (describe(np.full((2, 40, 50, 3), level, np.uint8)) for level in (0, 128, 255))
    for found in (black, grey, white):
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    check_points(np.stack([black, black, grey, describe(noise(1))]).astype(np.float16), "cosine")
    assert float(black @ describe(np.zeros((1, 90, 70, 3), np.uint8))) == pytest.approx(1, abs=1e-5)
    assert max(float(black @ grey), float(black @ describe(noise(1)))) < 0.9


@pytest.mark.parametrize(
    "pictures",
    [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32)],
)
def test_what_are_no_pictures(pictures: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[K, h, w, 3\] is needed"):
        describe(pictures)
