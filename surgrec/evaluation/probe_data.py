"""Which rows of a feature file a probe trains and is tested on, and its batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from surgrec.evaluation.features import Column, FeatureFile
from surgrec.evaluation.manifest import Split, SplitManifest
from surgrec.evaluation.parts import Part, Rows, parts_among
from surgrec.kernels.counter_rng import stream_key

AHEAD: Final = 4
"""Batches that are read while the device computes."""
READ: Final = 1024
"""Rows of pooled features that are read at a time."""


def parts_of(features: FeatureFile, manifest: SplitManifest) -> dict[Split, Part]:
    """The three splits; errors as of parts_among."""
    return parts_among(features.present, manifest, str(features.path))


def few_shot(train: Part, shots: int, draw: int, seed: int) -> Part:
    """`shots` rows of each class of train; all of a class that has fewer. A stream of its own for each
    draw."""
    key = stream_key(seed, f"probe/few-shot/{shots}/{draw}")
    generator = np.random.Generator(np.random.Philox(key))
    chosen = []
    for label in np.unique(train.labels):
        own = np.flatnonzero(train.labels == label)
        chosen.append(generator.permutation(own)[:shots])
    at = np.sort(np.concatenate(chosen))
    return Part(train.rows[at], train.labels[at], train.groups[at], train.of, train.lacks)


def sample_order(samples: int, batch: int, steps: int, seed: int) -> Iterator[Rows]:
    """int64 [min(batch, samples)] for each step: all samples once, in random order, then anew."""
    batch = min(batch, samples)
    waiting = np.empty(0, np.int64)
    epoch = 0
    for _ in range(steps):
        while len(waiting) < batch:
            key = stream_key(seed, f"probe/order/{epoch}")
            generator = np.random.Generator(np.random.Philox(key))
            waiting = np.concatenate([waiting, generator.permutation(samples)])
            epoch += 1
        yield waiting[:batch]
        waiting = waiting[batch:]


@dataclass(frozen=True)
class Reader:
    """Reads features of one kind to a device. shift, scale: float32 [D], for standardised features (x -
    shift) * scale."""

    features: FeatureFile
    column: Column
    device: torch.device
    shift: Tensor | None = None
    scale: Tensor | None = None

    @property
    def width(self) -> int:
        """Of a feature. Raises FeatureError where the file has none of this kind."""
        if self.column == "pooled":
            return self.features.width
        if self.features.token_shape is None:
            self.features.tokens(np.empty(0, np.int64), np.empty(0, np.int64))
        assert self.features.token_shape is not None
        return self.features.token_shape[1]

    def read(self, rows: Rows, samples: Rows) -> Tensor:
        """float16 on the CPU, in pinned memory where the device is a GPU."""
        shape: tuple[int, ...] = (self.features.width,)
        take = self.features.pooled
        if self.column == "tokens":
            take, shape = self.features.tokens, self.features.token_shape or ()
        # torch gives pinned memory that is free again, and copies that are under way keep it.
        room = torch.empty((len(rows), *shape), dtype=torch.float16, pin_memory=self.device.type == "cuda")
        take(rows, samples, room.numpy())
        return room

    def load(self, found: Tensor) -> Tensor:
        """float32 on the device, standardised."""
        loaded = found.to(self.device, non_blocking=True).float()
        return loaded if self.shift is None or self.scale is None else (loaded - self.shift) * self.scale

    def batches(self, part: Part, batch: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of each step, on the device."""
        count = self.features.about.samples
        orders = sample_order(len(part.rows) * count, batch, steps, seed)
        waiting: deque[tuple[Future[Tensor], Tensor]] = deque()
        with ThreadPoolExecutor(AHEAD) as pool:
            try:
                for order in orders:
                    labels = torch.from_numpy(part.labels[order // count])
                    waiting.append((pool.submit(self.read, part.rows[order // count], order % count), labels))
                    if len(waiting) > AHEAD:
                        yield self._next(waiting)
                while waiting:
                    yield self._next(waiting)
            finally:
                for future, _ in waiting:
                    future.cancel()

    def _next(self, waiting: deque[tuple[Future[Tensor], Tensor]]) -> tuple[Tensor, Tensor]:
        future, labels = waiting.popleft()
        return self.load(future.result()), labels.to(self.device, non_blocking=True)

    def in_order(self, part: Part, most: int = READ) -> Iterator[tuple[Tensor, Tensor]]:
        """Features of all samples of `most` rows at a time, float32 [S, b, ...], and their labels [b]."""
        count = self.features.about.samples
        for first in range(0, len(part.rows), most):
            rows = part.rows[first : first + most]
            every = [self.load(self.read(rows, np.full(len(rows), s, np.int64))) for s in range(count)]
            yield torch.stack(every), torch.from_numpy(part.labels[first : first + most]).to(self.device)

    def standardised(self, part: Part) -> Reader:
        """A reader whose features have mean 0 and variance 1 over a part; those that are constant stay 0."""
        count = 0
        total = torch.zeros(self.width, dtype=torch.float64, device=self.device)
        squares = torch.zeros_like(total)
        for features, _ in self.in_order(part):
            flat = features.flatten(0, 1).double()
            count += len(flat)
            total += flat.sum(0)
            squares += flat.square().sum(0)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        # float16 has 11 bits: less than this is rounding.
        flat_line = deviation <= 1e-4 * mean.abs()
        scale = torch.where(flat_line, 0.0, 1 / deviation.clamp(min=1e-12))
        return Reader(self.features, self.column, self.device, mean.float(), scale.float())
