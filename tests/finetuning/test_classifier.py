"""What is trained in each mode, how fast, and what the heads compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from surgrec.configs.finetune import FinetuneConfig
from surgrec.configs.model import VIT_SHAPES, MaeConfig, ViTShape

from surgrec.finetuning.classifier import Classifier, build_classifier, trained, trained_groups
from surgrec.finetuning.encoders import layers as layers_of
from surgrec.models.build import build_objective
from surgrec.models.video_encoder import encoder_of
from surgrec.training.optim import set_hyperparameters

DEPTH, WIDTH, CLASSES = 4, 48, 5
CLIPS = torch.randint(0, 256, (2, 4, 32, 32, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setitem(VIT_SHAPES, "tiny", ViTShape(DEPTH, WIDTH, 3))


def classifier(**options: Any) -> Classifier:
    config = FinetuneConfig(Path("m.json"), Path("."), "random:demo", **options)
    return build_classifier(config, encoder_of(build_objective(MaeConfig(size="tiny"), 3, 4, 32)), CLASSES)


def test_layers_are_those_of_beit() -> None:
    """Embedding of patches 0, block i is i + 1, whatever follows is the last."""
    network = classifier()
    layers, last = layers_of(network.encoder)
    assert {layers[name] for name in layers if "patch_embedding" in name} == {0}
    for block in range(DEPTH):
        assert {layers[name] for name in layers if f"blocks.{block}." in name} == {block + 1}
    rest = [name for name in layers if "patch_embedding" not in name and "blocks." not in name]
    assert sorted(rest) == ["transformer.norm.bias", "transformer.norm.weight"]
    assert {layers[name] for name in rest} == {DEPTH + 1} == {last}


@pytest.mark.parametrize("decay", [0.75, 1.0])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_rates_fall_from_layer_to_layer(mode: Any, decay: float) -> None:
    network = classifier(mode=mode, head="attentive")
    groups = trained_groups(network, decay)
    assert {name for group in groups for name in group["names"]} == set(trained(network))
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    set_hyperparameters(optimizer, 1e-3, 0.05)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    for name, rate in rates.items():
        power = DEPTH + 1
        if "blocks." in name:
            power = DEPTH - int(name.split("blocks.")[1].split(".")[0])
        elif "patch_embedding" not in name:
            power = 0
        assert rate == pytest.approx(1e-3 * decay**power), name
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    for name, value in decays.items():
        plain = name.endswith(("bias", "query", "scale")) or ("norm" in name and name.startswith("encoder"))
        assert value == (0.0 if plain else 0.05), name
    assert 0.0 in decays.values()


def test_what_each_mode_trains() -> None:
    head = WIDTH * CLASSES + CLASSES
    encoder = sum(value.numel() for value in classifier().encoder.parameters())
    counts = {
        mode: sum(v.numel() for v in trained(classifier(mode=mode)).values())
        for mode in ("full", "head", "lora")
    }
    # Rank 8 of qkv, proj, fc1 and fc2.
    added = 8 * sum((48 + 144, 48 + 48, 48 + 192, 192 + 48)) * DEPTH
    assert counts == {"full": encoder + head, "head": head, "lora": head + added}


def test_a_frozen_encoder_stays_in_eval_mode_and_gets_no_gradient() -> None:
    network = classifier(mode="head").train()
    assert network.training
    assert not network.encoder.training
    network(CLIPS).sum().backward()
    assert all(value.grad is None for value in network.encoder.parameters())
    assert all(value.grad is not None for value in network.head.values())


def test_the_linear_head_reads_the_mean_of_the_tokens() -> None:
    network = classifier().eval()
    weights = network.head_weights()
    with torch.no_grad():
        wanted = network.encoder(CLIPS).mean(1) @ weights["classify.weight"][0] + weights["classify.bias"][0]
        torch.testing.assert_close(network(CLIPS), wanted)
        attentive = classifier(head="attentive", blocks=2).eval()
        tokens = attentive.encoder(CLIPS)
        found = attentive.heads.logits(attentive.head_weights(), tokens)[0]
        torch.testing.assert_close(attentive(CLIPS), found)
    assert attentive.heads.classes == CLASSES


def test_options_of_another_mode_are_refused() -> None:
    for mode, option in (("head", "layer_decay"), ("head", "drop_path"), ("head", "rank"), ("full", "alpha")):
        with pytest.raises(
            ValueError, match=rf"--{option.replace('_', '-')} has no effect with --mode {mode}"
        ):
            classifier(mode=mode, **{option: 1})
