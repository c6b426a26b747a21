"""Groups of parameters, clipping, and the optimizer's state by name."""

from __future__ import annotations

import pytest
import torch
from surgrec.configs.model import JepaConfig, MaeConfig
from surgrec.configs.pretrain import OptimConfig
from torch import nn

from surgrec.models.build import build_objective
from surgrec.training.optim import (
    build_adamw,
    clip_gradients,
    optimizer_tensors,
    parameter_groups,
    prepare_state,
    set_hyperparameters,
)

MAE = MaeConfig(size="tiny", decoder_depth=1, decoder_width=48, decoder_heads=3)
JEPA = JepaConfig(size="tiny", predictor_depth=1, predictor_width=48, predictor_heads=3)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def decays_not(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 1


@pytest.mark.parametrize("config", [MAE, JEPA])
def test_matrices_decay_and_nothing_else(config):
    model = build_objective(config, 0, frames=4, size=32)
    decaying, still = parameter_groups(model, model.no_weight_decay)
    assert decaying["decays"] is True
    assert all(p.ndim >= 2 for p in decaying["params"])
    assert all(p.ndim == 1 or "mask_token" in n for n, p in zip(still["names"], still["params"], strict=True))
    # V-JEPA's mask tokens decay, VideoMAE's does not.
    assert any("mask_token" in name for name in still["names"]) == (config is MAE)
    assert any(name.endswith("norm.weight") for name in still["names"])


@pytest.mark.parametrize("config", [MAE, JEPA])
def test_groups_hold_each_trained_parameter_once_and_no_teacher(config):
    model = build_objective(config, 0, frames=4, size=32)
    names = [name for group in parameter_groups(model, model.no_weight_decay) for name in group["names"]]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert not any(name.startswith("teacher") for name in names)


def test_step_values_reach_the_groups():
    optimizer = build_adamw(net(), decays_not, OptimConfig())
    set_hyperparameters(optimizer, 0.5, 0.1)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.1), (0.5, 0.0)]


def test_clipping_scales_to_the_limit_and_reports_the_norm_before():
    model = net()
    model(torch.randn(3, 4)).sum().backward()
    before = torch.cat([p.grad.flatten() for p in model.parameters()])
    norm = clip_gradients(model.parameters(), 0.01)
    after = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(norm, before.norm())
    torch.testing.assert_close(after, before * (0.01 / before.norm()), rtol=1e-3, atol=1e-8)


def test_no_limit_only_measures():
    model = net()
    model(torch.randn(3, 4)).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    norm = clip_gradients(model.parameters(), None)
    torch.testing.assert_close(norm, torch.cat([gradient.flatten() for gradient in before]).norm())
    for gradient, p in zip(before, model.parameters(), strict=True):
        assert torch.equal(gradient, p.grad)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    model(torch.randn(5, 4)).square().sum().backward()
    set_hyperparameters(optimizer, 0.01, 0.1)
    optimizer.step()


def test_restored_state_goes_on_bit_for_bit():
    one, other = net(), net()
    first = build_adamw(one, decays_not, OptimConfig())
    for seed in range(3):
        step(one, first, seed)
    other.load_state_dict(one.state_dict())
    second = build_adamw(other, decays_not, OptimConfig())
    saved = optimizer_tensors(first)
    for name, room in prepare_state(second, {name: t.shape for name, t in saved.items()}).items():
        room.copy_(saved[name])
    for seed in range(3, 6):
        step(one, first, seed)
        step(other, second, seed)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_model_is_refused_by_name():
    optimizer = build_adamw(net(), decays_not, OptimConfig())
    with pytest.raises(ValueError, match=r"no.such.weight"):
        prepare_state(optimizer, {"exp_avg.no.such.weight": (1,)})
    with pytest.raises(ValueError, match=r"exp_avg\.0\.weight has shape \(3,\)"):
        prepare_state(optimizer, {"exp_avg.0.weight": (3,)})
