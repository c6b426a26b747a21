"""Options of `python -m surgrec.demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoConfig:
    """Gather a small corpus of real and drawn video, index and curate it, and pretrain a small MAE on it.

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
