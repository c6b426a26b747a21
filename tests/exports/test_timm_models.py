"""The models that surgrec.timm_models registers, as people of timm use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

import surgrec.timm_models  # noqa: F401  # registers
from surgrec.exports.comparison import clips_for
from surgrec.exports.source import open_source
from surgrec.exports.video_vit import normalised
from surgrec.models.video_encoder import encoder_of

Convert = Callable[..., Path]
FIXED, ROTARY = "surgrec_vit_tiny_patch16_16x224", "surgrec_vit_tiny_patch16_rope_16x256"
SMALL = {"frames": 4, "img_size": 32, "patch_size": 8}

CREATE = """
import timm, torch
import surgrec.timm_models
clips, expected = torch.load(sys.argv[2])
model = timm.create_model(
    "surgrec_vit_tiny_patch16_16x224", pretrained=False, checkpoint_path=sys.argv[1], depth=2, patch_size=32
).eval()
with torch.no_grad():
    found = model.forward_features(clips)
torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
"""


def test_create_model_loads_a_file_offline(
    runs: Any, convert: Convert, offline: Callable[..., None], tmp_path: Path
) -> None:
    file = convert(runs["mae"].path, "timm", "model.safetensors")
    clips = clips_for(open_source(runs["mae"].path))
    with torch.no_grad():
        expected = encoder_of(runs["mae"].objective)(clips)
    model = runs["mae"].config.model
    torch.save((normalised(clips, model.mean, model.std), expected), tmp_path / "both.pt")
    offline(CREATE, file, tmp_path / "both.pt")


@pytest.mark.parametrize("name", [FIXED, ROTARY])
def test_heads_features_and_training(name: str) -> None:
    clips = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    model: Any = timm.create_model(name, num_classes=7, drop_path_rate=0.1, **SMALL)
    assert model(clips).shape == (2, 7)
    assert model.forward_features(clips).shape == (2, 32, 192)
    model.reset_classifier(5)
    model(clips).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n != "pos_embed")
    assert model.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
    scales = {group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.5)}
    assert scales == {1.0, 0.5, 0.25, 0.125}
    maps = timm.create_model(name, features_only=True, out_indices=(0, 1), **SMALL)
    assert [tuple(found.shape) for found in maps(clips)] == [(2, 192, 2, 4, 4)] * 2


@pytest.mark.parametrize("name", [FIXED, ROTARY])
def test_intermediates_are_the_blocks(name: str) -> None:
    clips = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    model: Any = timm.create_model(name, **SMALL).eval()
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad():
        last, found = model.forward_intermediates(clips, norm=False, output_fmt="NLC")
        kept = list(seen)
        assert torch.equal(last, model.forward_features(clips))
        (normed,) = model.get_intermediate_layers(clips, 1, norm=True)
        (cube,) = model.forward_intermediates(clips, [0], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))
    assert torch.equal(normed, last)
    # Token (t, y, x) is number (t * h + y) * w + x.
    assert torch.equal(cube[:, :, 1, 2, 3], kept[0][:, (1 * 4 + 2) * 4 + 3])
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(clips, output_fmt="NHWC")
    with pytest.raises(ValueError, match="is_causal"):
        model.forward_intermediates(clips, is_causal=True)


def test_file_of_other_positions_is_refused(runs: Any, convert: Convert) -> None:
    """Nothing is loaded in part: neither another grid, nor rotary weights into fixed positions, nor back."""
    fixed = convert(runs["mae"].path, "timm", "fixed.safetensors")
    rotary = convert(runs["jepa2"].path, "timm", "rotary.safetensors")
    for name, file, size, said in (
        (FIXED, fixed, 256, "size mismatch for pos_embed"),
        (ROTARY, fixed, 224, "Unexpected key.*pos_embed"),
        (FIXED, rotary, 256, "Missing key.*pos_embed"),
    ):
        with pytest.raises(RuntimeError, match=said):
            timm.create_model(name, checkpoint_path=str(file), patch_size=32, img_size=size)


def test_clips_of_another_shape_are_refused() -> None:
    model: Any = timm.create_model(FIXED, **SMALL)
    for shape in ((1, 3, 32, 32), (1, 3, 2, 32, 32), (1, 4, 3, 32, 32)):
        with pytest.raises(ValueError, match=r"\[B, 3, 4, 32, 32\]"):
            model(torch.zeros(shape))
    with pytest.raises(ValueError, match="3 frames of 32 pixels do not divide"):
        timm.create_model(FIXED, **SMALL | {"frames": 3})
    with pytest.raises(ValueError, match="give frames= and img_size="):
        model.set_input_size(64)
