"""Positions against their definitions in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from surgrec.kernels.rotary import rotate

from surgrec.models.position import rotary_3d, sincos_3d, sinusoid_1d

GRID = (3, 4, 5)


def axis_sincos(width: int, places: np.ndarray) -> np.ndarray:
    rates = 1.0 / 10000 ** (np.arange(width // 2) / (width / 2))
    angles = np.outer(places, rates)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def places() -> list[np.ndarray]:
    return [axis.reshape(-1) for axis in np.meshgrid(*(np.arange(n) for n in GRID), indexing="ij")]


def test_sinusoid_1d() -> None:
    table = sinusoid_1d(50, 24).numpy()
    for n in (0, 1, 49):
        for j in range(24):
            angle = n / 10000 ** (2 * (j // 2) / 24)
            assert table[n, j] == pytest.approx(np.cos(angle) if j % 2 else np.sin(angle), abs=1e-6)


def test_sincos_3d_gives_time_half() -> None:
    t, y, x = places()
    expected = np.concatenate([axis_sincos(48, t), axis_sincos(24, y), axis_sincos(24, x)], axis=1)
    np.testing.assert_allclose(sincos_3d(GRID, 96).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("width", [96, 64, 1024])
def test_sincos_3d_uniform_power_gives_thirds(width: int) -> None:
    share = int(np.ceil(width / 6) * 2)
    expected = np.concatenate([axis_sincos(share, axis) for axis in places()], axis=1)[:, :width]
    np.testing.assert_allclose(sincos_3d(GRID, width, uniform_power=True).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("head_width", [64, 32, 16])
def test_rotary_3d_turns_pairs(head_width: int) -> None:
    axis = 2 * (head_width // 3 // 2)
    factors = rotary_3d(GRID, head_width)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, head_width, generator=generator, dtype=torch.float64)
    turned = rotate(x, factors.double()).numpy()
    source = x.numpy()
    for token, place in ((0, (0, 0, 0)), (59, (2, 3, 4)), (26, (1, 1, 1))):
        for a in range(3):
            for i in range(axis):
                column = a * axis + i
                angle = place[a] * 10000.0 ** (-(i % (axis // 2)) / (axis / 2))
                partner = column + 1 if i % 2 == 0 else column - 1
                sign = -1 if i % 2 == 0 else 1
                expected = source[token, :, column] * np.cos(angle) + sign * source[
                    token, :, partner
                ] * np.sin(angle)
                np.testing.assert_allclose(turned[token, :, column], expected, atol=1e-6)
    np.testing.assert_array_equal(turned[:, :, 3 * axis :], source[:, :, 3 * axis :])


def test_rotate_keeps_the_dtype() -> None:
    x = torch.ones(60, 2, 16, dtype=torch.bfloat16)
    assert rotate(x, rotary_3d(GRID, 16)).dtype == torch.bfloat16


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        sincos_3d(GRID, 20)
    with pytest.raises(ValueError, match="width 6 or more"):
        rotary_3d(GRID, 4)
