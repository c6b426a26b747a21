"""Handwriting that moves to the left or upwards, a small network, and runs that share one index."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from surgrec.configs.data import DataConfig
from surgrec.configs.finetune import FinetuneConfig
from surgrec.configs.model import VIT_SHAPES, MaeConfig, ViTShape
from surgrec.configs.pretrain import MaePretrain, to_document
from surgrec.loaders.packet_index import PacketIndex

from surgrec.demo_data.digit_set import Clip, plan_clips
from surgrec.demo_data.handwriting import sklearn_digits
from surgrec.demo_data.moving_digit import write_clip
from surgrec.evaluation.manifest import Row, SplitManifest, write_manifest
from surgrec.finetuning import labelled_clips
from surgrec.models.build import build_objective
from surgrec.training.checkpoint import Checkpoint, save_checkpoint

MOTIONS = ("left", "up")
SMALL = ViTShape(2, 64, 2)
FRAGILE = 6
"""Clips of train that lie in `fragile`, too."""
GONE = "gone.mp4"
MAE = MaePretrain(
    data=DataConfig(frames=8, stride=4, size=32),
    model=MaeConfig(size="tiny", patch=8, decoder_depth=1, decoder_width=48, decoder_heads=3),
)
PLAIN: dict[str, Any] = {
    "batch": 8,
    "lr": 2e-3,
    "mixup": 0.0,
    "cutmix": 0.0,
    "randaugment_ops": 0,
    "label_smoothing": 0.0,
    "crop_scale": (1.0, 1.0),
    "crop_aspect": (1.0, 1.0),
    "ema": 0.9,
    "resamples": 100,
    "device": "cpu",
    "workers": 1,
}
"""Options under which a small network learns in seconds."""


@dataclass(frozen=True)
class Digits:
    """folder: of the videos, with `gone.mp4`, which is not there. rows: of the split, 40, 20 and 20.
    checkpoint: of a network with first weights. index: of the videos, and of `fragile`, a folder of copies of
    some."""

    folder: Path
    rows: tuple[Row, ...]
    checkpoint: Path
    index: Path
    fragile: Path

    @contextmanager
    def damaged(self, paths: Sequence[str], left: int = 1000) -> Iterator[None]:
        """Files of `fragile` cut to `left` bytes since they were indexed; whole again, as old as before,
        later."""
        files = [self.fragile / path for path in paths]
        kept = [(file.read_bytes(), file.stat()) for file in files]
        try:
            for file, (content, _) in zip(files, kept, strict=True):
                file.write_bytes(content[:left])
            yield
        finally:
            for file, (content, status) in zip(files, kept, strict=True):
                file.write_bytes(content)
                os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    def config(self, folder: Path, rows: Sequence[Row] | None = None, **options: Any) -> FinetuneConfig:
        """Of a run in folder/run. rows: of its split, by default all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder / "split.json", SplitManifest("digits", MOTIONS, tuple(rows or self.rows)))
        given = FinetuneConfig(folder / "split.json", self.folder, f"ckpt:{self.checkpoint}")
        out = {"out": folder / "run", "results": folder / "results.jsonl"}
        return replace(given, **(PLAIN | out | options))


@pytest.fixture(scope="session")
def digits(
    tmp_path_factory: pytest.TempPathFactory, build_index_of: Callable[[list[Path], Path], PacketIndex]
) -> Digits:
    """A Digits."""
    folder = tmp_path_factory.mktemp("finetune")
    root, fragile = folder / "set", folder / "fragile"
    material = sklearn_digits()
    every = plan_clips(material, {"train": 2, "val": 1, "test": 1}, 0)
    clips = [clip for clip in every if clip.motion in MOTIONS]
    rows = []
    for clip in clips:
        (root / clip.path).parent.mkdir(parents=True, exist_ok=True)
        write_clip(root / clip.path, material.images[clip.sample], clip.motion, clip.key)
        rows.append(row_of(clip))
    copies = [row.path for row in rows[:FRAGILE]] + [row.path for row in rows if row.split != "train"]
    for path in copies:
        (fragile / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, fragile / path)
    paths = [root / row.path for row in rows] + [fragile / path for path in copies] + [root / GONE]
    build_index_of(paths, folder / "videos.h5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VIT_SHAPES, "tiny", SMALL)
        objective = build_objective(MAE.model, 7, MAE.data.frames, MAE.data.size)
    values = {"config": to_document(MAE), "index_digest": ""}
    save_checkpoint(folder / "pretrained" / "checkpoints", Checkpoint(3, objective.state_dict(), {}, values))
    return Digits(root, tuple(rows), folder / "pretrained", folder / "videos.h5", fragile)


def row_of(clip: Clip) -> Row:
    """The row of a clip, labelled by its motion."""
    return Row(clip.path, MOTIONS.index(clip.motion), clip.split, clip.group)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of the size `tiny` are smaller than that."""
    torch.set_num_threads(1)
    monkeypatch.setitem(VIT_SHAPES, "tiny", SMALL)


@pytest.fixture
def indexed(digits: Digits, small: None, monkeypatch: pytest.MonkeyPatch) -> Digits:
    """Digits, whose videos are not indexed anew for each run."""
    monkeypatch.setattr(labelled_clips, "index_of", lambda *given: PacketIndex.open(digits.index))
    return digits
