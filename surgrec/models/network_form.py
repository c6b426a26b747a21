"""What a network that is not this project's is, in plain values: enough to build it again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args

import torch

from surgrec.models.dinov3 import DinoForm, build_dino
from surgrec.models.frame_encoder import FrameEncoder, FramePooling
from surgrec.models.pixels import Normalise
from surgrec.models.timesformer import ClassPooling, TimeSformer
from surgrec.models.timm_network import create

Builder = Literal["timm", "dinov3", "timesformer"]
Network = FrameEncoder | TimeSformer


@dataclass(frozen=True)
class NetworkForm:
    """builder: whose code it is. arguments: what it is made with: `name` and keywords of timm.create_model; a
    DinoForm; or depth, width, heads, hidden and patch of a TimeSformer. frames, size: of its clips. mean,
    std: of the colour channels, of values in 0..1. pooling: of FrameEncoder; of a TimeSformer own or all."""

    builder: Builder
    arguments: dict[str, Any]
    frames: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: FramePooling


def network_document(form: NetworkForm) -> dict[str, Any]:
    """Plain values of a form, as JSON gives them again."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(form).items()}


def network_from(document: Mapping[str, Any]) -> NetworkForm:
    """A form from plain values, as network_document gives them. Raises ValueError."""
    known = [field.name for field in fields(NetworkForm)]
    if set(document) != set(known):
        raise ValueError(f"a network's form has {', '.join(known)}; here are {', '.join(map(str, document))}")
    values = dict(document)
    for name in ("mean", "std"):
        values[name] = tuple(values[name]) if isinstance(values[name], list) else ()
    right = {
        "builder": values["builder"] in get_args(Builder),
        "arguments": isinstance(values["arguments"], dict),
        "pooling": values["pooling"] in get_args(FramePooling),
        **{name: type(values[name]) is int and values[name] > 0 for name in ("frames", "size")},
        **{name: len(values[name]) == 3 and all(map(_finite, values[name])) for name in ("mean", "std")},
    }
    for name, fits in right.items():
        if not fits:
            raise ValueError(f"`{name}` of a network's form is {document[name]!r}")
    return NetworkForm(**values)


def build_network(form: NetworkForm) -> Network:
    """The network of a form, without weights. Raises ValueError, or TypeError for arguments of another
    network."""
    arguments = dict(form.arguments)
    if form.builder == "timesformer":
        if form.pooling not in get_args(ClassPooling):
            raise ValueError(f"a TimeSformer has no pooling {form.pooling!r}")
        pooling = cast(ClassPooling, form.pooling)
        with torch.device("meta"):
            network = TimeSformer(
                **arguments, frames=form.frames, size=form.size, mean=form.mean, std=form.std, pooling=pooling
            )
        network.normalise = Normalise(form.mean, form.std)
        return network
    if form.builder == "dinov3":
        model = build_dino(
            DinoForm(**arguments | {"periods": tuple(arguments.get("periods", ()))}), form.size
        )
    else:
        model = create(str(arguments.pop("name", "")), arguments)
    return FrameEncoder(model, form.size, form.mean, form.std, form.pooling)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
