"""A fine-tuned network as one safetensors file: all weights, and as JSON in the file's header what made it.

surgrec     JSON of NetworkAbout (evaluation/described_tensors.py)
encoder.*   of the encoder, by its own names, low-rank additions merged
head.*      by the names of heads.py, without the leading dimension of a grid

It needs nothing else: neither the checkpoint that it was made from nor the split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from surgrec.configs.finetune import HeadKind
from surgrec.curation.embedders import half_precision
from surgrec.evaluation.clip_cut import ClipCut, cut_from
from surgrec.evaluation.described_tensors import Kind
from surgrec.finetuning.classifier import Classifier, heads_of
from surgrec.models.encoder_form import EncoderForm, form_from
from surgrec.models.network_form import NetworkForm, build_network, network_from
from surgrec.models.video_encoder import build_encoder
from surgrec.weights.layout import Encoder

ENCODER, HEAD = "encoder.", "head."


class NetworkFileError(ValueError):
    """A saved network that cannot be used; the message names file, cause and remedy."""


FILE: Final = Kind(
    "surgrec-network", 2, "network", "write it with `python -m surgrec.finetune`", NetworkFileError
)


@dataclass(frozen=True)
class NetworkAbout:
    """What a network is, and what made it. Plain values.

    kind: `finetune-full`, `finetune-head` or `finetune-lora`. classes: by label. dataset, manifest_digest: of
    the split. model, identity: of the pretrained network, as it was given, and of its weights. geometry: of a
    clip. encoder: the EncoderForm or NetworkForm that it is built from. head, blocks: of the head. clips,
    views: of a row of test. options, chosen: what was asked for, and what was chosen on val. date, versions,
    commit: as in a result.
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
    """A network on a device. cut: how clips are cut for it."""

    about: NetworkAbout
    digest: str
    cut: ClipCut
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
    return FILE.write(path, about, tensors)


def read_network(path: Path, device: torch.device) -> LoadedNetwork:
    """Reads, checks and builds a network. Raises NetworkFileError naming the file, the cause and the
    remedy."""
    about, tensors, digest = FILE.read(path, NetworkAbout)
    try:
        form = network_from(about.encoder) if "builder" in about.encoder else form_from(about.encoder)
        cut = cut_from(about.geometry, form.frames, form.size)
        classifier = _build(about, form, tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FILE.damaged(path, error) from error
    return LoadedNetwork(about, digest, cut, classifier.to(device).eval())


def _build(about: NetworkAbout, form: EncoderForm | NetworkForm, tensors: dict[str, Tensor]) -> Classifier:
    """Raises ValueError, RuntimeError where tensors do not fit."""
    encoder: Encoder
    if isinstance(form, NetworkForm):
        encoder = build_network(form)
        encoder.load_state_dict(_of(ENCODER, tensors), assign=True)
    else:
        encoder = build_encoder(form, _of(ENCODER, tensors))
    heads = heads_of(about.head, encoder, len(about.classes), about.blocks)
    weights = _of(HEAD, tensors)
    if {name: tuple(value.shape) for name, value in weights.items()} != heads.shapes():
        raise ValueError("weights of another head")
    return Classifier(encoder, heads, {name: weights[name][None] for name in heads.shapes()}, frozen=True)


def _of(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
