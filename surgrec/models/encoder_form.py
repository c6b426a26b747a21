"""What a video encoder is, in plain values: enough to build it again and fill it with its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from surgrec.configs.model import IMAGENET_MEAN, IMAGENET_STD, AttentionBackend, Position
from surgrec.kernels.patchify import token_grid
from surgrec.models.vit import LAYER_NORM_EPS, KeyBias, Placing, Positions, VisionTransformer

PoolNorm = Literal["none", "layer_norm"]


@dataclass(frozen=True)
class EncoderForm:
    """hidden: width inside the MLPs. frames, size: of its clips. uniform_power: of sincos_3d. cosine: of its
    attention. pool_norm: what follows the mean over tokens. eps: of layer norms. pool_eps: of
    pool_norm. mean, std: of the
    colour channels, of values in 0..1."""

    depth: int
    width: int
    heads: int
    hidden: int
    frames: int
    size: int
    position: Placing
    key_bias: KeyBias
    tubelet: int = 2
    patch: int = 16
    uniform_power: bool = True
    cosine: bool = False
    final_norm: bool = True
    pool_norm: PoolNorm = "none"
    eps: float = LAYER_NORM_EPS
    pool_eps: float = LAYER_NORM_EPS
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens in time, height and width. Raises ValueError where clips do not divide into them."""
        return token_grid((self.frames, self.size, self.size, 3), self.tubelet, self.patch)

    @property
    def values(self) -> int:
        """Of a token's pixels."""
        return self.tubelet * self.patch**2 * 3


def document_of(form: EncoderForm) -> dict[str, Any]:
    """Plain values of a form, as JSON gives them again."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(form).items()}


def form_from(document: Mapping[str, Any]) -> EncoderForm:
    """A form from plain values, as document_of gives them. Raises ValueError."""
    known = {field.name: field for field in fields(EncoderForm)}
    if set(document) != set(known):
        raise ValueError(
            f"an encoder's form has {', '.join(known)}; here are {', '.join(map(str, document))}"
        )
    values: dict[str, Any] = {}
    for name, value in document.items():
        if name in ("mean", "std"):
            numbers = value if isinstance(value, list | tuple) else ()
            if len(numbers) != 3 or not all(_is_number(item) for item in numbers):
                raise ValueError(f"`{name}` of an encoder's form is {value!r}")
            values[name] = tuple(float(item) for item in numbers)
            continue
        default = known[name].type
        right = {
            "int": _is_number(value) and isinstance(value, int) and value > 0,
            "float": _is_number(value) and value > 0,
            "bool": isinstance(value, bool),
            "Placing": value in (*get_args(Position), "stored"),
            "KeyBias": value in get_args(KeyBias),
            "PoolNorm": value in get_args(PoolNorm),
        }[str(default)]
        if not right:
            raise ValueError(f"`{name}` of an encoder's form is {value!r}")
        values[name] = value
    return EncoderForm(**values)


def transformer_of(form: EncoderForm, backend: AttentionBackend = "auto") -> VisionTransformer:
    """A transformer without weights, on the meta device, but for its positions. Raises ValueError where form
    and grid do not fit."""
    with torch.device("meta"):
        transformer = VisionTransformer(
            form.depth,
            form.width,
            form.heads,
            form.grid,
            form.values,
            "stored",
            key_bias=form.key_bias,
            backend=backend,
            hidden=form.hidden,
            cosine=form.cosine,
            final_norm=form.final_norm,
        )
    transformer.positions = Positions(form.position, form.grid, form.width, form.heads, form.uniform_power)
    for part in transformer.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = form.eps
    return transformer


def conv_as_linear(weight: Tensor) -> Tensor:
    """[D, values] from the weight of a Conv3d [D, channel, time, row, column]: see kernels.patchify."""
    return weight.permute(0, 2, 3, 4, 1).flatten(1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
