"""A classifier on the GPU, in bfloat16 and with fused blocks, says what it says on the CPU, and is
trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from surgrec.configs.finetune import FinetuneConfig
from surgrec.configs.model import IMAGENET_MEAN, IMAGENET_STD, MaeConfig

from surgrec.curation.embedders import half_precision
from surgrec.finetuning.augment import Augment
from surgrec.finetuning.classifier import build_classifier, trained
from surgrec.finetuning.tuner import Tuner, soft_cross_entropy
from surgrec.models.block_ways import set_blocks, way_on
from surgrec.models.build import build_objective
from surgrec.models.frame_encoder import FrameEncoder
from surgrec.models.timesformer import TimeSformer
from surgrec.models.video_encoder import encoder_of
from surgrec.weights.layout import Encoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CLASSES = 3


KINDS = ("video", "frames", "timesformer", "convolutions")


def encoder_named(kind: str) -> Encoder:
    """For clips of 4 frames of 64 pixels."""
    torch.manual_seed(0)
    if kind == "video":
        encoder = encoder_of(build_objective(MaeConfig(size="tiny"), 3, 4, 64))
        set_blocks(encoder, way_on("cuda", "auto"))
        return encoder
    if kind == "timesformer":
        return TimeSformer(2, 64, 2, 128, 4, 64, 16, IMAGENET_MEAN, IMAGENET_STD)
    name = "vit_small_patch16_dinov3" if kind == "frames" else "test_resnet"
    options = {"img_size": 64, "depth": 2} if kind == "frames" else {}
    model = timm.create_model(name, num_classes=0, **options)
    return FrameEncoder(model, 64, IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["linear", "attentive"])
@pytest.mark.parametrize("mode", ["full", "head", "lora"])
def test_a_classifier_on_the_gpu(mode: Any, head: Any, kind: str) -> None:
    if (mode, kind) == ("lora", "convolutions"):
        pytest.skip("a network of convolutions has no linear layers")
    config = FinetuneConfig(Path("m.json"), Path("."), "random:demo", mode=mode, head=head)
    network = build_classifier(config, encoder_named(kind), CLASSES)
    plain = copy.deepcopy(network).eval()
    set_blocks(plain, "plain")
    network.cuda()
    generator = torch.Generator().manual_seed(1)
    clips = torch.randint(0, 256, (4, 4, 64, 64, 3), generator=generator).to(torch.uint8)
    frames = clips.cuda()
    network.eval()
    with torch.no_grad(), half_precision(frames.device):
        found = network(frames).softmax(1).cpu()
    with torch.no_grad():
        torch.testing.assert_close(found, plain(clips).softmax(1), rtol=0, atol=0.02)
    tuner = Tuner(config, network, CLASSES, 4)
    augment = Augment(config, CLASSES)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    network.train()
    for group in tuner.optimizer.param_groups:
        group["lr"] = 1e-3
    for step in (1, 2):  # the first step changes `up` alone of what begins at 0
        mixed, targets = augment.mix(
            augment.clips(frames, range(4)), torch.tensor([0, 1, 2, 0], device="cuda"), step
        )
        with half_precision(frames.device):
            loss = soft_cross_entropy(network(mixed), targets)
        tuner.optimizer.zero_grad()
        loss.backward()
        tuner.optimizer.step()
        tuner.average.update(step)
    assert torch.isfinite(loss)
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert changed <= set(trained(network))
    assert {name for name in changed if name.startswith("head.")}
    assert (mode == "head") == (not any(name.startswith("encoder.") for name in changed))
