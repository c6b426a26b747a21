"""Models are what their configuration and seed say, and nothing else."""

from __future__ import annotations

import pytest
import torch
from surgrec.configs.model import VIT_SHAPES, JepaConfig, MaeConfig, Size, ViTShape
from torch import Tensor

from surgrec.models.build import build_objective

CONFIGS = [
    MaeConfig(size="tiny", decoder_depth=1, decoder_width=32, decoder_heads=2),
    JepaConfig(size="tiny", predictor_depth=1, predictor_width=32, predictor_heads=4),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_seed_decides_weights_and_masks(
    small: ViTShape, frames: Tensor, config: MaeConfig | JepaConfig
) -> None:
    torch.manual_seed(5)
    first = build_objective(config, 1, frames=8, size=64)
    drawn = torch.rand(1)
    torch.manual_seed(6)
    second = build_objective(config, 1, frames=8, size=64)
    third = build_objective(config, 2, frames=8, size=64)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn), "building must leave the global generator alone"
    weights = [model.state_dict() for model in (first, second, third)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(
        weights[0]["encoder.patch_embedding.weight"], weights[2]["encoder.patch_embedding.weight"]
    )
    samples = torch.arange(3)
    losses = [model(frames, samples, 7).loss for model in (first, second, first)]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])
    third.load_state_dict(weights[0])
    assert not torch.equal(third(frames, samples, 7).loss, losses[0]), "masks follow the seed too"


@pytest.mark.parametrize("config", CONFIGS)
def test_features_of_all_tokens(small: ViTShape, frames: Tensor, config: MaeConfig | JepaConfig) -> None:
    model = build_objective(config, 0, frames=8, size=64)
    assert model.features(frames).shape == (3, 64, 48)
    with pytest.raises(ValueError, match="was built for clips"):
        model.features(frames[:, :, :32, :32])


def test_names_in_a_checkpoint(small: ViTShape) -> None:
    """Importers and old checkpoints rely on these."""
    mae = set(build_objective(CONFIGS[0], 0, frames=8, size=64).state_dict())
    block = {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attention.proj.weight"}
    block |= {"attention.proj.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"}
    block |= {"attention.qkv.weight"}
    ends = {"patch_embedding.weight", "patch_embedding.bias", "norm.weight", "norm.bias"}
    zero_key, full = {"attention.q_bias", "attention.v_bias"}, {"attention.qkv.bias"}
    expected = {f"encoder.{name}" for name in ends} | {"encoder_to_decoder.weight", "decoder.mask_token"}
    expected |= {f"encoder.blocks.{n}.{name}" for n in range(3) for name in block | zero_key}
    expected |= {f"decoder.blocks.0.{name}" for name in block | zero_key}
    expected |= {f"decoder.{part}.{kind}" for part in ("norm", "head") for kind in ("weight", "bias")}
    assert mae == expected
    jepa = set(build_objective(CONFIGS[1], 0, frames=8, size=64).state_dict())
    expected = {f"{part}.{name}" for part in ("encoder", "teacher") for name in ends}
    expected |= {
        f"{part}.blocks.{n}.{name}"
        for part in ("encoder", "teacher")
        for n in range(3)
        for name in block | full
    }
    expected |= {f"predictor.blocks.0.{name}" for name in block | full} | {"predictor.mask_tokens"}
    expected |= {
        f"predictor.{part}.{kind}" for part in ("embedding", "norm", "proj") for kind in ("weight", "bias")
    }
    assert jepa == expected


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 5.6), ("small", 21.9), ("base", 86.2), ("large", 303.9), ("huge", 631.7)]
)
def test_sizes(size: Size, millions: float) -> None:
    """Parameters of the encoder, patch embedding of 1536 values included."""
    width, depth = VIT_SHAPES[size].width, VIT_SHAPES[size].depth
    with torch.device("meta"):
        model = build_objective(MaeConfig(size=size), 0)
    count = sum(p.numel() for p in model.get_submodule("encoder").parameters())
    # Weights and biases of a block: q, v, proj, fc1, fc2 and two norms.
    block = 12 * width**2 + (3 + 4 + 1) * width + 4 * width
    assert count == 1537 * width + depth * block + 2 * width
    assert count / 1e6 == pytest.approx(millions, abs=0.5)
    assert model.parameter_count > count


def test_clips_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        build_objective(CONFIGS[0], 0, frames=16, size=100)
