"""What all layouts of image models share: options, the form of a clip, and weights into a network of timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, get_args

from torch import Tensor, nn

from surgrec.models.frame_encoder import FrameEncoder, FramePooling
from surgrec.weights.coverage import Coverage, Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.layout import ClipForm, Imported, ReadOptions

FRAMES: Final = 8
"""Of a clip, spread evenly over it, where nobody says how many: an image model takes any number."""


def dimensions(taker: Taker, key: str, count: int) -> tuple[int, ...]:
    """The shape of a tensor that a model's shape is read from. Raises WeightsError where it is not there, or
    has another number of dimensions, or one of length 0."""
    shape = taker.shape(key)
    if len(shape) != count or not all(shape):
        raise WeightsError(
            f"{taker.path}: {key} is {list(shape)}; {count} dimensions tell the model's shape. The file is of"
            " another layout: name its layout, or give another file"
        )
    return shape


def depth_of(taker: Taker, prefix: str) -> int:
    """Layers whose keys begin with `prefix` and a number. How many they are, not how they are numbered."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({found.group(1) for key in taker.keys(prefix) if (found := pattern.match(key))})


def pooling_of(content: Content, options: ReadOptions) -> FramePooling:
    """Raises WeightsError for a pooling that there is not."""
    if options.pooling is None:
        return "all"
    for name in get_args(FramePooling):
        if options.pooling == name:
            pooling: FramePooling = name
            return pooling
    raise WeightsError(
        f"{content.path}: there is no pooling {options.pooling!r} of frames; choose"
        f" {', '.join(get_args(FramePooling))}"
    )


def side_of(content: Content, options: ReadOptions, usual: int, patch: int) -> int:
    """The side of frames in pixels. Raises WeightsError where they do not divide into patches."""
    size = options.size or usual
    if size % patch:
        raise WeightsError(
            f"{content.path}: frames of {size} pixels do not divide into patches of {patch}; give a size that"
            f" does, as {size // patch * patch or patch}"
        )
    return size


def assume_images(taker: Taker, options: ReadOptions, size: int, colours: str) -> None:
    """Records what files of image models do not say and nobody asked for."""
    taker.assume("mean, std", "ImageNet's", colours)
    if options.size is None:
        taker.assume("size", str(size), "as it is mostly used; ask for another with size=")
    if options.frames is None:
        taker.assume("frames", str(FRAMES), "an image model takes any number; ask for another with frames=")


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives a model on the meta device its weights, float32; nothing is copied that is so already.

    Raises RuntimeError where they are not the model's: its importer took other keys than the model has.
    """
    model.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)


def check_whole(model: nn.Module) -> None:
    """Raises RuntimeError for a tensor without values: importers fill all, those that are no weights too."""
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, value in named:
            if value.is_meta:
                raise RuntimeError(f"the {kind} {name} was given no value")


def imported(
    model: Any,
    coverage: Coverage,
    options: ReadOptions,
    pooling: FramePooling,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    patch: int,
) -> Imported:
    """An image model, whole, as an encoder of clips."""
    check_whole(model)
    if pooling == "class" and getattr(model, "cls_token", None) is None:
        raise WeightsError("the model has no class token; choose the pooling all or mean")
    encoder = FrameEncoder(model, size, mean, std, pooling)
    clip = ClipForm(
        options.frames or FRAMES, size, options.stride, options.fps, mean, std, 1, patch, encoder.width
    )
    return Imported(encoder, coverage, clip, pretraining=False)
