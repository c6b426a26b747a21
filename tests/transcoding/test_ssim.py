"""Structural similarity."""

from __future__ import annotations

import numpy as np
import pytest

from surgrec.transcoding.ssim import ssim, ssim_plane


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 56), dtype=np.uint8)


def test_equal_pictures_and_strangers() -> None:
    one = picture(0)
    assert ssim_plane(one, one) == pytest.approx(1.0)
    assert abs(ssim_plane(one, picture(1))) < 0.1
    assert ssim_plane(one, 255 - one) < -0.8


def test_flat_windows_by_hand() -> None:
    one, other = np.full((8, 8), 100, np.uint8), np.full((8, 8), 110, np.uint8)
    steadier = (0.01 * 255) ** 2
    expected = (2 * 100 * 110 + steadier) / (100**2 + 110**2 + steadier)
    assert ssim_plane(one, other) == pytest.approx(expected)


def test_one_window_by_definition() -> None:
    one, other = picture(2)[:8, :8], picture(3)[:8, :8]
    a, b = one.astype(float), other.astype(float)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    expected = (2 * a.mean() * b.mean() + c1) * (2 * covariance + c2)
    expected /= (a.mean() ** 2 + b.mean() ** 2 + c1) * (a.var() + b.var() + c2)
    assert ssim_plane(one, other) == pytest.approx(expected)


def test_luma_weighs_four_sixths() -> None:
    y, u = picture(4), picture(5)[:20, :28]
    worse = ssim((y, u, u), (y, 255 - u, u))
    assert worse == pytest.approx(4 / 6 + ssim_plane(u, 255 - u) / 6 + 1 / 6)
