"""What bench/scaling.py asks of its ranks and what they answer: plain values, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from surgrec.configs.pretrain import BlockWay, Parallel

SYNTHETIC: Final = "synthetic"
PROXIES: Final = "proxy16"
SOURCES: Final = (SYNTHETIC, PROXIES)


@dataclass(frozen=True)
class Options:
    """What is the same for all measurements; see Args of scaling.py. folder: for checkpoints."""

    steps: int
    warmup: int
    runs: int
    curve: int
    checkpoints: int
    loader_seconds: float
    blocks: BlockWay
    folder: Path


@dataclass(frozen=True)
class Work:
    """One build of a model on all ranks, and what is measured with it.

    parallel: None on one rank. batch: clips of a rank in a step. bus: measure it, too. curves: numbers of
    ranks whose global batch a loss curve is taken with. index: of the proxies, where they are read.
    """

    case: str
    ranks: int
    parallel: Parallel | None
    batch: int
    sources: tuple[str, ...]
    bus: bool
    curves: tuple[int, ...] = ()
    index: Path | None = None

    def __str__(self) -> str:
        return f"{self.case}, {self.ranks} x {self.batch} clips" + (
            f", {self.parallel}" if self.parallel else ""
        )


@dataclass(frozen=True)
class Speed:
    """seconds, waits: of each run, of each rank; waits is the time in which the rank waited for clips.

    source None: the ranks took steps at the same time, without talking to each other.
    """

    source: str | None
    seconds: list[list[float]]
    waits: list[list[float]]


@dataclass(frozen=True)
class Curve:
    """Loss and gradient norm of each of the first steps, with the global batch of `ranks` ranks."""

    ranks: int
    losses: list[float]
    norms: list[float]


@dataclass(frozen=True)
class Bus:
    """seconds: of each all-reduce of `gradient_bytes`. weight_bytes: of all weights, a teacher's included.

    units: pieces in which FSDP2 gathers weights.
    """

    seconds: list[float]
    gradient_bytes: int
    weight_bytes: int
    units: int


@dataclass(frozen=True)
class Stored:
    """Seconds of each checkpoint: until it is written, for which steps waited, until it is read; its size."""

    save: list[float]
    held: list[float]
    load: list[float]
    bytes: int


@dataclass(frozen=True)
class Loaded:
    """rates: clips a second of each rank's loader, all at work, without training. read_bytes: of a clip."""

    rates: list[float]
    read_bytes: float


@dataclass(frozen=True)
class Finished:
    """All that a Work asked for is measured."""


Found = Speed | Curve | Bus | Stored | Loaded
