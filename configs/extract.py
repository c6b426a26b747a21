"""How frozen features are extracted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

View = Literal["centre", "mirror"]


@dataclass(frozen=True)
class ExtractTask:
    """Features of what, and where they go."""

    manifest: Path
    """The split, as `python -m surgrec.benchmark import` writes it."""
    data_root: Path
    """The folder that the manifest's paths are relative to."""
    model: str
    """ckpt:PATH: a run folder of surgrec.pretrain, or one of its checkpoints. file:PATH, hf:FOLDER: weights
    of another project, with options behind a #, as in file:vitl16.pth.tar#target_encoder,stride=4; see
    docs/models.md. timm:MODEL: an image model of timm with its pretrained weights; timm:MODEL@FILE with those
    of a file (.safetensors, .pth). random:PRESET, random:timm:MODEL, and of a run folder random:RUN: first
    weights, untrained, to compare with."""
    out: Path
    """The feature file. What is computed is kept beside it, in OUT.work/, until it is whole."""
    tokens: bool = False
    """Store token features, too, which an attentive probe reads: N times the room of the pooled ones."""


@dataclass(frozen=True)
class ExtractOptions:
    """How each row is looked at."""

    clips: int = 1
    """Clips of a row, spread evenly over its time."""
    views: tuple[View, ...] = ("centre",)
    """Views of each clip: the largest square at the centre, and that one mirrored left to right."""
    pictures: int | None = None
    """Pictures that an image model sees of a clip, spread evenly over it; 8 by default. Video models have the
    frames of their pretraining."""
    batch: int = 16
    """Clips that the network sees at a time."""
    workers: int = 0
    """Threads, on a GPU processes, that decode; 0 takes the cores of this machine."""
    seed: int = 0
    """Of random weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network computes, and frames are wanted; on a GPU in bfloat16. auto takes a GPU where there
    is one."""


@dataclass(frozen=True)
class ExtractConfig(ExtractOptions, ExtractTask):
    """Extract the features that a frozen network gives of each row of a split, once, into an HDF5 file.

    A clip that cannot be read is never replaced: its row is listed as missing, with the reason. A run that
    was stopped goes on where it was. Processes that torchrun starts share the work.
    """
