"""Vision transformers of timm: fetched by name, from a file with a name, or from a folder of its hub.

DINO, DINOv2 (also by the names of its own files) and those of ImageNet are among them. Each is applied to
every frame, or inflated to tubelets (weights/inflate.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from surgrec.curation.records import CurationError
from surgrec.curation.timm_embedder import check_name, timm_model
from surgrec.weights.clips import clip_rate
from surgrec.weights.coverage import Coverage, Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.inflate import inflated
from surgrec.weights.layout import Imported, Layout, ReadOptions, refuse
from surgrec.weights.per_frame import (
    FRAMES,
    fill,
    imported,
    network_at,
    pooling_of,
    rate_asked,
)
from surgrec.weights.timm_keys import PATCH, take_all
from surgrec.weights.video_parts import Published

NAME: Final = "timm-vit"
VIDEO: Final = Published(frames=16, size=224, stride=4, fps=None, heads={})
"""What video transformers mostly see; what an inflated one sees where nobody says."""


def fits(content: Content) -> bool:
    """A folder of timm's hub; or the keys of a ViT of images, by timm's names."""
    if content.config is not None:
        return isinstance(content.config.get("architecture"), str)
    found = [key for key, value in content.tensors.items() if key.endswith(PATCH) and value.ndim == 4]
    others = ("blocks.0.temporal_attn.qkv.weight", "storage_tokens")
    return any(
        f"{root}blocks.0.attn.qkv.weight" in content.tensors
        and not any(f"{root}{key}" in content.tensors for key in others)
        for root in (key.removesuffix(PATCH) for key in found)
    )


def read(content: Content, options: ReadOptions) -> Imported:
    """Of a folder of timm's hub. Raises WeightsError, also for a file alone: it tells no model."""
    if content.config is None:
        prefix = network_at(content, PATCH)
        width, _, patch, _ = content.tensors[f"{prefix}{PATCH}"].shape
        raise WeightsError(
            f"{content.path}: a vision transformer (width {width}, patches of {patch} pixels) whose file does"
            " not say its heads, colours and size; give timm:MODEL@FILE, such as"
            f" timm:vit_base_patch16_224.dino@{content.path}; timm.list_models('*patch{patch}*') lists models"
        )
    return read_as(str(content.config["architecture"]), content, options)


TIMM_VIT: Final = Layout(
    NAME, "vision transformers of timm: a folder of its hub, timm:MODEL, timm:MODEL@FILE", fits, read
)


def read_as(name: str, content: Content, options: ReadOptions) -> Imported:
    """A file of a model that timm knows by `name`. Raises WeightsError."""
    refuse(content, NAME, part=options.part, heads=options.heads)
    _check(name)
    model = _empty(name, content, options)
    taker = Taker(content.path, content.tensors)
    weights = take_all(content, taker, model)
    coverage = taker.finish()
    fill(model, weights)
    return _finished(content.path, model, taker, coverage, options)


def fetched(name: str, options: ReadOptions) -> Imported:
    """A model with the weights that timm fetches. Raises WeightsError where they cannot be had."""
    path = Path(f"timm:{name}")
    refuse(Content(path, {}), NAME, part=options.part, heads=options.heads)
    _check(name)
    try:
        model = timm_model(name, None, options.size)
    except CurationError as error:
        raise WeightsError(str(error)) from error
    taker = Taker(path, {})
    taker.coverage.loaded += [(key, key) for key in model.state_dict()]
    taker.assume("keys", "timm's own", "it renames and leaves out what it fetched before it is seen here")
    return _finished(path, model, taker, taker.coverage, options)


def _finished(path: Path, model: Any, taker: Taker, coverage: Coverage, options: ReadOptions) -> Imported:
    """Each frame by itself, or inflated."""
    from timm.data.config import resolve_model_data_config

    data = resolve_model_data_config(model)
    mean, std = tuple(data["mean"]), tuple(data["std"])
    size = model.patch_embed.img_size[0]
    if options.inflate is not None:
        refuse(Content(path, {}), f"{NAME}, inflated", pooling=options.pooling)
        rate = clip_rate(taker, VIDEO, options)
        if options.frames is None:
            taker.assume("frames", str(VIDEO.frames), "as video transformers mostly have it")
        frames = options.frames or VIDEO.frames
        return inflated(path, model, coverage, options.inflate, frames, rate, mean, std)
    rate = rate_asked(taker, options)
    if options.frames is None:
        taker.assume("frames", str(FRAMES), "an image model takes any number; ask for another with frames=")
    pooling = pooling_of(Content(path, {}), options)
    return imported(path, model, coverage, options.frames, rate, pooling, size, mean, std)


def _check(name: str) -> None:
    try:
        check_name(name)
    except CurationError as error:
        raise WeightsError(str(error)) from error


def _empty(name: str, content: Content, options: ReadOptions) -> Any:
    """The model without weights and without head, on the meta device where nothing of it must be computed.
    Raises WeightsError for what is no vision transformer, or has no such size."""
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    arguments = _arguments(content)
    if options.size is not None:
        arguments["img_size"] = options.size
    try:
        with torch.device("meta"):
            model = _create(name, arguments)
        if any(True for _ in model.buffers()):
            model = _create(name, arguments)
    except Exception as error:  # of whatever a model of timm does not take
        raise WeightsError(
            f"{content.path}: timm cannot make {name} ({error}); leave size out, or give another model"
        ) from error
    if not isinstance(model, VisionTransformer | Eva | Beit):
        raise WeightsError(
            f"{content.path}: timm's {name} is no vision transformer but a {type(model).__name__}; extract"
            f" features of it with --model timm:{name}"
        )
    return model


def _arguments(content: Content) -> dict[str, Any]:
    """What a folder of timm's hub says of its model beside the architecture. Raises WeightsError."""
    config = content.config or {}
    arguments, about = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    if not isinstance(arguments, Mapping) or not isinstance(about, Mapping):
        raise WeightsError(f"{content.path}: config.json is not as timm writes it; fetch it again")
    for name in ("mean", "std", "input_size"):
        value = about.get(name, [0.5, 0.5, 0.5])
        numbers = isinstance(value, list) and all(
            isinstance(item, int | float) and not isinstance(item, bool) and 0 <= item < 1e6 for item in value
        )
        if not numbers or len(value) != 3:
            raise WeightsError(f"{content.path}: {name} is {value!r} in config.json; fetch it again")
    return {**arguments, **({"pretrained_cfg": dict(about)} if about else {})}


def _create(name: str, arguments: dict[str, Any]) -> Any:
    import timm

    return timm.create_model(name, num_classes=0, **arguments)
