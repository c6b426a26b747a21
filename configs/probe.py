"""How cached features are probed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Kind = Literal["knn", "linear", "attentive"]
Selection = Literal["accuracy", "balanced_accuracy", "macro_f1"]

RATES: dict[str, tuple[float, ...]] = {
    "linear": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "attentive": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
}
"""Learning rates of a grid that names none."""


@dataclass(frozen=True)
class ProbeTask:
    """What is probed."""

    features: Annotated[Path, tyro.conf.Positional]
    """Feature file written by `python -m surgrec.extract`."""
    manifest: Path
    """The split that the features were extracted for."""


@dataclass(frozen=True)
class ProbeOptions:
    """How heads are trained, chosen and tested."""

    lrs: tuple[float, ...] = ()
    """Learning rates of the grid; by default five that suit the kind."""
    weight_decays: tuple[float, ...] = (0.01, 0.1)
    """Weight decays of the grid."""
    seeds: tuple[int, ...] = (0, 1)
    """First weights of the grid."""
    ks: tuple[int, ...] = (1, 5, 10, 20, 50, 100)
    """Neighbours, for knn."""
    blocks: int = 1
    """Blocks of an attentive head, 1 to 4: the last is the cross-attention, those before are self-attention,
    which costs as much as a block of the encoder for every head."""
    steps: int = 1000
    """Steps of training."""
    batch: int = 128
    """Samples of a step, for all heads at once."""
    select: Selection = "accuracy"
    """What a head is chosen by, on val."""
    shots: tuple[int, ...] = ()
    """Few-shot: probe again with this many train clips of each class, such as 1 5 10."""
    draws: int = 5
    """Draws of each number of shots."""
    resamples: int = 1000
    """Resamples of the bootstrap over groups."""
    seed: int = 0
    """Of the order of the samples, the draws of shots and the bootstrap."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where heads are trained; auto takes a GPU where there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products; weights are float32 either way."""


@dataclass(frozen=True)
class ProbeConfig(ProbeOptions, ProbeTask):
    """Probe cached features: train a grid of heads in one pass, choose one on val, report it once on test.

    The result is one line of JSON that names the model, the split's digest, how many of the rows were read,
    every score on val, and the figures on test with 95 % intervals, beside the baselines.
    """

    kind: Kind = "attentive"
    """knn: neighbours by cosine of pooled features. linear: of pooled features, standardised. attentive: a
    learned query over token features."""
    out: Path = Path("results.jsonl")
    """The result is appended to this file."""
    save: Path | None = None
    """The chosen head is saved here, with what made it, for `python -m surgrec.predict`; not of knn."""
