"""Options of `python -m surgrec.demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoConfig:
    """Gather a small corpus of real and drawn video, index and curate it, and pretrain a small MAE on it.

    `python -m surgrec.demo dataset --out DIR` makes a small labelled benchmark instead (dataset --help).
    A second run takes the videos that are there and starts a new training run beside the old ones.
    """

    out: Path = Path("demo")
    """Folder for videos, index, plan and its report, runs, and the picture of the reconstruction."""
    steps: int | None = None
    """Training steps; None takes the preset's, which are about two minutes on two CPU cores."""
    seed: int = 0
    """Seed of the drawn videos and of the training run."""
    workers: int = 0
    """Processes that draw and encode, and then curate, side by side; 0 takes the cores of this machine."""
    table: bool = False
    """In the end make the set of moving digits, and a table of what the pretrained model, the same one
    untrained, and an untrained image model can do on it: OUT/table.html. It takes some 200 seconds of CPU
    time more."""


@dataclass(frozen=True)
class DigitSetConfig:
    """Make a small labelled video benchmark with train, val and test: real handwritten digits that move.

    DIR/motion.json (8 ways of moving), digit.json (10 digits) and both.json are manifests of the same videos.
    A command that was stopped goes on with the videos that are missing.
    """

    out: Path
    """Folder for videos and manifests."""
    train: int = 4
    """Samples of each digit for each of four pairs of motions; every sample gives two clips: 320 in all."""
    val: int = 1
    """The same for val: 80 clips."""
    test: int = 2
    """The same for test: 160 clips."""
    digits: Path | None = None
    """OpenCV's picture digits.png, 5,000 samples of 20 x 20 (Debian: opencv-doc, in
    /usr/share/doc/opencv-doc/examples/data); by default the 1,797 of 8 x 8 inside scikit-learn."""
    seed: int = 0
    """Of every random draw."""
    workers: int = 0
    """Processes that draw and encode; 0 takes the cores of this machine."""
