"""Endo-FM (Wang et al. 2023, arXiv 2306.16741): a TimeSformer with divided space-time attention.

Files of TimeSformer, of SVT (Ranasinghe et al. 2022) and of Endo-FM have the same names.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from surgrec.configs.model import IMAGENET_MEAN, IMAGENET_STD
from surgrec.models.network_form import NetworkForm, build_network
from surgrec.weights.coverage import Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.layout import ClipForm, Imported, Layout, ReadOptions, refuse
from surgrec.weights.per_frame import (
    check_whole,
    depth_of,
    drop_beside,
    fill,
    network_at,
    pooling_of,
    rate_asked,
    side_of,
)

NAME: Final = "endofm"
HEAD_WIDTH: Final = 64
"""Of all published TimeSformers; their files do not say it."""
TIME: Final = "time_embed"
TIMESFORMER: Final = "model_state/"
"""Where files of TimeSformer itself have their weights."""


def fits(content: Content) -> bool:
    """A learned time, and attention over time beside that over space."""
    return content.config is None and any(
        key.endswith("blocks.0.temporal_attn.qkv.weight") for key in content.tensors
    )


def read(content: Content, options: ReadOptions) -> Imported:
    """Raises WeightsError."""
    refuse(content, NAME, part=options.part, inflate=options.inflate)
    pooling = pooling_of(content, options, ("own", "all"))
    taker = Taker(content.path, content.tensors)
    prefix = network_at(content, TIME)
    width, _, patch, _ = taker.dimensions(f"{prefix}patch_embed.proj.weight", 4)
    hidden = taker.dimensions(f"{prefix}blocks.0.mlp.fc1.weight", 2)[0]
    frames = taker.dimensions(f"{prefix}{TIME}", 3)[1]
    places = taker.dimensions(f"{prefix}pos_embed", 3)[1] - 1
    side = math.isqrt(max(places, 0))
    if side * side != places or not places:
        raise WeightsError(
            f"{content.path}: pos_embed has {places} places of a frame, which fill no square; name another"
            " layout, or give another file"
        )
    heads = options.heads or width // HEAD_WIDTH
    if not heads or width % heads:
        raise WeightsError(
            f"{content.path}: a width of {width} does not divide into {heads} heads; say heads=NUMBER"
        )
    depth = depth_of(taker, f"{prefix}blocks.")
    weights = _weights(taker, prefix, depth, (width, hidden, patch, places, frames))
    for head in dict.fromkeys((prefix, prefix.removesuffix("backbone."))):
        taker.drop_under(f"{head}head.", "a classifier's, or of the losses of pretraining")
    drop_beside(content, taker, prefix)
    if options.heads is None:
        taker.assume("heads", str(heads), f"each {HEAD_WIDTH} wide, as of all published ones")
    mean, std = (IMAGENET_MEAN, IMAGENET_STD)
    if prefix.startswith(TIMESFORMER):
        mean, std = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
        taker.assume("mean, std", "0.45, 0.225", "those of TimeSformer's training")
    else:
        taker.assume("mean, std", "ImageNet's", "those of Endo-FM's pretraining")
    rate = rate_asked(taker, options)
    size = side_of(content, options, side * patch, patch)
    wanted = options.frames or frames
    coverage = taker.finish()
    if size != side * patch:
        weights["place"] = _nearest_places(weights["place"], side, size // patch)
        there = f"{size // patch}x{size // patch}"
        coverage.changed.append(("place", f"positions interpolated from {side}x{side} to {there} (nearest)"))
    if wanted != frames:
        weights["time"] = functional.interpolate(weights["time"].mT.float(), wanted, mode="nearest").mT
        coverage.changed.append(("time", f"positions interpolated from {frames} to {wanted} (nearest)"))

    made_with = {"depth": depth, "width": width, "heads": heads, "hidden": hidden, "patch": patch}
    form = NetworkForm("timesformer", made_with, wanted, size, mean, std, pooling)
    model = build_network(form)
    fill(model, weights)
    check_whole(model)
    clip = ClipForm(wanted, size, *rate, mean, std, 1, patch, width, pooling)
    return Imported(model, form, coverage, clip, pretraining=False)


ENDOFM: Final = Layout(NAME, "TimeSformer with divided attention (Endo-FM, SVT, TimeSformer)", fits, read)


def _weights(
    taker: Taker, prefix: str, depth: int, sizes: tuple[int, int, int, int, int]
) -> dict[str, Tensor]:
    """By our names. sizes: width, hidden, patch, places, frames."""
    width, hidden, patch, places, frames = sizes
    whole: dict[str, tuple[str, tuple[int, ...]]] = {
        "class_token": ("cls_token", (1, 1, width)),
        "place": ("pos_embed", (1, 1 + places, width)),
        "time": (TIME, (1, frames, width)),
        "patch_embedding.weight": ("patch_embed.proj.weight", (width, 3, patch, patch)),
        "patch_embedding.bias": ("patch_embed.proj.bias", (width,)),
        "norm.weight": ("norm.weight", (width,)),
        "norm.bias": ("norm.bias", (width,)),
    }
    parts: dict[str, tuple[str, tuple[int, ...]]] = {
        "time_norm": ("temporal_norm1", (width,)),
        "time_attention.qkv": ("temporal_attn.qkv", (3 * width, width)),
        "time_attention.proj": ("temporal_attn.proj", (width, width)),
        "time_linear": ("temporal_fc", (width, width)),
        "norm1": ("norm1", (width,)),
        "attention.qkv": ("attn.qkv", (3 * width, width)),
        "attention.proj": ("attn.proj", (width, width)),
        "norm2": ("norm2", (width,)),
        "mlp.fc1": ("mlp.fc1", (hidden, width)),
        "mlp.fc2": ("mlp.fc2", (width, hidden)),
    }
    for layer in range(depth):
        for ours, (theirs, shape) in parts.items():
            for kind, dims in (("weight", shape), ("bias", shape[:1])):
                whole[f"blocks.{layer}.{ours}.{kind}"] = (f"blocks.{layer}.{theirs}.{kind}", dims)
    return {ours: taker.take(f"{prefix}{theirs}", ours, shape) for ours, (theirs, shape) in whole.items()}


def _nearest_places(table: Tensor, side: int, wanted: int) -> Tensor:
    """The table [1, 1 + side * side, D] of another grid. TimeSformer takes the nearest place, and so is it
    here; the class token keeps its own."""
    square = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scaled = functional.interpolate(square, (wanted, wanted), mode="nearest")
    return torch.cat([table[:, :1].float(), scaled.flatten(2).mT], dim=1)
