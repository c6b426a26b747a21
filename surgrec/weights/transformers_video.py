"""VideoMAE and V-JEPA 2 as Hugging Face's transformers saves them: config.json says what the model is.

Queries, keys and values are matrices of their own there. VideoMAE's biases are stored as q_bias and v_bias,
by newer releases as query.bias and value.bias; a model whose configuration has them and whose file does not
is refused, never filled with zeros.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from surgrec.models.encoder_form import EncoderForm
from surgrec.weights.clips import finished
from surgrec.weights.colours import colours, is_number
from surgrec.weights.coverage import Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import CONFIG, Content
from surgrec.weights.layout import Imported, Layout, ReadOptions, refuse
from surgrec.weights.video_parts import Published, Weights, take_layer, take_patches
from surgrec.weights.videomae import PUBLISHED as VIDEOMAE_PUBLISHED
from surgrec.weights.vjepa import VJEPA2_PUBLISHED

_DECODER: Final = "of pretraining alone: the encoder is loaded"
_CLASSES: Final = "of the classes that it was fine-tuned on"


def _fits_videomae(content: Content) -> bool:
    return (content.config or {}).get("model_type") == "videomae"


def _fits_vjepa2(content: Content) -> bool:
    return (content.config or {}).get("model_type") == "vjepa2"


def _read_videomae(content: Content, asked: ReadOptions) -> Imported:
    layout = TRANSFORMERS_VIDEOMAE.name
    config = _config(content, asked, layout)
    taker = Taker(content.path, content.tensors)
    base = "videomae." if taker.keys("videomae.") else ""
    # By the configuration: a model that pools by a mean has no final norm, and one with a head another one.
    final_norm = not _flag(content, config, "use_mean_pooling", True)
    pooled = "fc_norm.weight" in taker or (not final_norm and bool(taker.keys("classifier.")))
    mean, std = colours(content)
    form = EncoderForm(
        depth=_number(content, config, "num_hidden_layers", 12),
        width=_number(content, config, "hidden_size", 768),
        heads=_number(content, config, "num_attention_heads", 12),
        hidden=_number(content, config, "intermediate_size", 3072),
        frames=_number(content, config, "num_frames", 16),
        size=_number(content, config, "image_size", 224),
        position="sinusoid_1d",
        key_bias="zero",
        tubelet=_number(content, config, "tubelet_size", 2),
        patch=_number(content, config, "patch_size", 16),
        final_norm=final_norm,
        pool_norm="layer_norm" if pooled else "none",
        eps=_eps(content, config, 1e-12),
        # The class of transformers leaves this norm at PyTorch's own.
        pool_eps=1e-5,
        mean=mean,
        std=std,
    )
    embedding = f"{base}embeddings.patch_embeddings.projection"
    weights = take_patches(taker, f"{embedding}.weight", f"{embedding}.bias", form)
    biased = _flag(content, config, "qv_bias", True)
    for number in range(form.depth):
        weights |= _videomae_block(taker, f"{base}encoder.layer.{number}.", number, form, biased)
    if final_norm:
        weights |= take_layer(taker, f"{base}layernorm", "transformer.norm", (form.width,))
    if pooled:
        weights |= take_layer(taker, "fc_norm", "pool_norm", (form.width,))
    pretraining = bool(taker.keys("decoder."))
    for name in ("decoder.", "encoder_to_decoder."):
        taker.drop_under(name, _DECODER)
    taker.drop("mask_token", _DECODER)
    taker.drop("position_embeddings", "a fixed table, computed")
    taker.drop_under("classifier.", f"head, {_CLASSES}")
    return _imported(content, taker, form, weights, VIDEOMAE_PUBLISHED, asked, pretraining)


def _videomae_block(taker: Taker, theirs: str, number: int, form: EncoderForm, biased: bool) -> Weights:
    width, ours = form.width, f"transformer.blocks.{number}."
    own = f"{theirs}attention.attention."
    names = {"q_bias": f"{own}q_bias", "v_bias": f"{own}v_bias"}
    if names["q_bias"] not in taker:
        names = {"q_bias": f"{own}query.bias", "v_bias": f"{own}value.bias"}
    weights = _joined(taker, own, f"{ours}attention.qkv", width, ("weight",))
    for bias, key in names.items():
        name = f"{ours}attention.{bias}"
        weights[name] = taker.take(key, name, (width,)) if biased else torch.zeros(width)
    if not biased:
        taker.change(f"{ours}attention.q_bias, v_bias", f"zero: `qv_bias` of {CONFIG} is false")
    weights |= take_layer(taker, f"{theirs}layernorm_before", f"{ours}norm1", (width,))
    weights |= take_layer(taker, f"{theirs}attention.output.dense", f"{ours}attention.proj", (width, width))
    weights |= take_layer(taker, f"{theirs}layernorm_after", f"{ours}norm2", (width,))
    weights |= take_layer(taker, f"{theirs}intermediate.dense", f"{ours}mlp.fc1", (form.hidden, width))
    weights |= take_layer(taker, f"{theirs}output.dense", f"{ours}mlp.fc2", (width, form.hidden))
    return weights


def _read_vjepa2(content: Content, asked: ReadOptions) -> Imported:
    layout = TRANSFORMERS_VJEPA2.name
    config = _config(content, asked, layout)
    taker = Taker(content.path, content.tensors)
    base = "vjepa2." if taker.keys("vjepa2.") else ""
    if not _flag(content, config, "qkv_bias", True):
        raise WeightsError(
            f"{content.path}: `qkv_bias` of its {CONFIG} is false; models of the layout {layout}"
            " with biases can be read"
        )
    width = _number(content, config, "hidden_size", 1024)
    ratio = config.get("mlp_ratio", 4.0)
    if not is_number(ratio) or ratio <= 0:
        raise WeightsError(f"{content.path}: `mlp_ratio` of its {CONFIG} is {ratio!r}; mend it")
    mean, std = colours(content)
    form = EncoderForm(
        depth=_number(content, config, "num_hidden_layers", 24),
        width=width,
        heads=_number(content, config, "num_attention_heads", 16),
        hidden=int(width * ratio),
        frames=_number(content, config, "frames_per_clip", 64),
        size=_number(content, config, "crop_size", 256),
        position="rotary_3d",
        key_bias="learned",
        tubelet=_number(content, config, "tubelet_size", 2),
        patch=_number(content, config, "patch_size", 16),
        eps=_eps(content, config, 1e-6),
        mean=mean,
        std=std,
    )
    embedding = f"{base}encoder.embeddings.patch_embeddings.proj"
    weights = take_patches(taker, f"{embedding}.weight", f"{embedding}.bias", form)
    for number in range(form.depth):
        theirs, ours = f"{base}encoder.layer.{number}.", f"transformer.blocks.{number}."
        weights |= _joined(taker, f"{theirs}attention.", f"{ours}attention.qkv", width, ("weight", "bias"))
        weights |= take_layer(taker, f"{theirs}attention.proj", f"{ours}attention.proj", (width, width))
        for name in ("norm1", "norm2"):
            weights |= take_layer(taker, theirs + name, ours + name, (width,))
        weights |= take_layer(taker, f"{theirs}mlp.fc1", f"{ours}mlp.fc1", (form.hidden, width))
        weights |= take_layer(taker, f"{theirs}mlp.fc2", f"{ours}mlp.fc2", (width, form.hidden))
    weights |= take_layer(taker, f"{base}encoder.layernorm", "transformer.norm", (width,))
    pretraining = bool(taker.keys(f"{base}predictor."))
    taker.drop_under(f"{base}predictor.", "predictor, of pretraining alone")
    taker.drop_under("pooler.", f"attentive pooling, {_CLASSES}")
    taker.drop_under("classifier.", f"head, {_CLASSES}")
    return _imported(content, taker, form, weights, VJEPA2_PUBLISHED, asked, pretraining)


def _joined(taker: Taker, theirs: str, ours: str, width: int, kinds: tuple[str, ...]) -> Weights:
    """One matrix for queries, keys and values, of three."""
    shapes = {"weight": (width, width), "bias": (width,)}
    weights: Weights = {}
    for kind in kinds:
        parts = [
            taker.take(f"{theirs}{name}.{kind}", f"{ours}.{kind}", shapes[kind])
            for name in ("query", "key", "value")
        ]
        # What is missing lies on the meta device until finish() tells.
        if not any(part.is_meta for part in parts):
            weights[f"{ours}.{kind}"] = torch.cat(parts)
    return weights


def _imported(
    content: Content,
    taker: Taker,
    form: EncoderForm,
    weights: Weights,
    published: Published,
    asked: ReadOptions,
    pretraining: bool,
) -> Imported:
    known = ("frames", "size", "mean") if content.preprocessor else ("frames", "size")
    encoder, clip = finished(taker, form, weights, published, asked, known)
    return Imported(encoder, encoder.form, taker.coverage, clip, pretraining)


def _config(content: Content, asked: ReadOptions, layout: str) -> dict[str, Any]:
    """The configuration, of a model that can be computed here. Raises WeightsError."""
    refuse(content, layout, part=asked.part, inflate=asked.inflate, pooling=asked.pooling, heads=asked.heads)
    if content.config is None:
        raise WeightsError(
            f"{content.path}: a file of the layout {layout} is read with the {CONFIG} beside it; give"
            " the folder"
        )
    activation = content.config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise WeightsError(
            f"{content.path}: `hidden_act` of its {CONFIG} is {activation!r}; models with the"
            " exact gelu can be read"
        )
    return content.config


def _number(content: Content, config: dict[str, Any], name: str, default: int) -> int:
    """A count; one that a configuration leaves out is the default of transformers. Raises WeightsError."""
    value = config.get(name, default)
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 20:
        raise WeightsError(
            f"{content.path}: `{name}` of its {CONFIG} is {value!r}; one whole number is needed"
        )
    return value


def _flag(content: Content, config: dict[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise WeightsError(f"{content.path}: `{name}` of its {CONFIG} is {value!r}; true or false is needed")
    return value


def _eps(content: Content, config: dict[str, Any], default: float) -> float:
    value = config.get("layer_norm_eps", default)
    if not isinstance(value, float) or not 0 < value < 1:
        raise WeightsError(f"{content.path}: `layer_norm_eps` of its {CONFIG} is {value!r}; mend it")
    return value


TRANSFORMERS_VIDEOMAE: Final = Layout(
    "transformers-videomae",
    "VideoMAE of Hugging Face's transformers, a folder",
    _fits_videomae,
    _read_videomae,
)
TRANSFORMERS_VJEPA2: Final = Layout(
    "transformers-vjepa2", "V-JEPA 2 of Hugging Face's transformers, a folder", _fits_vjepa2, _read_vjepa2
)
