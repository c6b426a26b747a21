"""Clips of a split with their labels: train in random order, cropped at random; val and test as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgrec.configs.extract import View
from surgrec.curation.records import key_of
from surgrec.evaluation.clip_cut import ClipCut
from surgrec.evaluation.extraction import index_of
from surgrec.evaluation.extraction_plan import span_of
from surgrec.evaluation.manifest import SplitManifest, resolve
from surgrec.evaluation.parts import Rows
from surgrec.kernels.counter_rng import mix64, stream_key, to_unit
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.crop import RandomCrop
from surgrec.loaders.failure_watch import ClipLoaderError, FailureWatch
from surgrec.loaders.packet_index import PacketIndex

ATTEMPTS: Final = 16
"""Substitutes that are tried for one clip, as in pretraining."""


class Clips:
    """Where the clips of a manifest lie. missing: number of a row -> why it cannot be read, as far as the
    index tells. contents: a digest of the videos of all rows, wherever they lie."""

    def __init__(
        self, manifest: SplitManifest, data_root: Path, cut: ClipCut, index_file: Path, threads: int
    ) -> None:
        """cut: which frames are a clip. index_file: where the packet index of the videos is written, or
        brought up to date.

        Raises ManifestError for a path out of the root, BuildError, OSError.
        """
        self.manifest = manifest
        self.cut = cut
        paths = [str(resolve(data_root, row)) for row in manifest.rows]
        self.index: PacketIndex = index_of(manifest, paths, index_file, threads)
        numbers = {path: number for number, path in enumerate(self.index.videos.path)}
        self.contents = key_of([self.index.videos.xxh3[numbers[path]] for path in paths])
        self.missing: dict[int, str] = {}
        self._spans: dict[int, tuple[int, int, int]] = {}
        for number, (row, path) in enumerate(zip(manifest.rows, paths, strict=True)):
            video = numbers[path]
            span = span_of(self.index, video, row)
            if isinstance(span, str):
                self.missing[number] = span
            else:
                self._spans[number] = video, *span

    @property
    def present(self) -> NDArray[np.bool_]:
        """bool [rows of the manifest]: whether a row is none of the missing."""
        return np.array([number not in self.missing for number in range(len(self.manifest.rows))])

    def request(self, sample: int, row: int, position: float) -> ClipRequest:
        """The clip of a row that starts at `position` in [0, 1) of where it may. sample: number of the
        request."""
        video, start, end = self._spans[row]
        return ClipRequest(sample, video, self.cut.at(self.index, video, start, end, position))

    def chosen(self, sample: int, row: int, clip: int, clips: int) -> ClipRequest:
        """Clip `clip` of `clips` of a row, as extraction chooses them."""
        video, start, end = self._spans[row]
        return ClipRequest(sample, video, self.cut.choose(self.index, video, start, end, clip, clips))


@dataclass(frozen=True)
class TrainBatch:
    """frames: uint8 [B, T, S, S, 3], labels: int64 [B], on the device. samples: number of each clip, of all
    that the run draws. substitutes: rows of the batch in which another clip stands for one that cannot be
    read."""

    frames: Tensor
    labels: Tensor
    samples: list[int]
    substitutes: int


class TrainClips:
    """The clips of train, epoch by epoch. Which clip sample i is, and how it is cropped, follows from the
    seed and i alone: streams "finetune/order/EPOCH", "finetune/position", "finetune/substitute", and those of
    RandomCrop."""

    def __init__(
        self,
        clips: Clips,
        rows: Rows,
        batch: int,
        crop: RandomCrop,
        stream: ClipStream,
        watch: FailureWatch,
    ) -> None:
        """rows: numbers of the rows of train, at least a batch of them. crop: its seed is that of all
        streams."""
        self._clips = clips
        self._rows = rows
        self._batch = batch
        self._crop = crop
        self._seed = seed = crop.seed
        self._stream = stream
        self._watch = watch
        self._position = np.uint64(stream_key(seed, "finetune/position"))
        self._other = np.uint64(stream_key(seed, "finetune/substitute"))
        self.steps = len(rows) // batch
        """Of an epoch."""

    def epoch(self, epoch: int) -> Iterator[TrainBatch]:
        """Its batches: every row once, but those of a last batch that is not full.

        Raises ClipLoaderError where too many clips cannot be decoded.
        """
        order = np.random.Generator(np.random.Philox(stream_key(self._seed, f"finetune/order/{epoch}")))
        rows = order.permutation(self._rows)[: self.steps * self._batch].reshape(self.steps, self._batch)
        first = epoch * self.steps * self._batch
        numbers = [
            range(first + step * self._batch, first + (step + 1) * self._batch) for step in range(self.steps)
        ]
        wanted = [
            dict(zip(samples, own.tolist(), strict=True)) for samples, own in zip(numbers, rows, strict=True)
        ]
        groups = ([self._request(sample, row) for sample, row in each.items()] for each in wanted)
        for shown, group in zip(wanted, self._stream.read(groups, self._crop), strict=True):
            frames = {
                request.sample: clip for request, clip in zip(group.requests, group.frames, strict=True)
            }
            for _ in group.requests:
                self._watch.success()
            for failure in group.failures:
                self._watch.failure(failure)
                sample = failure.request.sample
                frames[sample], shown[sample] = self._substitute(sample)
            labels = [self._clips.manifest.rows[row].label for row in shown.values()]
            yield TrainBatch(
                torch.stack([frames[sample] for sample in shown]),
                torch.tensor(labels, device=self._stream.device),
                list(shown),
                len(group.failures),
            )

    def _request(self, sample: int, row: int) -> ClipRequest:
        position = float(to_unit(np.uint64(mix64(self._position, np.uint64(sample)))))
        return self._clips.request(sample, row, position)

    def _substitute(self, sample: int) -> tuple[Tensor, int]:
        """The clip of another row in the place of one that cannot be read: always the same one."""
        for attempt in range(ATTEMPTS):
            drawn = int(mix64(self._other, np.uint64(sample * ATTEMPTS + attempt)))
            row = int(self._rows[drawn % len(self._rows)])
            group = next(self._stream.read([[self._request(sample, row)]], self._crop))
            if group.requests:
                self._watch.success()
                return group.frames[0], row
            self._watch.failure(group.failures[0])
        raise ClipLoaderError(
            f"sample {sample} and its {ATTEMPTS} substitutes could not be decoded. {self._watch.explain()}"
        )


@dataclass(frozen=True)
class RowClips:
    """What came of a few rows. rows: numbers of the k that could be read. frames: uint8 [k * samples, T, S,
    S, 3], row by row, of each its clips, of each clip its views. missing: number of a row -> why it was not
    read."""

    rows: list[int]
    frames: Tensor
    missing: dict[int, str]


def clips_in_order(
    clips: Clips, rows: Rows, count: int, views: Sequence[View], batch: int, stream: ClipStream
) -> Iterator[RowClips]:
    """`count` clips of each row, spread evenly over its time, in each of the views, about `batch` at a time.
    A row of which a clip cannot be read is missing, and never replaced."""
    size = max(1, batch // (count * len(views)))
    chunks = [rows[first : first + size].tolist() for first in range(0, len(rows), size)]
    groups = (
        [clips.chosen(row * count + k, row, k, count) for row in chunk for k in range(count)]
        for chunk in chunks
    )
    for chunk, group in zip(chunks, stream.read(groups), strict=True):
        missing: dict[int, str] = {}
        for failure in group.failures:
            missing.setdefault(failure.request.sample // count, failure.reason)
        kept = [k for k, request in enumerate(group.requests) if request.sample // count not in missing]
        frames = group.frames[kept]
        if kept:
            shown = [frames.flip(3) if view == "mirror" else frames for view in views]
            frames = torch.stack(shown, 1).flatten(0, 1)
        yield RowClips([row for row in chunk if row not in missing], frames, missing)
