"""TimeSformer against a plain restatement of the paper's equations, place by place and frame by frame."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from surgrec.models.timesformer import DividedBlock, TimeSformer

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def model() -> TimeSformer:
    """All weights random: 3 frames of 2 x 2 patches."""
    found = TimeSformer(depth=2, width=32, heads=4, hidden=48, frames=3, size=16, patch=8, mean=MEAN, std=STD)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return found.eval()


@pytest.fixture
def clips() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8, generator=generator)


def attend(own: torch.nn.Module, x: Tensor) -> Tensor:
    """One sequence [N, D], head by head."""
    q, k, v = (x @ own.qkv.weight.T + own.qkv.bias).chunk(3, dim=-1)
    heads = []
    for a, b, c in zip(q.chunk(own.heads, -1), k.chunk(own.heads, -1), v.chunk(own.heads, -1), strict=True):
        heads.append((a @ b.T / math.sqrt(a.shape[-1])).softmax(-1) @ c)
    return torch.cat(heads, -1) @ own.proj.weight.T + own.proj.bias


def restated_block(block: DividedBlock, x: dict[tuple[int, int], Tensor], whole: Tensor) -> Tensor:
    """x: the token of each (frame, place), changed in place; `whole`: the class token, whose new value is
    returned."""
    steps, places = 1 + max(t for t, _ in x), 1 + max(place for _, place in x)
    for place in range(places):
        over_time = torch.stack([x[t, place] for t in range(steps)])
        answer = attend(block.time_attention, block.time_norm(over_time))
        for t in range(steps):
            x[t, place] = x[t, place] + block.time_linear(answer[t])
    answers = []
    for t in range(steps):
        frame = torch.stack([whole, *(x[t, place] for place in range(places))])
        answer = attend(block.attention, block.norm1(frame))
        answers.append(answer[0])
        for place in range(places):
            x[t, place] = x[t, place] + answer[1 + place]
    whole = whole + torch.stack(answers).mean(0)
    for at in x:
        x[at] = x[at] + block.mlp(block.norm2(x[at]))
    return whole + block.mlp(block.norm2(whole))


@torch.no_grad()
def test_is_the_papers(model: TimeSformer, clips: Tensor) -> None:
    found = model(clips)
    for clip, tokens in zip(clips, found, strict=True):
        x = {}
        for t in range(3):
            pixels = (clip[t].float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
            for place in range(4):
                row, column = 8 * (place // 2), 8 * (place % 2)
                patch = pixels[row : row + 8, column : column + 8].permute(2, 0, 1)
                filtered = (model.patch_embedding.weight * patch).sum((1, 2, 3)) + model.patch_embedding.bias
                x[t, place] = filtered + model.place[0, 1 + place] + model.time[0, t]
        whole = model.class_token[0, 0] + model.place[0, 0]
        for block in model.blocks:
            whole = restated_block(block, x, whole)
        expected = torch.stack([model.norm(x[t, place]) for t in range(3) for place in range(4)])
        torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_values_in_0_to_1_are_the_same_clip(model: TimeSformer, clips: Tensor) -> None:
    torch.testing.assert_close(model(clips.float() / 255), model(clips))


@torch.no_grad()
def test_the_class_token_matters(model: TimeSformer, clips: Tensor) -> None:
    before = model(clips)
    model.class_token *= -2
    assert (model(clips) - before).abs().max() > 1e-3


def test_refuses_other_clips(model: TimeSformer) -> None:
    with pytest.raises(ValueError, match=r"3 frames of 16 x 16 pixels; these have shape \(1, 4, 16, 16, 3\)"):
        model(torch.zeros(1, 4, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="20 pixels do not divide into patches of 8"):
        TimeSformer(depth=1, width=32, heads=4, hidden=48, frames=3, size=20, patch=8, mean=MEAN, std=STD)


def test_every_weight_has_a_gradient(model: TimeSformer, clips: Tensor) -> None:
    model(clips).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
