"""How a trained head is slid over whole videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class PredictConfig:
    """Slide a trained head over whole operations: which class is seen when, as CSV, JSON and a picture.

    What cannot be read is shown as a gap, with the reason. A run that was stopped goes on where it was; a
    video that is done is not computed again.
    """

    videos: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Videos. One that cannot be used is reported, and the others go on."""
    head: Path
    """The head that `python -m surgrec.probe --save` wrote, or a network of `python -m surgrec.finetune`."""
    model: str | None = None
    """The network that the head was trained on, as in surgrec.extract (ckpt:PATH, timm:MODEL, ...): for where
    it lies now. By default what it was called then. Another network is refused."""
    out: Path = Path("predictions")
    """Folder for NAME.csv, NAME.json and NAME.png of each video. What is computed is kept in NAME.work/ until
    all of it is there."""
    every: float = 1.0
    """Seconds from one window to the next."""
    window: float | None = None
    """Seconds of a window; by default what a clip of the network lasts. Image models need it. The clip of a
    longer window is chosen as surgrec.extract does it."""
    smooth: float = 0.0
    """Seconds over which probabilities are smoothed; 0 for none."""
    smoothing: Literal["median", "mean"] = "median"
    """How they are smoothed."""
    verify: bool = False
    """Let FFmpeg decode each video once before, to find damage that decoding clips does not notice."""
    batch: int = 16
    """Windows that the network sees at a time."""
    workers: int = 0
    """Threads, on a GPU processes, that decode; 0 takes the cores of this machine."""
    memory_mib: int = 2048
    """Memory for pictures that are being decoded, in MiB; of the GPU where there is one."""
    seed: int = 0
    """Of random weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network computes; on a GPU in bfloat16. auto takes a GPU where there is one."""
