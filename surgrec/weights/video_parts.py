"""What the layouts of video transformers share: shapes from keys, blocks, training state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from surgrec.models.encoder_form import EncoderForm, conv_as_linear
from surgrec.weights.coverage import Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.layout import ReadOptions

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
    width, channels, tubelet, patch, columns = taker.dimensions(root + PATCH, 5)
    if channels != 3 or patch != columns:
        raise WeightsError(
            f"{content.path}: its patches are of {channels} channels and {patch} x {columns} pixels;"
            " square RGB ones can be read"
        )
    depth = len({key.split(".")[0] for key in _behind(taker, f"{root}blocks.")})
    logit_scale = f"{root}blocks.0.attn.scale"
    cosine = logit_scale in taker
    heads = (
        taker.dimensions(logit_scale, 3)[0] if cosine else heads_of(content, taker, width, published, asked)
    )
    return EncoderForm(
        depth=depth,
        width=width,
        heads=heads,
        hidden=taker.dimensions(f"{root}blocks.0.mlp.fc1.weight", 2)[0],
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
