"""One update: what the batch is split into does not matter, and a step that is not finite changes nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from surgrec.models.objective import ObjectiveOutput
from surgrec.training.errors import UserError
from surgrec.training.resolve import BatchShape, batch_shape, choose_precision
from surgrec.training.step import seed_torch, train_step


def weights(parts) -> dict[str, torch.Tensor]:
    return copy.deepcopy(parts.objective.state_dict())


@pytest.mark.parametrize("kind", ["dry_mae", "dry_jepa"])
def test_accumulation_gives_the_same_update(kind, request, synthetic_parts):
    config = request.getfixturevalue(kind)
    whole = synthetic_parts(config)
    halves = synthetic_parts(replace(config, micro_batch=2))
    singles = synthetic_parts(replace(config, micro_batch=1))
    assert halves.shape == BatchShape(4, 2, 2)
    for step in (1, 2, 3):
        a, b, c = (train_step(parts, step) for parts in (whole, halves, singles))
        torch.testing.assert_close(a.loss, b.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a.gradient_norm, b.gradient_norm, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a.loss, c.loss, rtol=1e-5, atol=1e-6)
        assert (
            [r.sample for r in a.requests]
            == [r.sample for r in b.requests]
            == list(range(4 * step - 4, 4 * step))
        )
    for a, b in zip(weights(whole).values(), weights(halves).values(), strict=True):
        # AdamW divides by gradients that may be near zero, where rounding is all that there is.
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["dry_mae", "dry_jepa"])
def test_steps_are_reproducible_bit_for_bit(kind, request, synthetic_parts):
    config = request.getfixturevalue(kind)
    one, other = synthetic_parts(config), synthetic_parts(config)
    for step in (1, 2):
        train_step(one, step)
        torch.manual_seed(99)  # whatever else draws from the global generator changes nothing
        train_step(other, step)
    for a, b in zip(weights(one).values(), weights(other).values(), strict=True):
        assert torch.equal(a, b)


def test_loss_falls_on_clips_seen_again_and_again(dry_mae, synthetic_parts):
    parts = synthetic_parts(replace(dry_mae, steps=30))
    losses = []
    for step in range(1, 31):
        parts.batches.next_sample = 0
        losses.append(float(train_step(parts, step).loss))
    assert losses[-1] < 0.8 * losses[0]


def test_teacher_follows_the_student(dry_jepa, synthetic_parts):
    parts = synthetic_parts(dry_jepa)
    before = weights(parts)
    train_step(parts, 1)
    after = weights(parts)
    names = [name for name in after if name.startswith("teacher.") and after[name].is_floating_point()]
    assert names
    for name in names:
        student = after[name.replace("teacher.", "encoder.", 1)]
        torch.testing.assert_close(after[name], 0.9 * before[name] + 0.1 * student)


def test_monitors_only_where_asked(dry_jepa, synthetic_parts):
    parts = synthetic_parts(replace(dry_jepa, micro_batch=2))
    assert train_step(parts, 1).monitors == {}
    assert {"feature_std", "rankme", "clip_cosine", "teacher_distance"} <= train_step(
        parts, 2, True
    ).monitors.keys()


class Poisoned(torch.nn.Module):
    """Around an objective: its loss is NaN, or its gradients, for the samples of one step."""

    def __init__(self, objective: torch.nn.Module, sample: int, what: str) -> None:
        super().__init__()
        self.objective = objective
        self.sample = sample
        self.what = what

    def forward(self, frames, samples, step, monitor):
        output = self.objective(frames, samples, step, monitor)
        if self.sample not in samples.tolist():
            return output
        if self.what == "loss":
            return ObjectiveOutput(output.loss * float("nan"), output.monitors)
        # Finite, with an infinite gradient: the square root of zero.
        weight = next(p for p in self.objective.parameters() if p.requires_grad)
        return ObjectiveOutput(output.loss + (weight.sum() - weight.sum()).abs().sqrt(), output.monitors)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("kind", ["dry_mae", "dry_jepa"])
def test_a_bad_step_changes_nothing(kind, what, request, synthetic_parts):
    config = request.getfixturevalue(kind)
    parts = synthetic_parts(replace(config, micro_batch=2))
    parts.model = Poisoned(parts.objective, sample=6, what=what)
    train_step(parts, 1)
    before, state = weights(parts), copy.deepcopy(parts.optimizer.state_dict()["state"])
    result = train_step(parts, 2)
    assert bool(result.bad)
    assert not torch.isfinite(result.gradient_norm)
    for a, b in zip(before.values(), weights(parts).values(), strict=True):
        assert torch.equal(a, b)
    for number, values in parts.optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[number][key], value) for key, value in values.items())
    assert not bool(train_step(parts, 3).bad)


def test_fused_adamw_skips_by_a_flag_on_the_device(dry_mae, synthetic_parts):
    """What the loop relies on where it does not wait for the GPU."""
    parts = synthetic_parts(dry_mae)
    train_step(parts, 1)
    before, state = weights(parts), copy.deepcopy(parts.optimizer.state_dict()["state"])
    parts.optimizer.found_inf = torch.ones(())
    parts.optimizer.step()
    for a, b in zip(before.values(), weights(parts).values(), strict=True):
        assert torch.equal(a, b)
    for number, values in parts.optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[number][key], value) for key, value in values.items())


def test_random_streams_differ_between_steps_micro_batches_and_ranks():
    draws = set()
    for seed, step, micro, rank in [(0, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1), (1, 1, 0, 0)]:
        seed_torch(seed, step, micro, rank)
        draws.add(float(torch.rand(())))
    assert len(draws) == 5
    seed_torch(0, 1, 0, 0)
    assert float(torch.rand(())) in draws


def test_batch_shapes(dry_mae):
    def shape(batch, micro, ranks):
        return batch_shape(replace(dry_mae, batch=batch, micro_batch=micro), ranks)

    assert shape(1024, 64, 4) == BatchShape(1024, 64, 4)
    assert shape(1024, None, 4) == BatchShape(1024, 256, 1)
    assert shape(1024, 64, 32) == BatchShape(1024, 32, 1)
    with pytest.raises(UserError, match=r"--batch 10 cannot be shared among 4 ranks.*such as 8 or 12"):
        shape(10, None, 4)
    with pytest.raises(UserError, match="--batch 2 cannot be shared among 4 ranks"):
        shape(2, None, 4)
    with pytest.raises(UserError, match=r"--micro-batch 5 does not divide the 12 clips.*1, 2, 3, 4, 6, 12"):
        shape(24, 5, 2)
    with pytest.raises(UserError, match="--micro-batch 0"):
        shape(24, 0, 2)


def test_precision(dry_mae):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_precision(dry_mae, cpu) == torch.float32
    assert choose_precision(dry_mae, gpu) == torch.bfloat16
    assert choose_precision(replace(dry_mae, precision="bf16"), cpu) == torch.bfloat16
    assert choose_precision(replace(dry_mae, precision="fp32"), gpu) == torch.float32
