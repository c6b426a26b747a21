"""Training a classifier for an epoch, and asking it about rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from surgrec.configs.extract import View
from surgrec.configs.finetune import FinetuneConfig, of_mode
from surgrec.curation.embedders import half_precision
from surgrec.evaluation.outcome import Scores
from surgrec.evaluation.parts import Rows
from surgrec.finetuning.augment import Augment
from surgrec.finetuning.classifier import Classifier, trained, trained_groups
from surgrec.finetuning.labelled_clips import Clips, TrainClips, clips_in_order
from surgrec.finetuning.options import optim_of
from surgrec.loaders.clip_stream import ClipStream
from surgrec.training.errors import UserError
from surgrec.training.optim import clip_gradients, set_hyperparameters
from surgrec.training.step import hyperparameters, seed_torch


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch of the cross entropy with targets [B, C] that sum to 1; logits float32 [B, C]."""
    return functional.cross_entropy(logits, targets)


class Average:
    """Exponential moving average of the trained weights: a = d a + (1 - d) w, with d = min(decay, (1 + n) /
    (10 + n)) after update n, as TensorFlow's ExponentialMovingAverage, so that first weights are soon
    forgotten. With decay 0 it is the weights themselves."""

    def __init__(self, classifier: Classifier, decay: float) -> None:
        self._weights = trained(classifier)
        self._decay = decay
        self.values = {name: value.detach().clone() for name, value in self._weights.items()}
        """By the names of the parameters."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After update number `step`, from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        weights = [value.detach() for value in self._weights.values()]
        get_ema_multi_avg_fn(decay)(list(self.values.values()), weights, None)


@dataclass(frozen=True)
class Epoch:
    """loss: mean over the steps, of mixed and smoothed targets. substitutes: clips that stood for others."""

    loss: float
    substitutes: int


class Tuner:
    """A classifier, its optimizer and its average, on a device."""

    def __init__(self, config: FinetuneConfig, classifier: Classifier, classes: int, batch: int) -> None:
        own = of_mode(config)
        self.classifier = classifier
        self.average = Average(classifier, config.ema)
        groups = trained_groups(classifier, own.get("layer_decay", 1.0))
        self._optim = optim_of(config)
        betas, eps = self._optim.betas, self._optim.eps
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)
        self._config = config
        self._batch = batch
        self._augment = Augment(config, classes)

    def train(self, clips: TrainClips, epoch: int, progress: Callable[[int, float], None]) -> Epoch:
        """One epoch, counted from 0. progress(step, loss): of the whole run, now and then.

        Raises UserError where the loss is not finite, ClipLoaderError.
        """
        config, classifier = self._config, self.classifier
        parameters = list(trained(classifier).values())
        classifier.train()
        step, total = epoch * clips.steps, config.epochs * clips.steps
        losses: list[Tensor] = []
        substitutes = 0
        for batch in clips.epoch(epoch):
            step += 1
            hyper = hyperparameters(self._optim, step, total, self._batch)
            set_hyperparameters(self.optimizer, hyper.lr, hyper.weight_decay)
            frames = self._augment.clips(batch.frames, batch.samples)
            frames, targets = self._augment.mix(frames, batch.labels, step)
            seed_torch(config.seed, step, 0, 0)
            self.optimizer.zero_grad(set_to_none=True)
            with half_precision(frames.device):
                logits = classifier(frames)
            loss = soft_cross_entropy(logits, targets)
            loss.backward()
            clip_gradients(parameters, self._optim.clip)
            self.optimizer.step()
            self.average.update(step)
            losses.append(loss.detach())
            substitutes += batch.substitutes
            # A GPU is not waited for in every step.
            if len(losses) % 10 == 0 or len(losses) == clips.steps:
                mean = float(torch.stack(losses).mean())
                if not math.isfinite(mean):
                    raise UserError(
                        f"the loss is not finite at step {step}: the training diverges. Give a smaller --lr"
                        f" than {self._optim.lr:g} and another --out"
                    )
                progress(step, mean)
        return Epoch(float(torch.stack(losses).mean()), substitutes)


@dataclass(frozen=True)
class Asked:
    """rows: int64 [n], numbers of the rows that were read. scores: float32 [n, C], probabilities. missing:
    number of a row -> why it was not read."""

    rows: Rows
    scores: Scores
    missing: dict[int, str]


@torch.no_grad()
def ask(
    classifier: Classifier,
    weights: dict[str, Tensor],
    clips: Clips,
    rows: Rows,
    stream: ClipStream,
    batch: int,
    count: int = 1,
    views: Sequence[View] = ("centre",),
) -> Asked:
    """What a classifier, with `weights` in the place of those parameters, says of rows: the mean of the
    probabilities over `count` clips of each in each of the views."""
    classifier.eval()
    read: list[int] = []
    missing: dict[int, str] = {}
    shares = []
    for part in clips_in_order(clips, rows, count, views, batch, stream):
        missing |= part.missing
        if not part.rows:
            continue
        read += part.rows
        found = []
        for frames in part.frames.split(batch):
            with half_precision(frames.device):
                found.append(functional_call(classifier, weights, (frames,)).softmax(1))
        shares.append(torch.cat(found).unflatten(0, (len(part.rows), -1)).mean(1))
    classes = len(clips.manifest.classes)
    scores = torch.cat(shares).cpu().numpy() if shares else np.empty((0, classes), np.float32)
    return Asked(np.array(read, np.int64), scores, missing)
