"""Schedules against the plain code of the methods that they come from."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from surgrec.configs.presets import PRESETS

from surgrec.training.schedules import learning_rate, warmup_steps, weight_decay
from surgrec.training.step import hyperparameters


def vjepa_learning_rates(start, peak, final, warmup, total, stretch):
    """The values of V-JEPA's WarmupCosineSchedule, whose T_max is stretch * total, warm-up included."""
    length = stretch * total - warmup
    values = []
    for step in range(1, total + 1):
        if step < warmup:
            values.append(start + step / max(1, warmup) * (peak - start))
        else:
            progress = (step - warmup) / max(1, length)
            cosine = final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
            values.append(max(final, cosine))
    return values


def vjepa_weight_decays(first, final, total, stretch):
    values = []
    for step in range(1, total + 1):
        progress = step / (stretch * total)
        values.append(final + (first - final) * 0.5 * (1.0 + math.cos(math.pi * progress)))
    return values


@pytest.mark.parametrize("stretch", [1.0, 1.25])
def test_learning_rate_is_vjepas(stretch):
    expected = vjepa_learning_rates(2e-4, 6.25e-4, 1e-6, 40, 300, stretch)
    ours = [learning_rate(s, 300, 40, 2e-4, 6.25e-4, 1e-6, stretch) for s in range(1, 301)]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_weight_decay_is_vjepas():
    expected = vjepa_weight_decays(0.04, 0.4, 300, 1.25)
    ours = [weight_decay(s, 300, 0.04, 0.4, 1.25) for s in range(1, 301)]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_stretched_cosine_ends_above_its_final_value():
    assert learning_rate(300, 300, 40, 0.0, 1.0, 0.0, 1.0) == pytest.approx(0.0)
    assert learning_rate(300, 300, 40, 0.0, 1.0, 0.0, 1.25) > 0.1


@given(
    total=st.integers(1, 5000),
    share=st.floats(0, 0.99),
    stretch=st.floats(1, 2),
    peak=st.floats(1e-6, 1),
    low=st.floats(0, 1),
    end=st.floats(0, 1),
)
def test_learning_rate_rises_to_its_peak_and_falls(total, share, stretch, peak, low, end):
    warmup = warmup_steps(share, total)
    start, final = low * peak, end * peak
    values = [learning_rate(s, total, warmup, start, peak, final, stretch) for s in range(1, total + 1)]
    slack = 1e-9 * peak
    assert all(min(start, final) - slack <= v <= peak + slack for v in values)
    top = max(warmup, 1) - 1
    assert all(a <= b + slack for a, b in pairwise(values[: top + 1]))
    assert all(a >= b - slack for a, b in pairwise(values[top:]))


def test_warmup_is_a_share_or_a_number_of_steps():
    assert warmup_steps(0.25, 200) == 50
    assert warmup_steps(1, 200) == 1
    assert warmup_steps(0, 200) == 0


def test_warmup_longer_than_the_run_stays_a_line():
    assert learning_rate(10, 10, 100, 0.0, 1.0, 0.0) == pytest.approx(0.1)


def test_mae_rates_are_per_256_clips():
    optim = PRESETS["mae-vitb"][1].optim
    peak = hyperparameters(optim, 20_000, 75_000, 1024).lr
    assert peak == pytest.approx(4 * 1.5e-4)
    assert hyperparameters(optim, 75_000, 75_000, 256).lr == pytest.approx(1e-5)


def test_jepa_rates_do_not_depend_on_the_batch():
    optim = PRESETS["jepa-vitl"][1].optim
    assert hyperparameters(optim, 12_000, 90_000, 3072).lr == pytest.approx(6.25e-4)
    assert hyperparameters(optim, 12_000, 90_000, 48).lr == pytest.approx(6.25e-4)
