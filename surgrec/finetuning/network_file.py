"""A fine-tuned network as one safetensors file: all weights, and as JSON in the file's header what made it.

surgrec     JSON of NetworkAbout, with format, format_version and digest
encoder.*   of the video encoder, by its own names, low-rank additions merged
head.*      by the names of heads.py, without the leading dimension of a grid

It needs nothing else: neither the checkpoint that it was made from nor the split.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from surgrec.configs.data import DataConfig
from surgrec.configs.finetune import HeadKind
from surgrec.curation.embedders import half_precision
from surgrec.finetuning.classifier import Classifier, heads_of
from surgrec.loaders.whole_file import replacing
from surgrec.models.encoder_form import EncoderForm, form_from
from surgrec.models.video_encoder import build_encoder
from surgrec.training.tensor_file import write_tensors

FORMAT_NAME: Final = "surgrec-network"
FORMAT_VERSION: Final = 2
ENCODER, HEAD = "encoder.", "head."

_MAKE_IT: Final = "write it with `python -m surgrec.finetune`"


class NetworkFileError(ValueError):
    """A saved network that cannot be used; the message names file, cause and remedy."""


@dataclass(frozen=True)
class NetworkAbout:
    """What a network is, and what made it. Plain values.

    kind: `finetune-full`, `finetune-head` or `finetune-lora`. classes: by label. dataset, manifest_digest: of
    the split. model, identity: of the pretrained network, as it was given, and of its weights. geometry: of a
    clip. encoder: the EncoderForm that it is built from. head, blocks: of the head. clips, views: of a row of
    test. options, chosen: what was asked for, and what was chosen on val. date, versions, commit: as in a
    result.
    """

    kind: str
    classes: tuple[str, ...]
    dataset: str
    manifest_digest: str
    model: str
    identity: str
    geometry: dict[str, Any]
    encoder: dict[str, Any]
    head: HeadKind
    blocks: int
    clips: int
    views: tuple[str, ...]
    options: dict[str, Any]
    chosen: dict[str, Any]
    date: str
    versions: dict[str, str]
    commit: str


@dataclass(frozen=True)
class LoadedNetwork:
    """A network on a device. data: how clips are cut for it."""

    about: NetworkAbout
    digest: str
    data: DataConfig
    classifier: Classifier

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Probabilities, float32 [b, C], of clips uint8 [b, T, S, S, 3] on its device."""
        with half_precision(frames.device):
            logits: Tensor = self.classifier(frames)
        return logits.softmax(1)


def write_network(path: Path, about: NetworkAbout, classifier: Classifier) -> str:
    """Writes a network without low-rank additions, whole or not at all; returns its digest. Raises
    OSError."""
    encoder = classifier.encoder.state_dict()
    tensors = {ENCODER + name: value.cpu() for name, value in encoder.items()}
    tensors |= {HEAD + name: value.detach()[0].cpu() for name, value in classifier.head_weights().items()}
    digest = _digest(about, tensors)
    plain = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **asdict(about), "digest": digest}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write_tensors(temporary, tensors, {"surgrec": json.dumps(plain, allow_nan=False)})
    return digest


def read_network(path: Path, device: torch.device) -> LoadedNetwork:
    """Reads, checks and builds a network. Raises NetworkFileError naming the file, the cause and the
    remedy."""
    if not path.is_file():
        raise NetworkFileError(f"{path}: no such file; {_MAKE_IT}")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("surgrec", "null")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        document = json.loads(text)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise NetworkFileError(
            f"{path}: not a safetensors file, or a truncated one ({error}); {_MAKE_IT}"
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT_NAME:
        raise NetworkFileError(
            f"{path}: no saved network (no `format` {FORMAT_NAME!r} in its header); {_MAKE_IT}"
        )
    if document.get("format_version") != FORMAT_VERSION:
        raise NetworkFileError(
            f"{path}: a network of format version {document.get('format_version')!r}, this program reads"
            f" {FORMAT_VERSION}; {_MAKE_IT} again"
        )
    try:
        about = _about(document)
        digest = _digest(about, tensors)
        if document.get("digest") != digest:
            raise ValueError(f"its digest is {document.get('digest')!r}, its content has {digest!r}")
        form = form_from(about.encoder)
        data = _data(about.geometry, form)
        classifier = _build(about, form, tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise NetworkFileError(f"{path}: damaged, or changed by hand ({error}); {_MAKE_IT} again") from error
    return LoadedNetwork(about, digest, data, classifier.to(device).eval())


def _data(geometry: dict[str, Any], form: EncoderForm) -> DataConfig:
    """How clips are cut. Raises ValueError for those of another shape than the encoder's."""
    stride, fps = geometry.get("stride"), geometry.get("fps")
    if (geometry.get("frames"), geometry.get("size")) != (form.frames, form.size):
        raise ValueError(
            f"`geometry` is {geometry}; the encoder sees {form.frames} frames of {form.size} pixels"
        )
    rates = [rate for rate in (stride, fps) if isinstance(rate, int | float) and rate > 0]
    if len(rates) != 1 or not (fps is None or stride is None):
        raise ValueError(f"`geometry` is {geometry}; it has a stride or frames per second")
    if fps is not None:
        return DataConfig(frames=form.frames, fps=float(fps), size=form.size)
    return DataConfig(frames=form.frames, stride=int(rates[0]), size=form.size)


def _build(about: NetworkAbout, form: EncoderForm, tensors: dict[str, Tensor]) -> Classifier:
    """Raises ValueError, RuntimeError where tensors do not fit."""
    encoder = build_encoder(form, _of(ENCODER, tensors))
    heads = heads_of(about.head, encoder.width, len(about.classes), about.blocks)
    weights = _of(HEAD, tensors)
    if {name: tuple(value.shape) for name, value in weights.items()} != heads.shapes():
        raise ValueError("weights of another head")
    return Classifier(encoder, heads, {name: weights[name][None] for name in heads.shapes()}, frozen=True)


def _of(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _digest(about: NetworkAbout, tensors: dict[str, Tensor]) -> str:
    """XXH3-128 over what it is and its tensors, whatever made it and when: 32 hex digits."""
    made = ("date", "versions", "commit")
    plain = {name: value for name, value in asdict(about).items() if name not in made}
    state = xxhash.xxh3_128(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(tensors):
        state.update(name.encode())
        state.update(tensors[name].contiguous().numpy().data)
    return state.hexdigest()


def _about(document: dict[str, Any]) -> NetworkAbout:
    """Raises ValueError for values that are not there, or of another kind."""
    kinds = {"str": str, "int": int, "dict[str, Any]": dict, "dict[str, str]": dict, "HeadKind": str}
    values: dict[str, Any] = {}
    for field in fields(NetworkAbout):
        value = document.get(field.name)
        if field.type == "tuple[str, ...]":
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"`{field.name}` is no list of texts")
            value = tuple(value)
        elif not isinstance(value, kinds[str(field.type)]) or isinstance(value, bool):
            raise ValueError(f"`{field.name}` is {value!r}")
        values[field.name] = value
    if values["head"] not in ("linear", "attentive"):
        raise ValueError(f"`head` is {values['head']!r}")
    return NetworkAbout(**values)
