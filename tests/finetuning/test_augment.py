"""Augmentation: the same for all frames of a clip, the same again, and mixed losses as in the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.configs.finetune import FinetuneConfig
from torch.nn import functional

from surgrec.finetuning.augment import Augment
from surgrec.finetuning.tuner import soft_cross_entropy

CLASSES, SMOOTHING = 4, 0.1


def augment(**options: Any) -> Augment:
    return Augment(FinetuneConfig(Path("m.json"), Path("."), "random:demo", **options), CLASSES)


def clips(count: int = 6, frames: int = 3, still: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    found = torch.randint(0, 256, (count, frames, 16, 16, 3), generator=generator).to(torch.uint8)
    return found[:, :1].expand(-1, frames, -1, -1, -1).contiguous() if still else found


@given(seed=st.integers(0, 2**40), magnitude=st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_all_frames_of_a_clip_are_changed_alike(seed: int, magnitude: int) -> None:
    """Of a clip that stands still all frames stay equal."""
    changed = augment(seed=seed, randaugment_magnitude=magnitude).clips(clips(still=True), range(6))
    assert changed.dtype == torch.uint8
    assert torch.equal(changed, changed[:, :1].expand_as(changed))


def test_a_sample_is_changed_in_the_same_way_again_and_others_differently() -> None:
    same = clips(1).expand(40, -1, -1, -1, -1).contiguous()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    drawn = augment().clips(same, range(40))
    assert torch.equal(torch.get_rng_state(), state)
    assert len({clip.numpy().tobytes() for clip in drawn}) > 20
    assert torch.equal(augment().clips(same[:2], [7, 3]), drawn[[7, 3]])
    assert not torch.equal(augment(seed=1).clips(same, range(40)), drawn)
    assert augment(randaugment_ops=0).clips(same, range(40)) is same


def beta_of(frames: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """How much of the first clip is left, by least squares, float64 []."""
    own, other = frames[0].double().flatten(), frames[-1].double().flatten()
    return ((mixed[0].double().flatten() - other) @ (own - other)) / (own - other).square().sum()


def smoothed(labels: torch.Tensor) -> torch.Tensor:
    return (1 - SMOOTHING) * functional.one_hot(labels, CLASSES).float() + SMOOTHING / CLASSES


@pytest.mark.parametrize("step", range(5))
def test_mixup_blends_clips_and_their_losses(step: int) -> None:
    frames, labels = clips(), torch.tensor([0, 1, 2, 3, 1, 2])
    mixed, targets = augment(cutmix=0.0).mix(frames, labels, step)
    share = float(beta_of(frames, mixed))
    assert 0 <= share <= 1
    wanted = share * frames.double() + (1 - share) * frames.flip(0).double()
    assert (mixed.double() - wanted).abs().max() <= 1
    logits = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(step))
    losses = [
        functional.cross_entropy(logits, own, label_smoothing=SMOOTHING) for own in (labels, labels.flip(0))
    ]
    plain = share * losses[0] + (1 - share) * losses[1]
    assert float(soft_cross_entropy(logits, targets)) == pytest.approx(float(plain), abs=2e-3)


@pytest.mark.parametrize("step", range(5))
def test_cutmix_cuts_one_window_from_all_frames(step: int) -> None:
    frames, labels = clips(), torch.tensor([0, 1, 2, 3, 1, 2])
    mixed, targets = augment(mixup=0.0).mix(frames, labels, step)
    foreign = (mixed != frames).any(-1).any(1).any(0)  # [16, 16], by any clip
    rows, columns = np.flatnonzero(foreign.any(1)), np.flatnonzero(foreign.any(0))
    window = torch.zeros(16, 16, dtype=torch.bool)
    if len(rows):
        window[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert torch.equal(mixed, torch.where(window[..., None], frames.flip(0), frames))
    share = 1 - window.float().mean()
    wanted = share * smoothed(labels) + (1 - share) * smoothed(labels.flip(0))
    torch.testing.assert_close(targets, wanted, rtol=0, atol=1e-6)


def test_each_step_draws_anew_and_leaves_numpys_generator_alone() -> None:
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    frames, labels = clips(), torch.tensor([0, 1, 2, 3, 1, 2])
    made = [augment().mix(frames, labels, step) for step in range(12)]
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    assert len({mixed.numpy().tobytes() for mixed, _ in made}) == 12
    again = augment().mix(frames, labels, 4)
    assert torch.equal(again[0], made[4][0])
    assert torch.equal(again[1], made[4][1])


def test_without_mixing_labels_are_smoothed() -> None:
    frames, labels = clips(5), torch.tensor([0, 1, 2, 3, 1])
    same, targets = augment(mixup=0.0, cutmix=0.0).mix(frames, labels, 0)
    assert same is frames
    torch.testing.assert_close(targets, smoothed(labels))
    logits = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(0))
    plain = functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
    torch.testing.assert_close(soft_cross_entropy(logits, targets), plain)
