"""The estimate against models that are really built, and peaks by the names that drivers give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from surgrec.configs.presets import PRESETS

from surgrec.models.block_ways import set_blocks
from surgrec.models.build import build_objective
from surgrec.training.errors import UserError
from surgrec.training.estimate import describe, estimate
from surgrec.training.peaks import peak_flops


@pytest.mark.parametrize("name", ["demo", "demo-jepa"])
def test_parameters_and_flops_are_those_of_the_model(name):
    config = PRESETS[name][1]
    model = build_objective(config.model, 0, config.data.frames, config.data.size)
    costs = estimate(config, 16, torch.float32)
    assert costs.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert costs.flops_per_clip == model.flops_per_clip()
    assert costs.memory.weights == costs.memory.gradients == 4 * costs.parameters
    assert costs.memory.optimizer == 8 * costs.parameters
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert costs.memory.teacher == 4 * frozen


def test_fsdp_divides_what_is_kept_between_steps():
    config = replace(PRESETS["demo-jepa"][1], parallel="fsdp", batch=16)
    alone = estimate(config, 4, torch.float32).memory
    assert alone == estimate(replace(config, parallel="ddp"), 4, torch.float32, ranks=4).memory
    memory = estimate(config, 4, torch.float32, ranks=4).memory
    assert memory.optimizer == alone.optimizer / 4
    assert memory.gradients == alone.gradients / 4
    # Whole for the time of a step, and the shards beside them.
    assert (memory.weights, memory.teacher) == (1.25 * alone.weights, 1.25 * alone.teacher)
    accumulating = estimate(config, 2, torch.float32, ranks=4).memory
    assert accumulating.gradients == 1.25 * alone.gradients


def test_tokens_of_the_paper():
    costs = estimate(PRESETS["mae-vitb"][1], 1, torch.bfloat16)
    assert (costs.tokens, costs.seen, costs.predicted) == (1568, 160, 1408)
    costs = estimate(PRESETS["jepa-vitl-256"][1], 1, torch.bfloat16)
    assert costs.tokens == 8 * 16 * 16


@pytest.mark.parametrize("name", ["demo", "demo-jepa"])
@pytest.mark.parametrize("way", ["plain", "fused"])
def test_activations_are_what_autograd_keeps(name, way):
    """Bytes of all tensors that backward holds, each storage once; parameters and frames left out."""
    config = replace(PRESETS[name][1], blocks=way)
    model = build_objective(config.model, 0, config.data.frames, config.data.size)
    set_blocks(model, way)
    frames = torch.randint(
        0, 256, (8, config.data.frames, config.data.size, config.data.size, 3), dtype=torch.uint8
    )
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(frames, torch.arange(8), 0)
    assert output.loss.requires_grad
    measured = sum(kept.values())
    expected = estimate(config, 8, torch.float32).memory.activations
    assert 0.7 < expected / measured < 1.4


def test_recomputing_keeps_less():
    config = PRESETS["jepa-vitl"][1]
    whole = estimate(config, 8, torch.bfloat16).memory
    recomputed = estimate(
        replace(config, model=replace(config.model, checkpoint_activations=True)), 8, torch.bfloat16
    ).memory
    assert recomputed.activations < whole.activations / 3
    assert recomputed.weights == whole.weights


@pytest.mark.parametrize(
    ("way", "precision", "bytes_kept"),
    [
        ("plain", torch.bfloat16, 36),
        ("plain", torch.float32, 64),
        ("fused", torch.bfloat16, 20),
        ("fused", torch.float32, 40),
    ],
)
def test_what_a_block_keeps(way, precision, bytes_kept):
    """Of one more block, for each token and unit of width."""
    config = replace(PRESETS["mae-vitb"][1], blocks=way)
    deeper = replace(config, model=replace(config.model, decoder_depth=config.model.decoder_depth + 1))
    one, other = (estimate(c, 1, torch.float32) for c in (config, deeper))
    more = [estimate(c, 1, precision).memory.activations for c in (config, deeper)]
    weights = other.parameters - one.parameters if precision == torch.bfloat16 else 0
    per_token = (more[1] - more[0] - 2 * weights) / (1568 * config.model.decoder_width)
    assert per_token == pytest.approx(bytes_kept)


def test_shapes_that_cannot_be_are_refused():
    config = PRESETS["mae-vitb"][1]
    with pytest.raises(UserError, match="225"):
        estimate(replace(config, data=replace(config.data, size=225)), 1, torch.float32)


def test_description_names_every_part():
    config = PRESETS["jepa-vitl"][1]
    text = describe(config, estimate(config, 24, torch.bfloat16), 24)
    for word in (
        "tokens a clip: 1,568",
        "FLOPs a clip",
        "parameters: ",
        "EMA teacher",
        "activations of 24 clips",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H20", 148.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA B200", 2250.0),
    ],
)
def test_peaks(name, tflops):
    assert peak_flops(name, torch.bfloat16) == tflops * 1e12
    assert peak_flops(name, torch.float32) is None


def test_unknown_devices_have_no_peak():
    assert peak_flops("Tesla T4", torch.bfloat16) is None
