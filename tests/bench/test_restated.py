"""The restated steps of VideoMAE and V-JEPA 2 are the same mathematics as ours, from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from surgrec.configs.model import VIT_SHAPES, JepaConfig, MaeConfig, ViTShape
from torch import Tensor, nn

from surgrec.models.build import build_objective

FRAMES, SIZE = 4, 64


@pytest.fixture
def restated(bench_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(VIT_SHAPES, "tiny", ViTShape(2, 48, 3))
    return bench_module("restated")


def copy_blocks(ours: nn.Module, theirs: nn.ModuleList) -> None:
    for source, target in zip(ours, theirs, strict=True):  # type: ignore[call-overload]
        attention = source.attention
        bias = attention.qkv.bias
        if bias is None:
            bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
        target.load_state_dict(
            {
                "qkv.weight": attention.qkv.weight,
                "qkv.bias": bias,
                **{f"proj.{k}": v for k, v in attention.proj.state_dict().items()},
                **{
                    f"{n}.{k}": v
                    for n in ("norm1", "norm2")
                    for k, v in getattr(source, n).state_dict().items()
                },
                **{
                    f"{n}.{k}": v
                    for n in ("fc1", "fc2")
                    for k, v in getattr(source.mlp, n).state_dict().items()
                },
            }
        )


def copy_embedding(ours: nn.Linear, theirs: nn.Conv3d) -> None:
    theirs.weight.data = ours.weight.data.view(-1, 2, 16, 16, 3).permute(0, 4, 1, 2, 3).contiguous()
    theirs.bias.data = ours.bias.data.clone()  # type: ignore[union-attr]


def shake(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def frames() -> Tensor:
    return torch.randint(
        0, 256, (3, FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_videomae(restated: ModuleType, frames: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MaeConfig(size="tiny", mask_ratio=0.75, decoder_depth=2, decoder_width=24, decoder_heads=2)
    ours = build_objective(config, 0, FRAMES, SIZE)
    shake(ours)
    theirs = restated.VideoMae(config, FRAMES, SIZE)
    copy_embedding(ours.encoder.patch_embedding, theirs.embed)
    copy_blocks(ours.encoder.blocks, theirs.encoder)
    copy_blocks(ours.decoder.blocks, theirs.decoder)
    for mine, other in (
        (ours.encoder.norm, theirs.norm),
        (ours.encoder_to_decoder, theirs.to_decoder),
        (ours.decoder.norm, theirs.decoder_norm),
        (ours.decoder.head, theirs.head),
    ):
        other.load_state_dict(mine.state_dict())
    theirs.mask_token.data = ours.decoder.mask_token.data[None, None].clone()
    samples = torch.arange(3) + 5
    hidden = torch.zeros(3, 32, dtype=torch.bool).scatter(1, ours.mask(samples).masked, True)
    assert (theirs.tubes(3, frames.device).sum(1) == hidden.sum(1)).all()
    monkeypatch.setattr(theirs, "tubes", lambda count, device: hidden)
    torch.testing.assert_close(theirs(frames), ours(frames, samples).loss, rtol=1e-5, atol=0)


def test_vjepa2(restated: ModuleType, frames: Tensor) -> None:
    config = JepaConfig(
        size="tiny",
        position="rotary_3d",
        equal_lengths=True,
        predictor_depth=2,
        predictor_width=24,
        predictor_heads=2,
    )
    ours = build_objective(config, 0, FRAMES, SIZE)
    shake(ours)
    theirs = restated.VJepa2(config, FRAMES, SIZE)
    for mine, other in ((ours.encoder, theirs.encoder), (ours.teacher, theirs.teacher)):
        copy_embedding(mine.patch_embedding, other.embed)
        copy_blocks(mine.blocks, other.blocks)
        other.norm.load_state_dict(mine.norm.state_dict())
    copy_blocks(ours.predictor.blocks, theirs.predictor)
    theirs.embed.load_state_dict(ours.predictor.embedding.state_dict())
    theirs.norm.load_state_dict(ours.predictor.norm.state_dict())
    theirs.project.load_state_dict(ours.predictor.proj.state_dict())
    theirs.mask_tokens.data = ours.predictor.mask_tokens.data.clone()
    masks = [(m.context.view(3, -1), m.target.view(3, -1)) for m in ours.masks(torch.arange(3), 7)]
    torch.testing.assert_close(
        theirs(frames, masks), ours(frames, torch.arange(3), 7).loss, rtol=1e-5, atol=0
    )
    before = [p.clone() for p in theirs.teacher.parameters()]
    theirs.move_teacher(0.9)
    ours.load_state_dict(ours.state_dict())
    for old, new, student in zip(
        before, theirs.teacher.parameters(), theirs.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * student)
