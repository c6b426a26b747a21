"""Batches as others load them: decord in the workers of a torch DataLoader, crop and resize on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

if TYPE_CHECKING:
    from surgrec.configs.data import DataConfig
    from torch import Tensor

    from surgrec.training.step import Batch


class DecordClips(IterableDataset[Any]):
    """Endless random clips of some videos, a video in proportion to its length: uint8 [T, S, S, 3]."""

    def __init__(self, paths: list[Path], data: DataConfig, seed: int) -> None:
        self.paths, self.data, self.seed = [str(path) for path in paths], data, seed

    def __iter__(self) -> Iterator[Tensor]:
        import decord
        import numpy as np

        worker = get_worker_info()
        generator = np.random.default_rng((self.seed, 0 if worker is None else worker.id))
        lengths = np.array([len(decord.VideoReader(path, num_threads=1)) for path in self.paths], float)
        span = (self.data.frames - 1) * self.data.stride + 1
        while True:
            video = int(generator.choice(len(lengths), p=lengths / lengths.sum()))
            start = int(generator.integers(0, int(lengths[video]) - span + 1))
            reader = decord.VideoReader(self.paths[video], num_threads=1)
            frames = reader.get_batch(range(start, start + span, self.data.stride)).asnumpy()
            yield self.crop(torch.from_numpy(frames), generator)

    def crop(self, frames: Tensor, generator: Any) -> Tensor:
        """A random-resized crop of uint8 [T, H, W, 3]."""
        from torchvision.transforms.v2.functional import resized_crop

        _, height, width, _ = frames.shape
        area = generator.uniform(*self.data.crop_scale) * height * width
        aspect = generator.uniform(*self.data.crop_aspect)
        h = min(height, max(1, round((area / aspect) ** 0.5)))
        w = min(width, max(1, round((area * aspect) ** 0.5)))
        top, left = int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1))
        size = [self.data.size, self.data.size]
        cropped = resized_crop(frames.permute(0, 3, 1, 2), top, left, h, w, size, antialias=True)
        return cropped.permute(0, 2, 3, 1)


class DecordBatches:
    """Batches on a device from `workers` processes. Close it."""

    def __init__(
        self, paths: list[Path], data: DataConfig, batch: int, workers: int, device: torch.device
    ) -> None:
        loader: Any = DataLoader(
            DecordClips(paths, data, 0),
            batch_size=batch,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            multiprocessing_context="spawn",
        )
        self._batches: Any = iter(loader)
        self._device, self._next = device, 0

    def __next__(self) -> Batch:
        from surgrec.loaders.clip_loader import Batch

        frames = next(self._batches).to(self._device, non_blocking=True)
        first = self._next
        self._next += len(frames)
        return Batch(frames, torch.arange(first, self._next), [], 0, 0, 0.0)

    def close(self) -> None:
        """Ends the workers: they live as long as the iterator."""
        self._batches = iter(())
