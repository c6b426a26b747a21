"""Models of timm: fetched by name, from a file with a name, from a folder of its hub, or with first weights.

DINO, DINOv2 (also by the names of its own files) and those of ImageNet are among them. Each is applied to
every frame; a vision transformer may be inflated to tubelets (weights/inflate.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from surgrec.curation.records import CurationError
from surgrec.curation.timm_embedder import check_name, timm_model
from surgrec.kernels.counter_rng import stream_key
from surgrec.models.frame_encoder import FrameEncoder
from surgrec.models.network_form import NetworkForm
from surgrec.models.timm_network import create
from surgrec.weights.clips import clip_rate
from surgrec.weights.coverage import Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.inflate import inflated
from surgrec.weights.layout import Imported, Layout, ReadOptions, refuse
from surgrec.weights.per_frame import (
    FRAMES,
    Colours,
    check_whole,
    clip_of_frames,
    fill,
    imported,
    network_at,
    pooling_of,
    rate_asked,
)
from surgrec.weights.timm_keys import PATCH, take_all, take_plain
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


TIMM_VIT: Final = Layout(NAME, "models of timm: a folder of its hub, timm:MODEL, timm:MODEL@FILE", fits, read)


def read_as(name: str, content: Content, options: ReadOptions) -> Imported:
    """A file of a model that timm knows by `name`. Raises WeightsError."""
    made = _made(name, content, options)
    taker = Taker(content.path, content.tensors)
    take = take_all if _is_transformer(made.model) else take_plain
    weights = take(content, taker, made.model)
    taker.finish()
    return _finished(made, taker, options, weights)


def fetched(name: str, options: ReadOptions) -> tuple[Imported, Callable[[], Imported]]:
    """What a model is whose weights timm fetches, and what fetches them; inflated, it is fetched at once.
    Raises WeightsError, the second also where they cannot be had."""
    made = _made(name, Content(Path(f"timm:{name}"), {}), options)
    taker = Taker(made.path, {})
    taker.coverage.loaded += [(key, key) for key in made.model.state_dict()]
    taker.assume("keys", "timm's own", "it renames and leaves out what it fetched before it is seen here")

    def weights() -> dict[str, Tensor]:
        try:
            model = timm_model(name, None, options.size)
        except CurationError as error:
            raise WeightsError(str(error)) from error
        state: dict[str, Tensor] = model.state_dict()
        return state

    if options.inflate is not None:
        found = _finished(made, taker, options, weights())
        return found, lambda: replace(found, encoder=copy.deepcopy(found.encoder))
    found = _described(made, taker, options)

    def fetch() -> Imported:
        return imported(made.path, _network_form(found), weights(), found.coverage, _rate_of(found))

    return found, fetch


def untrained(name: str, options: ReadOptions, seed: int) -> tuple[Imported, Callable[[], Imported]]:
    """What a model is with first weights, and what draws them: stream "model/first weights". Raises
    WeightsError."""
    made = _made(name, Content(Path(f"random:timm:{name}"), {}), options)
    refuse(Content(made.path, {}), NAME, inflate=options.inflate)
    found = _described(made, Taker(made.path, {}), options)

    def draw() -> Imported:
        import timm

        # The global generator is put back, so that building a model changes no other draw.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_key(seed, "model/first weights"))
            state = timm.create_model(name, num_classes=0, **made.arguments).state_dict()
        return imported(made.path, _network_form(found), state, found.coverage, _rate_of(found))

    return found, draw


@dataclass(frozen=True)
class _Made:
    """A model of timm without weights. arguments: of timm.create_model. path: for messages. size: of its
    frames. mean, std: of values in 0..1."""

    path: Path
    name: str
    arguments: dict[str, Any]
    model: Any
    size: int
    mean: Colours
    std: Colours


def _made(name: str, content: Content, options: ReadOptions) -> _Made:
    """Raises WeightsError for a name that timm does not know, options that the model does not take, and
    pictures other than square RGB ones."""
    from timm.data.config import resolve_model_data_config

    path = content.path
    refuse(content, NAME, part=options.part, heads=options.heads)
    try:
        check_name(name)
    except CurationError as error:
        raise WeightsError(str(error)) from error
    arguments = _arguments(content)
    if options.size is not None:
        arguments["img_size"] = options.size
    try:
        model = create(name, arguments)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}; leave size out, or give another model") from error
    data = resolve_model_data_config(model)
    side = getattr(getattr(model, "patch_embed", None), "img_size", None)
    height, width = side or data["input_size"][1:]
    if data["input_size"][0] != 3 or height != width:
        raise WeightsError(
            f"{path}: timm's {name} wants pictures of {data['input_size']}; square RGB ones are made here:"
            " give another model"
        )
    # The configuration is for the fetching; what it says of the size is said outright.
    own = {key: value for key, value in arguments.items() if key != "pretrained_cfg"}
    own |= {} if side is None else {"img_size": height}
    return _Made(path, name, own, model, height, tuple(data["mean"]), tuple(data["std"]))


def _finished(made: _Made, taker: Taker, options: ReadOptions, weights: Mapping[str, Tensor]) -> Imported:
    """Each frame by itself, or inflated. weights: all of the model's."""
    if options.inflate is None:
        found = _described(made, taker, options)
        fill(made.model, weights)
        check_whole(found.encoder)
        return found
    refuse(Content(made.path, {}), f"{NAME}, inflated", pooling=options.pooling)
    fill(made.model, weights)
    rate = clip_rate(taker, VIDEO, options)
    if options.frames is None:
        taker.assume("frames", str(VIDEO.frames), "as video transformers mostly have it")
    frames = options.frames or VIDEO.frames
    colours = made.mean, made.std
    return inflated(made.path, made.model, taker.coverage, options.inflate, frames, rate, *colours)


def _described(made: _Made, taker: Taker, options: ReadOptions) -> Imported:
    """A model on each frame, without weights."""
    rate = rate_asked(taker, options)
    if options.frames is None:
        taker.assume("frames", str(FRAMES), "an image model takes any number; ask for another with frames=")
    pooling = pooling_of(Content(made.path, {}), options)
    arguments = {"name": made.name, **made.arguments}
    frames = options.frames or FRAMES
    form = NetworkForm("timm", arguments, frames, made.size, made.mean, made.std, pooling)
    try:
        encoder = FrameEncoder(made.model, made.size, made.mean, made.std, pooling)
    except ValueError as error:
        raise WeightsError(f"{made.path}: {error}") from error
    clip = clip_of_frames(encoder, form, rate)
    return Imported(encoder, form, taker.coverage, clip, pretraining=False)


def _network_form(found: Imported) -> NetworkForm:
    assert isinstance(found.form, NetworkForm)
    return found.form


def _rate_of(found: Imported) -> tuple[int | None, float | None]:
    return found.clip.stride, found.clip.fps


def _is_transformer(model: Any) -> bool:
    """Whether its keys, and positions of another size, can be told from files of several projects."""
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(model, VisionTransformer | Eva | Beit)


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
        if not numbers or len(value) != 3 or (name != "mean" and not all(value)):
            raise WeightsError(f"{content.path}: {name} is {value!r} in config.json; fetch it again")
    heads = about.get("classifier", "head")
    names = heads if isinstance(heads, list) else [heads]
    if not all(each is None or isinstance(each, str) for each in names):
        raise WeightsError(f"{content.path}: classifier is {heads!r} in config.json; fetch it again")
    return {**arguments, **({"pretrained_cfg": dict(about)} if about else {})}
