"""Trained classifiers of clips: a saved head behind its network, as `surgrec.predict` asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgrec.evaluation.feature_models import Choose, feature_model
from surgrec.evaluation.saved_head import HeadError, SavedHead, read_head

Ask = Callable[[Tensor], Tensor]
"""uint8 [b, T, S, S, 3] -> probabilities, float32 [b, C], on the frames' device."""


@dataclass(frozen=True)
class Classifier:
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


def open_classifier(path: Path, model: str | None, seed: int) -> Classifier:
    """What was saved at `path`, by its kind.

    model: where the network of a head lies now; None takes the name that it had. seed: of random weights.
    Raises HeadError for a file that is no head, or another network; FeatureError, CurationError as
    feature_model does.
    """
    return _probe(path, read_head(path), model, seed)


def _probe(path: Path, head: SavedHead, model: str | None, seed: int) -> Classifier:
    about = head.about
    asked = model or about.model
    network = feature_model(asked, about.geometry.get("pictures"), seed)
    if network.identity != about.identity:
        raise HeadError(
            f"{path}: this head was trained on features of {about.model} ({about.identity}), and {asked} is"
            f" another network ({network.identity}): give the one that it was trained on, --model"
        )

    def load(device: torch.device) -> tuple[int, Ask]:
        loaded, own = network.load(device), head.on(device)
        return loaded.size, lambda frames: own(*loaded.encode(frames))

    plain = asdict(about) | {"classes": list(about.classes), "views": list(about.views)}
    return Classifier(
        about.classes,
        head.digest,
        asked,
        about.identity,
        network.geometry,
        network.choose,
        plain,
        load,
    )
