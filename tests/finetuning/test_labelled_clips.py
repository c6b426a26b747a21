"""Clips with labels: every row once an epoch, cropped as in pretraining, and substitutes with labels of their
own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_loader import ClipLoader, ClipLoaderError
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.crop import RandomCrop
from surgrec.loaders.failure_watch import FailureWatch
from surgrec.loaders.packet_index import PacketIndex

from surgrec.evaluation.clip_cut import ClipCut
from surgrec.evaluation.manifest import Row, SplitManifest
from surgrec.finetuning.labelled_clips import ATTEMPTS, Clips, TrainBatch, TrainClips, clips_in_order

DATA = DataConfig(frames=8, stride=4, size=32)
COUNT = 6
"""Rows, each of a class of its own."""


@contextmanager
def train_clips(digits: Any, batch: int, seed: int = 0) -> Iterator[TrainClips]:
    rows = [replace(row, label=number) for number, row in enumerate(digits.rows[:COUNT])]
    manifest = SplitManifest("digits", tuple("abcdef"), tuple(rows))
    clips = Clips(manifest, digits.fragile, ClipCut(DATA), Path("unused.h5"), 1)
    crop = RandomCrop(seed, (0.3, 0.9), (0.75, 1.33), True)
    with ClipStream(clips.index, DataConfig(size=32), "cpu", 1) as stream:
        yield TrainClips(clips, np.arange(COUNT), batch, crop, stream, FailureWatch(1.0, None))


def epochs(clips: TrainClips, count: int) -> list[list[TrainBatch]]:
    return [list(clips.epoch(epoch)) for epoch in range(count)]


def test_every_row_comes_once_an_epoch_in_another_order(indexed: Any) -> None:
    with train_clips(indexed, 2) as clips:
        one, two, three = epochs(clips, 3)
    orders = [[int(label) for batch in each for label in batch.labels] for each in (one, two, three)]
    assert [sorted(order) for order in orders] == [list(range(COUNT))] * 3
    assert len({tuple(order) for order in orders}) > 1
    assert [sample for each in (one, two, three) for batch in each for sample in batch.samples] == list(
        range(18)
    )
    assert one[0].frames.shape == (2, 8, 32, 32, 3)
    with train_clips(indexed, 2) as clips:
        again = list(clips.epoch(1))  # without the epoch before
    for batch, other in zip(two, again, strict=True):
        assert torch.equal(batch.frames, other.frames)
        assert torch.equal(batch.labels, other.labels)
    with train_clips(indexed, 2, seed=1) as clips:
        assert any(
            not torch.equal(batch.frames, other.frames)
            for batch, other in zip(one, clips.epoch(0), strict=True)
        )
    with train_clips(indexed, 4) as clips:  # of six rows two are left out
        assert [len(batch.labels) for batch in clips.epoch(0)] == [4]


def test_contents_are_the_same_wherever_videos_lie(indexed: Any) -> None:
    def contents(rows: tuple[Row, ...], folder: Path) -> str:
        manifest = SplitManifest("digits", ("left", "up"), rows)
        return Clips(manifest, folder, ClipCut(DATA), Path("unused.h5"), 1).contents

    rows = indexed.rows[:COUNT]
    assert contents(rows, indexed.folder) == contents(rows, indexed.fragile)
    assert contents(rows, indexed.folder) != contents(rows[1:], indexed.folder)


def test_crops_are_those_of_pretraining(indexed: Any) -> None:
    """The same requests, through the loader that pretrains and through the stream."""
    index = PacketIndex.open(indexed.index)
    data = replace(DATA, crop_scale=(0.2, 0.6), flip=True, threads=1)
    with ClipLoader(index, data, 4, 8) as loader:
        batch = next(loader)
    crop = RandomCrop(4, data.crop_scale, data.crop_aspect, True)
    with ClipStream(index, data, "cpu", 1) as stream:
        (cropped,) = stream.read([batch.requests], crop)
        (centred,) = stream.read([batch.requests])
    assert torch.equal(cropped.frames, batch.frames)
    assert not torch.equal(centred.frames, batch.frames)


def test_a_substitute_brings_its_own_label(indexed: Any) -> None:
    with indexed.damaged([indexed.rows[2].path]):
        with train_clips(indexed, COUNT) as clips:
            found = epochs(clips, 3)
        with train_clips(indexed, COUNT) as clips:
            (again,) = clips.epoch(2)
    with train_clips(indexed, COUNT) as clips:
        whole = epochs(clips, 3)
    stood_in = []
    for (batch,), (sound,) in zip(found, whole, strict=True):
        assert batch.substitutes == 1
        assert sound.substitutes == 0
        row = sound.labels.tolist().index(2)
        others = [k for k in range(COUNT) if k != row]
        assert torch.equal(batch.labels[others], sound.labels[others])
        assert torch.equal(batch.frames[others], sound.frames[others])
        stood_in.append(int(batch.labels[row]))
        # The crop is that of the sample, the pictures are those of the other row.
        assert stood_in[-1] != 2
        assert not torch.equal(batch.frames[row], sound.frames[row])
    assert torch.equal(again.frames, found[2][0].frames)
    assert len(set(stood_in)) > 1


def test_nothing_can_be_decoded(indexed: Any) -> None:
    with (
        indexed.damaged([row.path for row in indexed.rows[:COUNT]], 0),
        train_clips(indexed, 2) as clips,
        pytest.raises(ClipLoaderError, match=f"its {ATTEMPTS} substitutes could not be decoded"),
    ):
        list(clips.epoch(0))


def test_a_row_of_which_a_clip_fails_is_missing(indexed: Any) -> None:
    with indexed.damaged([indexed.rows[1].path]), train_clips(indexed, 2) as clips:
        parts = list(clips_in_order(clips._clips, np.arange(4), 2, ("centre",), 4, clips._stream))
    assert [part.rows for part in parts] == [[0], [2, 3]]
    assert [len(part.frames) for part in parts] == [2, 4]
    assert list(parts[0].missing) == [1]
    assert "another version" in parts[0].missing[1]
