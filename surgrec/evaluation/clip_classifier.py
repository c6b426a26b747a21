"""Trained classifiers of clips, as `surgrec.predict` asks for them: a saved head behind its network, or a
fine-tuned network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgrec.evaluation.described_tensors import format_of
from surgrec.evaluation.feature_models import Choose, feature_model
from surgrec.evaluation.saved_head import HeadError, SavedHead, read_head
from surgrec.finetuning.network_file import FILE as NETWORK
from surgrec.finetuning.network_file import LoadedNetwork, read_network

Ask = Callable[[Tensor], Tensor]
"""uint8 [b, T, S, S, 3] -> probabilities, float32 [b, C], on the frames' device."""


@dataclass(frozen=True)
class ClipClassifier:
    """digest: of its trained weights. identity: of the network. geometry, choose: of its clips, as in
    FeatureModel. about: plain values that say what made it. load: size of its frames, in pixels, and the
    network on a device."""

    classes: tuple[str, ...]
    digest: str
    model: str
    identity: str
    geometry: dict[str, Any]
    choose: Choose
    about: dict[str, Any]
    load: Callable[[torch.device], tuple[int, Ask]]


def open_classifier(path: Path, model: str | None, seed: int) -> ClipClassifier:
    """What was saved at `path`, by the format that its header names.

    model: where the network of a head lies now; None takes the name that it had. seed: of random weights.
    Raises HeadError for a file that is neither, for another network, or one beside a network that is whole;
    NetworkFileError, FeatureError, CurationError as read_network and feature_model do.
    """
    if format_of(path) != NETWORK.format:
        return _probe(path, read_head(path), model, seed)
    if model is not None:
        raise HeadError(f"{path}: a fine-tuned network holds all its weights; leave --model out")
    return _finetuned(read_network(path, torch.device("cpu")))


def _finetuned(network: LoadedNetwork) -> ClipClassifier:
    about, cut = network.about, network.cut

    def load(device: torch.device) -> tuple[int, Ask]:
        network.classifier.to(device)
        return cut.data.size, network

    return ClipClassifier(
        about.classes,
        network.digest,
        about.model,
        about.identity,
        about.geometry,
        cut.choose,
        _plain(asdict(about)),
        load,
    )


def _probe(path: Path, head: SavedHead, model: str | None, seed: int) -> ClipClassifier:
    about = head.about
    asked = model or about.model
    network = feature_model(asked, about.geometry.get("pictures"), seed)
    if network.identity != about.identity:
        raise HeadError(
            f"{path}: this head was trained on features of {about.model} ({about.identity}), and {asked} is"
            f" another network ({network.identity}): give the one that it was trained on, --model, or"
            " extract its features again and train a head on them"
        )

    def load(device: torch.device) -> tuple[int, Ask]:
        loaded, own = network.load(device), head.on(device)
        return loaded.size, lambda frames: own(*loaded.encode(frames))

    return ClipClassifier(
        about.classes,
        head.digest,
        asked,
        about.identity,
        network.geometry,
        network.choose,
        _plain(asdict(about)),
        load,
    )


def _plain(about: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in about.items()}
