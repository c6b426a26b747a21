"""A trained head as one safetensors file: its weights, and as JSON in the file's header what made it.

surgrec   JSON of HeadAbout, with format, format_version and digest
tensors   by the names of heads.py, float32, without the leading dimension of a grid; of a linear head
          also shift and scale, float32 [D]: it reads (features - shift) * scale
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from surgrec.evaluation.head_training import probabilities
from surgrec.evaluation.heads import AttentiveHeads, Heads, LinearHeads, Weights
from surgrec.loaders.whole_file import replacing
from surgrec.training.tensor_file import write_tensors

FORMAT_NAME: Final = "surgrec-head"
FORMAT_VERSION: Final = 1
KINDS: Final = ("probe-linear", "probe-attentive")

_MAKE_IT: Final = "write it with `python -m surgrec.probe --save`"


class HeadError(ValueError):
    """A saved head that cannot be used; the message names file, cause and remedy."""


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
        """XXH3-128 over what it is and its tensors, whatever made it and when: 32 hex digits."""
        made = ("date", "versions", "commit")
        plain = {name: value for name, value in asdict(self.about).items() if name not in made}
        state = xxhash.xxh3_128(json.dumps(plain, sort_keys=True).encode())
        for name in sorted(self.tensors):
            state.update(name.encode())
            state.update(self.tensors[name].contiguous().numpy().data)
        return state.hexdigest()

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
    plain = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **asdict(head.about)}
    text = json.dumps(plain | {"digest": head.digest}, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write_tensors(temporary, head.tensors, {"surgrec": text})
    return head.digest


def format_of(path: Path) -> str:
    """The format that the header of a safetensors file names; empty where none can be read."""
    try:
        with safe_open(path, "pt") as file:
            document = json.loads((file.metadata() or {}).get("surgrec", "null"))
    except (OSError, SafetensorError, ValueError, RecursionError):
        return ""
    return str(document.get("format", "")) if isinstance(document, dict) else ""


def read_head(path: Path) -> SavedHead:
    """Reads and checks a head. Raises HeadError naming the file, the cause and the remedy."""
    if not path.is_file():
        raise HeadError(f"{path}: no such file; {_MAKE_IT}")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("surgrec", "null")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        document = json.loads(text)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise HeadError(
            f"{path}: not a safetensors file, or a truncated one ({error}); {_MAKE_IT}"
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT_NAME:
        raise HeadError(f"{path}: no saved head (no `format` {FORMAT_NAME!r} in its header); {_MAKE_IT}")
    if document.get("format_version") != FORMAT_VERSION:
        raise HeadError(
            f"{path}: a head of format version {document.get('format_version')!r}, this program reads"
            f" {FORMAT_VERSION}; {_MAKE_IT} again"
        )
    try:
        head = SavedHead(_about(document), tensors)
        _check(head)
        digest = head.digest
    except (TypeError, ValueError) as error:
        raise HeadError(f"{path}: damaged ({error}); {_MAKE_IT} again") from error
    if document.get("digest") != digest:
        raise HeadError(
            f"{path}: its digest is {document.get('digest')!r}, its content has {digest!r}: it was changed or"
            f" is damaged; {_MAKE_IT} again"
        )
    return head


def _about(document: dict[str, Any]) -> HeadAbout:
    """Raises ValueError, TypeError for values that are not there, or of another kind."""
    wanted = {"str": str, "int": int, "dict[str, Any]": dict, "dict[str, str]": dict}
    values: dict[str, Any] = {}
    for field in fields(HeadAbout):
        value = document.get(field.name)
        if field.type == "tuple[str, ...]":
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"`{field.name}` is no list of texts")
            value = tuple(value)
        elif not isinstance(value, wanted[str(field.type)]) or isinstance(value, bool):
            raise ValueError(f"`{field.name}` is {value!r}")
        values[field.name] = value
    return HeadAbout(**values)


def _check(head: SavedHead) -> None:
    """Raises ValueError for tensors that are not those of the head."""
    about = head.about
    if about.kind not in KINDS:
        raise ValueError(f"kind {about.kind!r}; expected {', '.join(KINDS)}")
    if about.width < 1 or len(about.classes) < 2:
        raise ValueError(f"{len(about.classes)} classes of features of width {about.width}")
    # Sizes first: a width that lies must not ask for memory.
    found = {name: tuple(value.shape) for name, value in head.tensors.items()}
    if found != about.shapes:
        wrong = sorted(name for name in {*found, *about.shapes} if found.get(name) != about.shapes.get(name))
        raise ValueError(f"tensors that are missing, too many, or of another shape: {', '.join(wrong)}")
    for name, value in head.tensors.items():
        if value.dtype != torch.float32 or not math.isfinite(float(value.sum())):
            raise ValueError(f"{name} is {value.dtype}, or holds values that are not finite")
