"""The keys of DINOv3's files: its own, and those of transformers' DINOv3ViTModel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from surgrec.models.dinov3 import EPS, DinoForm
from surgrec.weights.colours import LARGEST, is_number
from surgrec.weights.coverage import Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.per_frame import UNSEEN, depth_of, drop_beside, network_at

REGISTERS: Final = "storage_tokens"
ROPE_THETA: Final = 100.0
"""Of all published ones; what transformers takes where a configuration does not say it."""


def official(content: Content, taker: Taker) -> tuple[DinoForm, dict[str, Tensor]]:
    """By the names of the official files: a state dict, or the teacher of a training checkpoint."""
    prefix = network_at(content, REGISTERS)
    gated = f"{prefix}blocks.0.mlp.w1.weight" in taker
    (quarter,) = taker.dimensions(f"{prefix}rope_embed.periods", 1)
    form = _form(
        taker,
        _Marks(
            f"{prefix}{REGISTERS}",
            f"{prefix}patch_embed.proj.weight",
            f"{prefix}blocks.",
            f"mlp.{'w1' if gated else 'fc1'}",
            "attn.qkv.bias",
        ),
        gated,
        True,
        EPS,
        taker.take(f"{prefix}rope_embed.periods", "rope.periods", (quarter,)),
    )
    weights = _outside(
        taker, form, {name: f"{prefix}{name}" for name in _OUTSIDE} | {"reg_token": f"{prefix}{REGISTERS}"}
    )
    width = form.width
    for layer in range(form.depth):
        theirs, ours = f"{prefix}blocks.{layer}.", f"blocks.{layer}."
        parts = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attn.proj"}
        weights |= _inside(taker, form, theirs, ours, parts | _mlp(form, "mlp.w1", "mlp.w2", "mlp.w3"))
        for number in (1, 2):
            weights[f"{ours}gamma_{number}"] = taker.take(
                f"{theirs}ls{number}.gamma", f"{ours}gamma_{number}", (width,)
            )
        weights[f"{ours}attn.qkv.weight"] = taker.take(
            f"{theirs}attn.qkv.weight", f"{ours}attn.qkv.weight", (3 * width, width)
        )
        if form.biased:
            weights |= _masked_bias(taker, theirs, ours, width)
    taker.drop(f"{prefix}mask_token", UNSEEN)
    taker.drop_under(f"{prefix}local_cls_norm.", "of pretraining: of the class token of small crops")
    for head in ("dino_head.", "ibot_head."):
        taker.drop_under(f"{prefix.removesuffix('backbone.')}{head}", "of pretraining: a head of its losses")
    drop_beside(content, taker, prefix)
    return form, weights


def transformers(taker: Taker, config: dict[str, Any]) -> tuple[DinoForm, dict[str, Tensor]]:
    """By the names of transformers' DINOv3ViTModel."""
    inner = "model." if any(key.startswith("model.layer.") for key in taker.keys()) else ""  # noqa: SIM118
    layers = f"{inner}layer."
    gated = config.get("use_gated_mlp") is True
    _supported(taker, config, gated)
    patches = "embeddings.patch_embeddings.weight"
    quarter = taker.dimensions(patches, 4)[0] // config["num_attention_heads"] // 4
    theta = float(config.get("rope_theta", ROPE_THETA))
    form = _form(
        taker,
        _Marks("embeddings.register_tokens", patches, layers, "mlp.up_proj", "attention.q_proj.bias"),
        gated,
        False,
        float(config.get("layer_norm_eps", EPS)),
        theta ** (torch.arange(quarter, dtype=torch.float32) / quarter),
    )
    _as_configured(taker, config, form)
    names = {
        "cls_token": "embeddings.cls_token",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.bias",
        "reg_token": "embeddings.register_tokens",
        "norm.weight": "norm.weight",
        "norm.bias": "norm.bias",
    }
    weights = _outside(taker, form, names)
    width = form.width
    for layer in range(form.depth):
        theirs, ours = f"{layers}{layer}.", f"blocks.{layer}."
        parts = {"norm1": "norm1", "norm2": "norm2", "attention.o_proj": "attn.proj"}
        mlp = _mlp(form, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        weights |= _inside(taker, form, theirs, ours, parts | mlp)
        for number in (1, 2):
            weights[f"{ours}gamma_{number}"] = taker.take(
                f"{theirs}layer_scale{number}.lambda1", f"{ours}gamma_{number}", (width,)
            )
        for letter in "qkv":
            for kind, shape in (("weight", (width, width)), ("bias", (width,))):
                if kind == "weight" or (form.biased and letter != "k"):
                    name = f"{ours}attn.{letter}_proj.{kind}"
                    weights[name] = taker.take(f"{theirs}attention.{letter}_proj.{kind}", name, shape)
    taker.drop("embeddings.mask_token", UNSEEN)
    return form, weights


@dataclass(frozen=True)
class _Marks:
    """Keys that tell a form. layers: what stands before their number. hidden, bias: within a layer."""

    registers: str
    patches: str
    layers: str
    hidden: str
    bias: str


def _form(taker: Taker, marks: _Marks, gated: bool, fused: bool, eps: float, periods: Tensor) -> DinoForm:
    """periods: of a quarter of a head's width; on the meta device where the file lacks them, which finish()
    tells. Raises WeightsError."""
    width, _, patch, _ = taker.dimensions(marks.patches, 4)
    return DinoForm(
        depth=depth_of(taker, marks.layers),
        width=width,
        heads=_heads(taker, width, 4 * len(periods)),
        hidden=taker.dimensions(f"{marks.layers}0.{marks.hidden}.weight", 2)[0],
        patch=patch,
        registers=taker.dimensions(marks.registers, 3)[1],
        gated=gated,
        biased=f"{marks.layers}0.{marks.bias}" in taker,
        fused=fused,
        eps=eps,
        periods=() if periods.is_meta else tuple(periods.float().tolist()),
    )


_OUTSIDE: Final = (
    "cls_token",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "norm.weight",
    "norm.bias",
)


def _outside(taker: Taker, form: DinoForm, names: dict[str, str]) -> dict[str, Tensor]:
    """What is not of a layer, by timm's names."""
    width = form.width
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "reg_token": (1, form.registers, width),
        "patch_embed.proj.weight": (width, 3, form.patch, form.patch),
    }
    return {ours: taker.take(theirs, ours, shapes.get(ours, (width,))) for ours, theirs in names.items()}


def _mlp(form: DinoForm, gate: str, up: str, down: str) -> dict[str, str]:
    """Names of the MLP's layers: theirs to timm's. `up`, `down` are replaced in an official file without
    gates."""
    if form.gated:
        return {gate: "mlp.fc1_g", up: "mlp.fc1_x", down: "mlp.fc2"}
    if form.fused:
        return {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    return {up: "mlp.fc1", down: "mlp.fc2"}


def _inside(taker: Taker, form: DinoForm, theirs: str, ours: str, parts: dict[str, str]) -> dict[str, Tensor]:
    """Linear layers and norms of a layer, weight and bias."""
    width, hidden = form.width, form.hidden
    found = {}
    for source, target in parts.items():
        shape: tuple[int, ...] = (width,)
        if target.startswith("mlp.fc1"):
            shape = (hidden, width)
        elif target == "mlp.fc2":
            shape = (width, hidden)
        elif target == "attn.proj":
            shape = (width, width)
        for kind, dims in (("weight", shape), ("bias", shape[:1])):
            name = f"{ours}{target}.{kind}"
            found[name] = taker.take(f"{theirs}{source}.{kind}", name, dims)
    return found


def _masked_bias(taker: Taker, theirs: str, ours: str, width: int) -> dict[str, Tensor]:
    """Biases of queries and values; those of keys are masked, whatever the file holds in their place. Raises
    WeightsError for another mask."""
    bias = taker.take(f"{theirs}attn.qkv.bias", f"{ours}attn.q_bias, v_bias", (3 * width,))
    mask = taker.take(f"{theirs}attn.qkv.bias_mask", f"{ours}attn.k_bias", (3 * width,))
    q, k, v = mask.chunk(3)
    if not mask.is_meta and not (bool((q == 1).all() and (v == 1).all()) and not bool(k.any())):
        raise WeightsError(
            f"{taker.path}: {theirs}attn.qkv.bias_mask hides other biases than those of keys; this is no"
            " published DINOv3. Give its file as it was released"
        )
    return {f"{ours}attn.q_bias": bias[:width], f"{ours}attn.v_bias": bias[2 * width :]}


def _heads(taker: Taker, width: int, head: int) -> int:
    """Heads of width `head`, in which each place turns a quarter's pairs. Raises WeightsError."""
    if not head or width % head:
        raise WeightsError(
            f"{taker.path}: a width of {width} does not divide into heads of {head}, as its rotary positions"
            " say; the file is damaged, or no DINOv3: fetch it again"
        )
    return width // head


def _supported(taker: Taker, config: dict[str, Any], gated: bool) -> None:
    """Raises WeightsError for a configuration that no published DINOv3 has."""
    heads = config.get("num_attention_heads")
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise WeightsError(f"{taker.path}: num_attention_heads is {heads!r} in config.json; fetch it again")
    numbers = {"rope_theta": (ROPE_THETA, LARGEST), "layer_norm_eps": (EPS, 1.0)}
    for name, (default, most) in numbers.items():
        value = config.get(name, default)
        if not is_number(value) or not 0 < value < most:
            raise WeightsError(
                f"{taker.path}: {name} is {value!r} in config.json, no number that it can be; fetch it again"
            )
    wanted = {
        "key_bias": (config.get("key_bias", False), False),
        "hidden_act": (config.get("hidden_act", "gelu"), "silu" if gated else "gelu"),
    }
    for name, (value, supported) in wanted.items():
        if value != supported:
            raise WeightsError(
                f"{taker.path}: {name} is {value!r} in config.json, where published DINOv3 models have"
                f" {supported!r}; give one of these"
            )


def _as_configured(taker: Taker, config: dict[str, Any], form: DinoForm) -> None:
    """Raises WeightsError where keys and configuration are of two models: layers may be missing."""
    found = {
        "num_hidden_layers": form.depth,
        "hidden_size": form.width,
        "intermediate_size": form.hidden,
        "patch_size": form.patch,
        "num_register_tokens": form.registers,
    }
    for name, value in found.items():
        if config.get(name, value) != value:
            raise WeightsError(
                f"{taker.path}: {name} is {config[name]!r} in config.json, and {value} by the tensors beside"
                " it; files of two models, or not whole: fetch all of them again"
            )
