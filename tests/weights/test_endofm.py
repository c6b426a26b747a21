"""Endo-FM's files against transformers' TimesformerModel with the same weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surgrec.weights.errors import WeightsError
from surgrec.weights.load import load_model

WIDTH, FRAMES, SIZE = 128, 4, 48


@pytest.fixture(scope="module")
def reference() -> Any:
    return random_model(FRAMES, SIZE)


def random_model(frames: int, size: int) -> Any:
    """All weights random: 3 x 3 places, two heads."""
    from transformers import TimesformerConfig, TimesformerModel

    model = TimesformerModel(
        TimesformerConfig(
            hidden_size=WIDTH,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_frames=frames,
            image_size=size,
        )
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def official(model: Any) -> dict[str, Tensor]:
    """Under the names of TimeSformer's own repository, which Endo-FM's files have."""
    pairs = [
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.time_embeddings", "time_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("encoder.layer", "blocks"),
        ("temporal_attention.attention.qkv", "temporal_attn.qkv"),
        ("temporal_attention.output.dense", "temporal_attn.proj"),
        ("attention.attention.qkv", "attn.qkv"),
        ("attention.output.dense", "attn.proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("temporal_layernorm", "temporal_norm1"),
        ("temporal_dense", "temporal_fc"),
        ("layernorm", "norm"),
    ]
    found = {}
    for key, value in model.state_dict().items():
        for theirs, ours in pairs:
            key = key.replace(theirs, ours)
        found[key] = value.clone()
    return found


def write(model: Any, path: Path, how: str) -> Path:
    tensors = official(model)
    backbone = {f"backbone.{key}": value for key, value in tensors.items()}
    if how == "teacher":
        # As the DINO family's training writes it, options and all.
        head = {"head.mlp.0.weight": torch.ones(4, WIDTH), "head.last_layer.weight_g": torch.ones(5, 1)}
        student = {f"module.{key}": torch.zeros_like(value) for key, value in backbone.items()}
        content: dict[str, Any] = {
            "student": student,
            "teacher": backbone | head,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
            "epoch": 30,
            "args": argparse.Namespace(arch="timesformer", lr=2e-5),
            "dino_loss": {"center": torch.zeros(1, 5)},
        }
    elif how == "timesformer":
        content = {"model_state": {f"model.{key}": value for key, value in tensors.items()}, "cfg": "TRAIN:"}
    elif how == "model":
        content = {"model": {**tensors, "head.weight": torch.ones(7, WIDTH), "head.bias": torch.ones(7)}}
    else:
        content = dict(tensors)
    torch.save(content, path)
    return path


def expected(model: Any, clips: Tensor, grey: bool = False) -> Tensor:
    """[B, T * n, D] by transformers, which puts the frames of a place side by side. grey: as of hidden."""
    tokens = hidden(model, clips, grey)[:, 1:]
    return tokens.unflatten(1, (-1, clips.shape[1])).transpose(1, 2).flatten(1, 2)


def hidden(model: Any, clips: Tensor, grey: bool = False) -> Tensor:
    """[B, 1 + n * T, D], the class token first. grey: with one mean and deviation for all colours, as
    TimeSformer has."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    if grey:
        mean, std = torch.tensor(0.45), torch.tensor(0.225)
    pixels = ((clips.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        found: Tensor = model(pixel_values=pixels).last_hidden_state
    return found


def clips_of(frames: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randint(0, 256, (2, frames, size, size, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("how", ["teacher", "model", "bare", "timesformer"])
def test_features_are_those_of_the_reference(reference: Any, tmp_path: Path, how: str) -> None:
    model = load_model(write(reference, tmp_path / "endofm.pth", how))
    assert (model.size, model.frames, model.width, model.rate) == (SIZE, FRAMES, WIDTH, {})
    clips = clips_of(FRAMES, SIZE)
    tokens = expected(reference, clips, grey=how == "timesformer")
    for form in (clips, clips.float() / 255):
        with torch.no_grad():
            found = model.forward_features(form)
        torch.testing.assert_close(found, tokens, atol=1e-4, rtol=1e-4)
    assert model.coverage is not None
    assert len(model.coverage.loaded) == len(official(reference))
    assert model.coverage.changed == []


@torch.no_grad()
def test_a_clip_is_its_class_token_as_in_its_own_code(reference: Any, tmp_path: Path) -> None:
    path = write(reference, tmp_path / "endofm.pth", "teacher")
    clips = clips_of(FRAMES, SIZE)
    for name, wanted in (
        (f"file:{path}", hidden(reference, clips)[:, 0]),
        (f"file:{path}#pooling=all", expected(reference, clips).mean(1)),
    ):
        pooled, tokens = load_model(name).encode(clips)
        torch.testing.assert_close(pooled, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(tokens, expected(reference, clips), atol=1e-4, rtol=1e-4)
    with pytest.raises(WeightsError, match="no pooling 'class' of it; choose own, all"):
        load_model(f"file:{path}#pooling=class")


@pytest.mark.parametrize(("frames", "size"), [(8, SIZE), (FRAMES, 96), (2, 32)])
def test_positions_of_other_clips_are_interpolated_and_said(
    reference: Any, tmp_path: Path, frames: int, size: int
) -> None:
    """As TimeSformer itself does: the nearest place, the nearest time."""
    other = random_model(frames, size)
    same = {**other.state_dict(), **reference.state_dict()}
    for key in ("embeddings.position_embeddings", "embeddings.time_embeddings"):
        same[key] = other.state_dict()[key]
    other.load_state_dict(same)
    other.embeddings.position_embeddings = reference.embeddings.position_embeddings
    other.embeddings.time_embeddings = reference.embeddings.time_embeddings
    model = load_model(write(reference, tmp_path / "endofm.pth", "teacher"), frames=frames, size=size)
    clips = clips_of(frames, size)
    with torch.no_grad():
        found = model.forward_features(clips)
    torch.testing.assert_close(found, expected(other, clips), atol=1e-4, rtol=1e-4)
    assert model.coverage is not None
    said = dict(model.coverage.changed)
    assert ("place" in said, "time" in said) == (size != SIZE, frames != FRAMES)
    if size == 96:
        assert said["place"] == "positions interpolated from 3x3 to 6x6 (nearest)"


def test_what_is_left_out_is_named(reference: Any, tmp_path: Path) -> None:
    model = load_model(write(reference, tmp_path / "endofm.pth", "teacher"))
    assert model.coverage is not None
    dropped = dict(model.coverage.dropped)
    assert set(dropped) == {"teacher/head.*", "student/*", "optimizer/*", "dino_loss/*", "epoch", "args"}
    assert "tensors: 2" in dropped["teacher/head.*"]


@pytest.mark.parametrize(
    "lost", ["cls_token", "pos_embed", "time_embed", "blocks.1.temporal_fc.bias", "norm.weight"]
)
def test_nothing_is_lost_in_silence(reference: Any, tmp_path: Path, lost: str) -> None:
    tensors = official(reference)
    del tensors[lost]
    torch.save({"model": tensors}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=rf"part\.pth: .*{lost}"):
        load_model(tmp_path / "part.pth")


@pytest.mark.parametrize(
    "key",
    ["cls_token", "pos_embed", "time_embed", "blocks.1.temporal_fc.weight", "blocks.0.temporal_norm1.bias"],
)
def test_every_kind_of_weight_matters(reference: Any, tmp_path: Path, key: str) -> None:
    before = official(reference)
    found = []
    for number, tensors in enumerate((before, {**before, key: before[key] * -0.5})):
        torch.save(tensors, tmp_path / f"{number}.pth")
        with torch.no_grad():
            found.append(load_model(tmp_path / f"{number}.pth").forward_features(clips_of(FRAMES, SIZE)))
    assert (found[0] - found[1]).abs().max() > 0.01


def test_heads_are_as_they_are_asked_for(reference: Any, tmp_path: Path) -> None:
    path = write(reference, tmp_path / "endofm.pth", "bare")
    clips = clips_of(FRAMES, SIZE)
    with torch.no_grad():
        found = [load_model(f"file:{path}#heads={heads}").forward_features(clips) for heads in (2, 4)]
    torch.testing.assert_close(found[0], expected(reference, clips), atol=1e-4, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 0.01
    with pytest.raises(WeightsError, match="a width of 128 does not divide into 3 heads"):
        load_model(f"file:{path}#heads=3")


def test_a_rate_is_as_it_is_asked_for(reference: Any, tmp_path: Path) -> None:
    path = write(reference, tmp_path / "endofm.pth", "bare")
    assert load_model(f"file:{path}#fps=2.5").rate == {"fps": 2.5}
    with pytest.raises(WeightsError, match=r"stride=2 and fps=3.0 contradict; give one"):
        load_model(f"file:{path}#stride=2,fps=3")


def test_a_file_of_another_shape(reference: Any, tmp_path: Path) -> None:
    tensors = {**official(reference), "pos_embed": torch.zeros(1, 9, WIDTH)}
    torch.save(tensors, tmp_path / "bent.pth")
    with pytest.raises(WeightsError, match=r"bent\.pth: pos_embed has 8 places of a frame"):
        load_model(tmp_path / "bent.pth")
    torch.save({**official(reference), "pos_embed": torch.zeros(3)}, tmp_path / "flat.pth")
    with pytest.raises(WeightsError, match=r"flat\.pth: pos_embed is \[3\]; 3 dimensions"):
        load_model(tmp_path / "flat.pth")


def test_two_networks_without_a_teacher(reference: Any, tmp_path: Path) -> None:
    torch.save({"a": official(reference), "b": official(reference)}, tmp_path / "two.pth")
    with pytest.raises(WeightsError, match="holds 2 networks with time_embed"):
        load_model(tmp_path / "two.pth")
