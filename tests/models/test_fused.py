"""Fused blocks: the numbers and gradients of plain ones, exactly in float64, in every setting they run in."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from surgrec.configs.presets import PRESETS
from surgrec.configs.pretrain import PretrainConfig
from surgrec.kernels import mlp_products
from torch import Tensor, nn

from surgrec.models import fused as fused_functions
from surgrec.models.block_ways import set_blocks
from surgrec.models.build import build_objective
from surgrec.models.vit import Block, Blocks, State, linear_of_norm, norm_of

WIDTH, HEADS, DEPTH = 24, 3, 3


def pair(key_bias: str, checkpointed: bool = False) -> tuple[Blocks, Blocks]:
    """Plain and fused blocks of the same weights, in float64; no weight is at its neutral value."""
    torch.manual_seed(0)
    plain = Blocks(DEPTH, WIDTH, HEADS, key_bias, "auto", checkpointed).double()  # type: ignore[arg-type]
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    fused = copy.deepcopy(plain)
    set_blocks(fused, "fused")
    return plain, fused


def whole(state: State) -> Tensor:
    """The sum that a state stands for."""
    stream, rest, bias = state
    return stream if rest is None or bias is None else stream + rest + bias


def run(blocks: Blocks, x: Tensor, lengths: list[int] | None, factors: Tensor | None) -> list[Tensor]:
    """Output, gradient of the input, and of every parameter."""
    x = x.clone().requires_grad_()
    out = whole(blocks(x, lengths, factors))
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), [x, *blocks.parameters()])]


@pytest.mark.parametrize("key_bias", ["zero", "learned"])
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("lengths", [None, [3, 5, 4], [6, 6]])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_numbers_and_gradients_are_those_of_plain_blocks(key_bias, rotary, lengths, checkpointed):
    plain, fused = pair(key_bias, checkpointed)
    shape = (2, 6) if lengths is None else (12,)
    x = torch.randn(*shape, WIDTH, dtype=torch.float64)
    factors = torch.randn(*shape, 2, WIDTH // HEADS, dtype=torch.float64) if rotary else None
    expected, found = run(plain, x, lengths, factors), run(fused, x, lengths, factors)
    names = ["output", "input", *(name for name, _ in plain.named_parameters())]
    for name, one, other in zip(names, found, expected, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


def test_without_gradients_and_without_tokens():
    plain, fused = pair("learned")
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(whole(fused(x)), whole(plain(x)))
    found = run(fused, x[:0], None, None)
    assert found[0].shape == (0, 6, WIDTH)
    assert not any(gradient.any() for gradient in found[1:])


def test_values_before_the_gelu_are_kept_for_a_gradient_only(monkeypatch):
    asked = []

    def spy(x: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor | None, Tensor]:
        asked.append(keep)
        return mlp_products.apart(x, weight, bias, keep)

    monkeypatch.setattr(fused_functions, "linear_gelu", spy)
    _, fused = pair("learned")
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    fused(x)
    with torch.no_grad():
        fused(x)
    fused.requires_grad_(False)
    fused(x)
    fused(x.requires_grad_())
    assert asked == [True] * DEPTH + [False] * 2 * DEPTH + [True] * DEPTH


def test_the_same_graph_may_be_gone_through_twice():
    """Memory that the backward pass uses again must not be what it keeps."""
    _, fused = pair("zero")
    out = whole(fused(torch.randn(2, 6, WIDTH, dtype=torch.float64)))
    parameters = list(fused.parameters())
    first = torch.autograd.grad(out.sum(), parameters, retain_graph=True)
    second = torch.autograd.grad(out.sum(), parameters)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def draw_clips(config: PretrainConfig, count: int) -> Tensor:
    """uint8 [count, T, H, W, 3] as the configuration has them."""
    shape = (count, config.data.frames, config.data.size, config.data.size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["demo", "demo-jepa"])
@pytest.mark.parametrize("position", ["sincos_3d", "rotary_3d"])
def test_objectives(name, position):
    config = PRESETS[name][1]
    model = replace(config.model, position=position) if name == "demo-jepa" else config.model
    plain = build_objective(model, 0, config.data.frames, config.data.size)
    fused = copy.deepcopy(plain)
    assert set_blocks(fused, "fused") == "fused"
    frames = draw_clips(config, 3)
    losses = [objective(frames, torch.arange(3), 2).loss for objective in (plain, fused)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(fused.features(frames), plain.features(frames), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["demo", "demo-jepa"])
def test_under_autocast_they_are_as_near_as_plain_blocks(name):
    config = PRESETS[name][1]
    exact = build_objective(config.model, 0, config.data.frames, config.data.size)
    frames = draw_clips(config, 3)

    def gradients(way: str, half: bool) -> list[Tensor]:
        objective = copy.deepcopy(exact)
        set_blocks(objective, way)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective(frames, torch.arange(3), 2).loss
        loss.backward()
        found = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
        assert all(gradient.dtype == torch.float32 for gradient in found)
        return found

    wanted, plain, fused = gradients("plain", False), gradients("plain", True), gradients("fused", True)
    for right, theirs, ours in zip(wanted, plain, fused, strict=True):
        error = float((theirs - right).norm() / right.norm().clamp(min=1e-8))
        assert float((ours - right).norm() / right.norm().clamp(min=1e-8)) < max(2 * error, 0.02)


def test_ways():
    objective = build_objective(PRESETS["demo"][1].model, 0, 4, 64)
    assert set_blocks(objective, "auto") == "plain"
    assert not any(part.fused for part in objective.modules() if isinstance(part, Block))
    assert set_blocks(objective, "fused") == "fused"
    assert all(part.fused for part in objective.modules() if isinstance(part, Block))
    assert set_blocks(objective, "plain") == "plain"
    assert not any(part.fused for part in objective.modules() if isinstance(part, Block))


def test_the_norm_behind_blocks_and_a_layer_behind_that():
    plain, fused = pair("learned")
    norm, layer = nn.LayerNorm(WIDTH).double(), nn.Linear(WIDTH, 7).double()
    for parameter in (*norm.parameters(), *layer.parameters()):
        nn.init.normal_(parameter)
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    parameters = [*norm.parameters(), *layer.parameters()]
    found: list[list[Tensor]] = []
    for blocks in (plain, fused):
        start = x.clone().requires_grad_()
        normalised = norm_of(norm, blocks(start))
        every = linear_of_norm(layer, norm, blocks(start))
        assert every.shape == (2, 6, 7)
        picked = linear_of_norm(layer, norm, blocks(start), torch.tensor([10, 2, 5, 7, 0]))
        torch.testing.assert_close(picked, every.flatten(0, 1)[[10, 2, 5, 7, 0]])
        wanted = [start, *blocks.parameters(), *parameters]
        loss = normalised.square().mean() + (picked - 1).square().mean() + every.pow(3).mean()
        found.append([normalised, picked, every, *torch.autograd.grad(loss, wanted)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("frozen", ["qkv", "fc1", "fc2", "proj", "norm1", "0.", "1.", "2."])
def test_frozen_weights_change_no_other_gradient(frozen):
    plain, fused = pair("learned")
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    found: list[dict[str, Tensor]] = []
    for blocks in (plain, fused):
        for name, parameter in blocks.named_parameters():
            parameter.requires_grad_(frozen not in name)
        whole(blocks(x)).square().sum().backward()
        found.append({name: p.grad for name, p in blocks.named_parameters() if p.grad is not None})
    assert found[1].keys() == found[0].keys()
    assert 0 < len(found[1]) < len(list(plain.parameters()))
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, found[0][name])


def test_second_derivatives_are_refused():
    _, fused = pair("learned")
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(whole(fused(x)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        first.sum().backward()


@pytest.mark.parametrize("name", ["demo", "demo-jepa"])
def test_plain_objectives_can_be_called_functionally(name):
    config = PRESETS[name][1]
    objective = build_objective(config.model, 0, config.data.frames, config.data.size)
    frames = draw_clips(config, 2)

    def loss(weights: dict[str, Tensor]) -> Tensor:
        output = torch.func.functional_call(objective, weights, (frames, torch.arange(2), 0))
        return output.loss

    weights = {n: p.detach() for n, p in objective.named_parameters() if p.requires_grad}
    found = torch.func.grad(loss)(weights)
    objective(frames, torch.arange(2), 0).loss.backward()
    for n, parameter in objective.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[n], parameter.grad)
