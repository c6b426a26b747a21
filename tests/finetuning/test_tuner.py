"""Steps against plain PyTorch: rates by layer, the schedule, clipping, decay, and the average of the
weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from surgrec.configs.finetune import FinetuneConfig
from surgrec.configs.model import MaeConfig
from torch.nn import functional

from surgrec.finetuning.classifier import build_classifier, trained
from surgrec.finetuning.labelled_clips import TrainBatch
from surgrec.finetuning.tuner import Average, Tuner
from surgrec.models.build import build_objective
from surgrec.models.video_encoder import encoder_of

STEPS, EPOCHS, CLASSES = 3, 4, 3
LR, DECAY, CLIP, LAYERS, EMA = 2e-3, 0.1, 0.5, 0.6, 0.7


class Noise:
    """Stands for TrainClips: other noise in each step."""

    steps = STEPS

    def epoch(self, epoch: int) -> Iterator[TrainBatch]:
        for step in range(STEPS):
            yield self.batch(epoch * STEPS + step)

    def batch(self, number: int) -> TrainBatch:
        generator = torch.Generator().manual_seed(number)
        frames = torch.randint(0, 256, (4, 4, 32, 32, 3), generator=generator).to(torch.uint8)
        labels = torch.randint(0, CLASSES, (4,), generator=generator)
        return TrainBatch(frames, labels, list(range(4 * number, 4 * number + 4)), number % 2)


def tuner_of(**options: Any) -> Tuner:
    plain = {"mixup": 0.0, "cutmix": 0.0, "randaugment_ops": 0, "label_smoothing": 0.2, "drop_path": 0.0}
    given = plain | {"lr": LR, "weight_decay": DECAY, "clip": CLIP, "layer_decay": LAYERS, "ema": EMA}
    given |= {"epochs": EPOCHS, "warmup": 0.25} | options
    config = FinetuneConfig(Path("m.json"), Path("."), "random:demo", **given)
    encoder = encoder_of(build_objective(MaeConfig(size="tiny"), 3, 4, 32))
    return Tuner(config, build_classifier(config, encoder, CLASSES), CLASSES, 4)


def test_steps_are_those_of_plain_pytorch(small: None) -> None:
    tuner = tuner_of()
    network = copy.deepcopy(tuner.classifier).train()
    clips: Any = Noise()
    epochs = [tuner.train(clips, epoch, lambda step, loss: None) for epoch in range(EPOCHS)]
    assert [epoch.substitutes for epoch in epochs] == [1, 2, 1, 2]

    parameters = dict(network.named_parameters())
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in parameters.items()}
    average = {name: value.detach().clone() for name, value in parameters.items()}
    losses = []
    for step in range(1, STEPS * EPOCHS + 1):
        batch = clips.batch(step - 1)
        loss = functional.cross_entropy(network(batch.frames), batch.labels, label_smoothing=0.2)
        losses.append(loss.item())
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        rate = LR * step / 3
        if step >= 3:  # a quarter of 12 steps
            rate = LR * 0.5 * (1 + math.cos(math.pi * (step - 3) / 9))
        for name, value in parameters.items():
            power = 0
            if "patch_embedding" in name:
                power = 3
            elif "blocks." in name:
                power = 2 - int(name.split("blocks.")[1][0])
            first, second = moments[name]
            gradient = gradients[name] * min(1.0, CLIP / (norm + 1e-6))
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient.square())
            update = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            if name.endswith("weight") and "norm" not in name:
                update = update + DECAY * value.detach()
            with torch.no_grad():
                value -= rate * LAYERS**power * update
        for name, value in parameters.items():
            share = min(EMA, (1 + step) / (10 + step))
            average[name] = share * average[name] + (1 - share) * value.detach()
    for number, epoch in enumerate(epochs):
        assert epoch.loss == pytest.approx(
            sum(losses[STEPS * number : STEPS * (number + 1)]) / STEPS, rel=1e-4
        )
    for name, value in trained(tuner.classifier).items():
        torch.testing.assert_close(value, parameters[name], rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(tuner.average.values[name], average[name], rtol=1e-3, atol=2e-5)
    assert (
        max(float((value.detach() - average[name]).abs().max()) for name, value in parameters.items()) > 1e-4
    )


def test_without_an_average_it_is_the_weights(small: None) -> None:
    tuner = tuner_of(ema=0.0)
    clips: Any = Noise()
    tuner.train(clips, 0, lambda step, loss: None)
    for name, value in trained(tuner.classifier).items():
        assert torch.equal(tuner.average.values[name], value)


def test_an_average_forgets_its_first_weights(small: None) -> None:
    """With a decay near 1, after few steps most of it is of later weights."""
    tuner = tuner_of(ema=0.9999)
    average = Average(tuner.classifier, 0.9999)
    with torch.no_grad():
        for value in trained(tuner.classifier).values():
            value.fill_(1.0)
        for value in average.values.values():
            value.fill_(0.0)
    for step in range(1, 101):
        average.update(step)
    left = math.prod((1 + step) / (10 + step) for step in range(1, 101))
    assert left < 0.001
    for value in average.values.values():
        torch.testing.assert_close(value, torch.full_like(value, 1 - left))


def test_drop_path_and_augmentation_are_drawn_from_the_seed(small: None) -> None:
    clips: Any = Noise()

    def weights(**options: Any) -> torch.Tensor:
        options = {"drop_path": 0.5, "mixup": 0.8, "cutmix": 1.0, "randaugment_ops": 2} | options
        tuner = tuner_of(**options)
        torch.manual_seed(len(options))  # draws do not depend on it
        tuner.train(clips, 1, lambda step, loss: None)
        return torch.cat([value.detach().flatten() for value in trained(tuner.classifier).values()])

    assert torch.equal(weights(), weights(lr=LR))
    assert not torch.equal(weights(), weights(drop_path=0.0))
    assert not torch.equal(weights(), weights(randaugment_ops=0))
