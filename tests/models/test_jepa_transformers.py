"""The rotary encoder and predictor against transformers' VJEPA2Model with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from surgrec.configs.model import IMAGENET_MEAN, IMAGENET_STD, JepaConfig
from surgrec.kernels.patchify import patchify
from torch import Tensor

from surgrec.models.build import build_objective
from surgrec.models.jepa import Jepa
from surgrec.models.packing import Packed

GRID = (4, 4, 4)


def blocks_to_transformers(
    ours: dict[str, Tensor], source: str, target: str, depth: int
) -> dict[str, Tensor]:
    theirs = {}
    for n in range(depth):
        for kind in ("weight", "bias"):
            parts = ours[f"{source}.{n}.attention.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                theirs[f"{target}.{n}.attention.{name}.{kind}"] = part
            for name in ("attention.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                theirs[f"{target}.{n}.{name}.{kind}"] = ours[f"{source}.{n}.{name}.{kind}"]
    return theirs


@pytest.fixture(scope="module")
def pair() -> tuple[Jepa, Any]:
    """Ours and transformers', all weights random; ViT-Ti in full depth."""
    from transformers import VJEPA2Config, VJEPA2Model

    config = JepaConfig(size="tiny", position="rotary_3d", predictor_depth=4, predictor_width=96)
    model = build_objective(config, 0, frames=8, size=64)
    assert isinstance(model, Jepa)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.ndim == 1 else 0.03
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    theirs = VJEPA2Model(
        VJEPA2Config(
            patch_size=16,
            crop_size=64,
            frames_per_clip=8,
            tubelet_size=2,
            hidden_size=192,
            num_attention_heads=3,
            num_hidden_layers=12,
            layer_norm_eps=1e-6,
            pred_hidden_size=96,
            pred_num_attention_heads=12,
            pred_num_hidden_layers=4,
            pred_num_mask_tokens=2,
        )
    )
    ours = model.state_dict()
    weight = ours["encoder.patch_embedding.weight"].view(-1, 2, 16, 16, 3).permute(0, 4, 1, 2, 3)
    state = {
        "encoder.embeddings.patch_embeddings.proj.weight": weight,
        "encoder.embeddings.patch_embeddings.proj.bias": ours["encoder.patch_embedding.bias"],
        "predictor.embeddings.mask_tokens": ours["predictor.mask_tokens"][:, None, None],
    }
    for kind in ("weight", "bias"):
        state[f"encoder.layernorm.{kind}"] = ours[f"encoder.norm.{kind}"]
        state[f"predictor.layernorm.{kind}"] = ours[f"predictor.norm.{kind}"]
        state[f"predictor.proj.{kind}"] = ours[f"predictor.proj.{kind}"]
        state[f"predictor.embeddings.predictor_embeddings.{kind}"] = ours[f"predictor.embedding.{kind}"]
    state |= blocks_to_transformers(ours, "encoder.blocks", "encoder.layer", 12)
    state |= blocks_to_transformers(ours, "predictor.blocks", "predictor.layer", 4)
    theirs.load_state_dict(state, strict=True)
    return model, theirs.eval()


def pixels_of(frames: Tensor) -> Tensor:
    """[B, T, 3, H, W] as transformers takes them."""
    return ((frames.float() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).movedim(-1, 2)


@torch.no_grad()
def test_encoder_equals_transformers(pair: tuple[Jepa, Any], frames: Tensor) -> None:
    model, theirs = pair
    tokens = torch.arange(64).expand(len(frames), -1)
    patches = patchify(frames, tokens, 2, 16, IMAGENET_MEAN, IMAGENET_STD)
    expected = theirs(pixels_of(frames), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(model.encoder(patches, tokens), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_encoder_of_a_context_equals_transformers(pair: tuple[Jepa, Any], frames: Tensor) -> None:
    """Rotary positions of gathered tokens are those of the tokens, not of their places in the row."""
    model, theirs = pair
    tokens = torch.stack([torch.randperm(64)[:20].sort().values for _ in range(len(frames))])
    embedded = theirs.encoder.embeddings(pixels_of(frames))
    x = embedded.gather(1, tokens[..., None].expand(-1, -1, 192))
    for layer in theirs.encoder.layer:
        x = layer(x, tokens)[0]
    patches = patchify(frames, tokens, 2, 16, IMAGENET_MEAN, IMAGENET_STD)
    expected = theirs.encoder.layernorm(x)
    torch.testing.assert_close(model.encoder(patches, tokens), expected, atol=1e-5, rtol=1e-5)
    packed = model.encoder(patches.flatten(0, 1), tokens.flatten(), [20] * len(frames))
    torch.testing.assert_close(packed, expected.flatten(0, 1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_predictor_equals_transformers(pair: tuple[Jepa, Any], frames: Tensor) -> None:
    """Theirs always takes the second mask token, and needs the last token among the targets of a batch."""
    model, theirs = pair
    clips = len(frames)
    generator = torch.Generator().manual_seed(5)
    orders = torch.stack([torch.randperm(63, generator=generator) for _ in range(clips)])
    context = orders[:, :20].sort().values
    target = torch.cat([orders[:, 20:45], torch.full((clips, 1), 63)], dim=1).sort().values
    features = torch.randn(clips, 64, 192, generator=generator)
    expected = theirs.predictor(features, [context], [target]).last_hidden_state
    device = torch.device("cpu")
    predicted = model.predictor(
        features.gather(1, context[..., None].expand(-1, -1, 192)).flatten(0, 1),
        Packed.join([context.flatten()], [torch.full((clips,), 20)], device),
        Packed.join([target.flatten()], [torch.full((clips,), 26)], device),
        torch.ones(clips, dtype=torch.int64),
    )
    torch.testing.assert_close(predicted, expected.flatten(0, 1), atol=1e-5, rtol=1e-5)
