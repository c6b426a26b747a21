"""A trained head as one safetensors file: its weights, and as JSON in the file's header what made it.

surgrec   JSON of HeadAbout (described_tensors.py)
tensors   by the names of heads.py, float32, without the leading dimension of a grid; of a linear head
          also shift and scale, float32 [D]: it reads (features - shift) * scale
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from surgrec.evaluation.described_tensors import Kind, digest_of
from surgrec.evaluation.head_training import probabilities
from surgrec.evaluation.heads import AttentiveHeads, Heads, LinearHeads, Weights

KINDS: Final = ("probe-linear", "probe-attentive")


class HeadError(ValueError):
    """A saved head that cannot be used; the message names file, cause and remedy."""


FILE: Final = Kind("surgrec-head", 1, "head", "write it with `python -m surgrec.probe --save`", HeadError)


@dataclass(frozen=True)
class HeadAbout:
    """What a head is, and what made it. Plain values.

    kind: one of KINDS. classes: by label. dataset, manifest_digest: of the split. features_digest, model,
    identity, geometry, clips, views: of the features, as features.About has them. width: of a feature, D.
    blocks: of an attentive head, 0 of a linear one. precision: of the products. options, chosen: what was
    asked for, and what was chosen on val. date, versions, commit: as in a result.
    """

    kind: str
    classes: tuple[str, ...]
    dataset: str
    manifest_digest: str
    features_digest: str
    model: str
    identity: str
    geometry: dict[str, Any]
    clips: int
    views: tuple[str, ...]
    width: int
    blocks: int
    precision: str
    options: dict[str, Any]
    chosen: dict[str, Any]
    date: str
    versions: dict[str, str]
    commit: str

    @property
    def heads(self) -> Heads:
        """The shape of the head. Raises ValueError for one that does not exist."""
        if self.kind == "probe-linear":
            return LinearHeads(self.width, len(self.classes))
        return AttentiveHeads(self.width, len(self.classes), self.blocks)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors in the file."""
        own = self.heads.shapes()
        return own | {"shift": (self.width,), "scale": (self.width,)} if self.kind == KINDS[0] else own


@dataclass(frozen=True)
class SavedHead:
    """A head and its tensors, on the CPU, as `about.shapes` has them."""

    about: HeadAbout
    tensors: Weights

    @property
    def digest(self) -> str:
        """As described_tensors.py has it."""
        return digest_of(self.about, self.tensors)

    def on(self, device: torch.device) -> LoadedHead:
        """The head, ready to compute."""
        moved = {name: value.to(device) for name, value in self.tensors.items()}
        shift, scale = moved.pop("shift", None), moved.pop("scale", None)
        weights = {name: value[None] for name, value in moved.items()}
        return LoadedHead(self.about.heads, weights, shift, scale, self.about.precision == "bfloat16")


@dataclass(frozen=True)
class LoadedHead:
    """A head on a device. weights: float32 [1, ...]."""

    heads: Heads
    weights: Weights
    shift: Tensor | None
    scale: Tensor | None
    half: bool

    def __call__(self, pooled: Tensor, tokens: Tensor) -> Tensor:
        """float32 [b, C], probabilities. pooled: [b, D], tokens: [b, N, D'], of which it reads its own."""
        features = pooled if isinstance(self.heads, LinearHeads) else tokens
        if features.shape[-1] != self.heads.width:
            raise HeadError(
                f"the head reads features of width {self.heads.width}, the network gives"
                f" {features.shape[-1]}: it is of another model"
            )
        # Trained on what a feature file holds, which is float16.
        loaded = features.half().float()
        if self.shift is not None and self.scale is not None:
            loaded = (loaded - self.shift) * self.scale
        return probabilities(self.heads, self.weights, loaded, self.half)[0]


def write_head(path: Path, head: SavedHead) -> str:
    """Writes a head, whole or not at all; returns its digest. Raises OSError."""
    return FILE.write(path, head.about, head.tensors)


def read_head(path: Path) -> SavedHead:
    """Reads and checks a head. Raises HeadError naming the file, the cause and the remedy."""
    about, tensors, _ = FILE.read(path, HeadAbout, _check)
    return SavedHead(about, tensors)


def _check(about: HeadAbout, tensors: Weights) -> None:
    """Raises ValueError for tensors that are not those of the head."""
    if about.kind not in KINDS:
        raise ValueError(f"kind {about.kind!r}; expected {', '.join(KINDS)}")
    if about.width < 1 or len(about.classes) < 2:
        raise ValueError(f"{len(about.classes)} classes of features of width {about.width}")
    # Sizes first: a width that lies must not ask for memory.
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if found != about.shapes:
        wrong = sorted(name for name in {*found, *about.shapes} if found.get(name) != about.shapes.get(name))
        raise ValueError(f"tensors that are missing, too many, or of another shape: {', '.join(wrong)}")
    for name, value in tensors.items():
        if value.dtype != torch.float32 or not math.isfinite(float(value.sum())):
            raise ValueError(f"{name} is {value.dtype}, or holds values that are not finite")
