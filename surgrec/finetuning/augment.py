"""Augmentation of labelled clips: RandAugment, mixup and cutmix, each by a stream of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor
from torchvision.transforms import v2

from surgrec.configs.finetune import FinetuneConfig
from surgrec.kernels.counter_rng import stream_key

MAGNITUDES = 31
"""Steps of RandAugment's strength, from 0."""


class Augment:
    """Draws for samples and steps. It has no state: the same sample is augmented in the same way again."""

    def __init__(self, config: FinetuneConfig, classes: int) -> None:
        self._seed = config.seed
        self._classes = classes
        self._smoothing = config.label_smoothing
        self._operations = None
        if config.randaugment_ops:
            self._operations = v2.RandAugment(
                config.randaugment_ops, config.randaugment_magnitude, MAGNITUDES
            )
        self._mixup = None
        if config.mixup or config.cutmix:
            self._mixup = Mixup(
                config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=classes
            )

    def clips(self, frames: Tensor, samples: Sequence[int]) -> Tensor:
        """uint8 [B, T, S, S, 3] of the same: RandAugment (Cubuk et al. 2019, arXiv 1909.13719) by
        torchvision, the same operations and strengths for all frames of a clip. Streams
        "finetune/randaugment/SAMPLE"."""
        if self._operations is None:
            return frames
        changed = torch.empty_like(frames)
        for row, sample in enumerate(samples):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream_key(self._seed, f"finetune/randaugment/{sample}") >> 1)
                pictures = self._operations(frames[row].permute(0, 3, 1, 2))
            changed[row] = pictures.permute(0, 2, 3, 1)
        return changed

    def mix(self, frames: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Frames and targets of a batch: uint8 [B, T, S, S, 3] and float32 [B, C], of labels int64 [B].

        Clip i is mixed with clip B - 1 - i, all pairs of a batch alike (timm's Mixup). Mixed values are
        rounded to whole levels. Streams "finetune/mix/STEP". B is even, where there is anything to mix.
        """
        if self._mixup is None:
            return frames, mixup_target(labels, self._classes, 1.0, self._smoothing)
        pictures = frames.permute(0, 1, 4, 2, 3).flatten(1, 2).float()
        with _numpy_seeded(stream_key(self._seed, f"finetune/mix/{step}")):
            mixed, targets = self._mixup(pictures, labels)
        levels = mixed.round_().to(torch.uint8).unflatten(1, (-1, 3))
        return levels.permute(0, 1, 3, 4, 2).contiguous(), targets


@contextmanager
def _numpy_seeded(key: int) -> Iterator[None]:
    """NumPy's global generator, which timm draws from, seeded; put back at the end."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed([key & 0xFFFFFFFF, key >> 32])  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
