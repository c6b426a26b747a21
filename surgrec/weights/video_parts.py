"""What the layouts of video transformers share: shapes from keys, blocks, positions, training state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from surgrec.kernels.masking import Grid
from surgrec.models.encoder_form import EncoderForm, conv_as_linear
from surgrec.models.position import sincos_3d, sinusoid_1d
from surgrec.models.video_encoder import VideoEncoder, build_encoder
from surgrec.weights.coverage import Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.layout import ClipForm, ReadOptions

Weights = dict[str, Tensor]

PATCH: Final = "patch_embed.proj.weight"
TRAINING_STATE: Final = (
    "optimizer",
    "opt",
    "scaler",
    "lr_scheduler",
    "scheduler",
    "rng_state",
    "random_ltd",
    "loss",
)
"""Top-level names under which training scripts keep tensors that are no weights."""
SAME_TABLE: Final = 1e-5
"""Largest difference between a stored table of positions and ours that are one and the same."""


@dataclass(frozen=True)
class Published:
    """What a layout's own code and papers say where its files do not. heads: by width."""

    frames: int
    size: int
    stride: int | None
    fps: float | None
    heads: Mapping[int, int]


def roots(content: Content) -> list[str]:
    """What stands before `patch_embed.proj.weight`, of all encoders with a Conv3d there, in the file's
    order."""
    return [
        key.removesuffix(PATCH)
        for key, tensor in content.tensors.items()
        if (key == PATCH or key.endswith((f".{PATCH}", f"/{PATCH}"))) and tensor.ndim == 5
    ]


def form_at(
    content: Content, taker: Taker, root: str, published: Published, asked: ReadOptions
) -> EncoderForm:
    """The form of the encoder at `root` as it was trained, on the published clips; sinusoid_1d, zero key
    biases. Raises WeightsError."""
    width, channels, tubelet, patch, columns = taker.shape(root + PATCH)
    if channels != 3 or patch != columns:
        raise WeightsError(
            f"{content.path}: its patches are of {channels} channels and {patch} x {columns} pixels;"
            " square RGB ones can be read"
        )
    depth = len({key.split(".")[0] for key in _behind(taker, f"{root}blocks.")})
    logit_scale = f"{root}blocks.0.attn.scale"
    cosine = logit_scale in taker
    heads = taker.shape(logit_scale)[0] if cosine else heads_of(content, taker, width, published, asked)
    return EncoderForm(
        depth=depth,
        width=width,
        heads=heads,
        hidden=taker.shape(f"{root}blocks.0.mlp.fc1.weight")[0],
        frames=published.frames,
        size=published.size,
        position="sinusoid_1d",
        key_bias="zero",
        tubelet=tubelet,
        patch=patch,
        cosine=cosine,
    )


def heads_of(content: Content, taker: Taker, width: int, published: Published, asked: ReadOptions) -> int:
    """Attention heads of an encoder, which its keys do not tell. Raises WeightsError where nothing does."""
    if asked.heads is not None:
        if width % asked.heads:
            raise WeightsError(f"{content.path}: its width {width} does not divide into heads={asked.heads}")
        return asked.heads
    if width not in published.heads:
        raise WeightsError(
            f"{content.path}: has width {width}, and its keys do not tell how many attention heads that"
            " is; say heads=NUMBER behind its path's #"
        )
    taker.assume("heads", str(published.heads[width]), f"the published number for width {width}")
    return published.heads[width]


def take_patches(taker: Taker, weight: str, bias: str, form: EncoderForm) -> Weights:
    """The patch embedding, from a Conv3d."""
    shape = (form.width, 3, form.tubelet, form.patch, form.patch)
    ours = "transformer.patch_embedding"
    return {
        f"{ours}.weight": conv_as_linear(taker.take(weight, f"{ours}.weight", shape)),
        f"{ours}.bias": taker.take(bias, f"{ours}.bias", (form.width,)),
    }


def take_blocks(taker: Taker, root: str, form: EncoderForm) -> Weights:
    """All blocks that are named as timm does: norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2."""
    weights: Weights = {}
    width = form.width
    for number in range(form.depth):
        theirs, ours = f"{root}blocks.{number}.", f"transformer.blocks.{number}."
        for name in ("norm1", "norm2"):
            weights |= take_layer(taker, theirs + name, ours + name, (width,))
        weights |= take_layer(taker, f"{theirs}attn.proj", f"{ours}attention.proj", (width, width))
        weights |= take_layer(taker, f"{theirs}mlp.fc1", f"{ours}mlp.fc1", (form.hidden, width))
        weights |= take_layer(taker, f"{theirs}mlp.fc2", f"{ours}mlp.fc2", (width, form.hidden))
        pairs: list[tuple[str, str, tuple[int, ...]]] = [("qkv.weight", "qkv.weight", (3 * width, width))]
        if form.key_bias == "zero":
            pairs += [("q_bias", "q_bias", (width,)), ("v_bias", "v_bias", (width,))]
        else:
            pairs += [("qkv.bias", "qkv.bias", (3 * width,))]
        for their_name, our_name, shape in pairs:
            name = f"{ours}attention.{our_name}"
            weights[name] = taker.take(f"{theirs}attn.{their_name}", name, shape)
        if form.cosine:
            name = f"{ours}attention.logit_scale"
            weights[name] = taker.take(f"{theirs}attn.scale", name, (form.heads, 1, 1)).flatten(1)
    return weights


def take_layer(taker: Taker, theirs: str, ours: str, shape: tuple[int, ...]) -> Weights:
    """Weight of this shape and bias of a linear layer or a norm."""
    shapes = {"weight": shape, "bias": shape[:1]}
    return {
        f"{ours}.{kind}": taker.take(f"{theirs}.{kind}", f"{ours}.{kind}", size)
        for kind, size in shapes.items()
    }


def stored_positions(
    content: Content, taker: Taker, key: str, form: EncoderForm, steps: int
) -> tuple[EncoderForm, Weights]:
    """Positions [1, N, D] that a file holds, for a grid of `steps` in time and a square in space.

    Those that are one of our tables are made by it, others are kept as they are. Raises WeightsError for
    tables of another grid.
    """
    shape = taker.shape(key)
    count = shape[1] if len(shape) == 3 else 0
    side = math.isqrt(count // steps)
    if count == 0 or count != steps * side * side:
        raise WeightsError(
            f"{content.path}: {key} is {list(shape)}; of {steps} time steps and a square of patches,"
            f" [1, {steps} x n x n, {form.width}], it can be read; give the file of a model"
            " that was trained so"
        )
    form = replace(form, frames=steps * form.tubelet, size=side * form.patch)
    name = "transformer.positions.table"
    table = taker.take(key, name, (1, count, form.width))
    if table.is_meta:
        return form, {}
    table = table.flatten(0, 1).float()
    for uniform in (True, False):
        if form.width % (2 if uniform else 8) == 0 and _same(
            table, sincos_3d(form.grid, form.width, uniform)
        ):
            taker.change(
                name, f"equal to our sincos_3d, uniform_power {str(uniform).lower()}; computed, not kept"
            )
            return replace(form, position="sincos_3d", uniform_power=uniform), {}
    return replace(form, position="stored"), {name: table}


def finished(
    taker: Taker,
    form: EncoderForm,
    weights: Weights,
    published: Published,
    asked: ReadOptions,
    known: tuple[str, ...] = (),
) -> tuple[VideoEncoder, ClipForm]:
    """The encoder, for clips as they are asked for, once each key of the file is accounted for.

    known: which of `frames`, `size`, `mean` the file itself says. Raises WeightsError.
    """
    for name in ("frames", "size", "mean"):
        if name not in known and getattr(asked, name, None) is None:
            value = "ImageNet's, and std" if name == "mean" else str(getattr(form, name))
            taker.assume(name, value, "as published; the file does not say")
    form, weights = reshaped(taker, form, weights, asked)
    rate = clip_rate(taker, published, asked)
    # Before anything is built: until here, a missing tensor is an empty one.
    taker.finish()
    try:
        encoder = build_encoder(form, weights)
    except (ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{taker.path}: no encoder can be built of it ({error}); fetch its files again, or mend its"
            " configuration"
        ) from error
    return encoder, clip_of(form, *rate)


def reshaped(
    taker: Taker, form: EncoderForm, weights: Weights, asked: ReadOptions
) -> tuple[EncoderForm, Weights]:
    """Form and weights for clips of the frames and size that are asked for. Raises WeightsError."""
    wanted = replace(form, frames=asked.frames or form.frames, size=asked.size or form.size)
    try:
        old, new = form.grid, wanted.grid
    except ValueError as error:
        raise WeightsError(f"{taker.path}: {error}; give other frames or size") from error
    if old == new:
        return wanted, weights
    name = "transformer.positions.table"
    said = f"{'x'.join(map(str, old))} to {'x'.join(map(str, new))}"
    if form.position == "rotary_3d":
        taker.change(name, f"rotary positions go on from {said}: nothing is interpolated")
        return wanted, weights
    if form.position == "stored":
        if name not in weights:  # missing, which finish() tells
            return wanted, weights
        table = weights[name]
    elif form.position == "sincos_3d":
        table = sincos_3d(old, form.width, form.uniform_power)
    else:
        table = sinusoid_1d(math.prod(old), form.width)
    taker.change(name, f"positions interpolated from {said}")
    return replace(wanted, position="stored"), weights | {name: interpolated(table, old, new)}


def interpolated(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Positions [N, D] of one grid on another, trilinearly, as V-JEPA does."""
    cube = table.float().T.unflatten(1, old)[None]
    return functional.interpolate(cube, new, mode="trilinear")[0].flatten(1).T.contiguous()


def clip_rate(taker: Taker, published: Published, asked: ReadOptions) -> tuple[int | None, float | None]:
    """Stride or frames per second of clips. Raises WeightsError where both are asked for."""
    if asked.stride is not None and asked.fps is not None:
        raise WeightsError(f"{taker.path}: stride={asked.stride} and fps={asked.fps} contradict; give one")
    if asked.stride is not None or asked.fps is not None:
        return asked.stride, asked.fps
    value = f"stride {published.stride}" if published.stride is not None else f"{published.fps:g} fps"
    taker.assume("rate", value, "as published; the file does not say")
    return published.stride, published.fps


def clip_of(form: EncoderForm, stride: int | None, fps: float | None) -> ClipForm:
    """What an encoder of this form wants to see."""
    return ClipForm(
        form.frames, form.size, stride, fps, form.mean, form.std, form.tubelet, form.patch, form.width
    )


def drop_training_state(content: Content, taker: Taker) -> None:
    """Names what a training script keeps beside the weights as dropped."""
    for name, value in content.top.items():
        if isinstance(value, Tensor):
            continue
        if not any(key.startswith(f"{name}/") for key in content.tensors):
            taker.coverage.dropped.append((name, "plain values, no weights"))
        elif name in TRAINING_STATE:
            taker.drop_under(f"{name}/", "state of training, no weights")


def _behind(taker: Taker, prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in taker.keys(prefix)]


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one, other, rtol=0, atol=SAME_TABLE))
