"""Our weights by the names of transformers' VideoMAE and VJEPA2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from surgrec.exports.names import convolution, prefixed
from surgrec.exports.source import OURS, Part, Source

_VIDEOMAE: Final = {
    "attention.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}


def videomae_tensors(source: Source) -> dict[str, Tensor]:
    """Of VideoMAEForPreTraining."""
    tensors, model = source.tensors, source.config.model
    weight = convolution(tensors["encoder.patch_embedding.weight"], model.tubelet, model.patch)
    named = {
        "videomae.embeddings.patch_embeddings.projection.weight": weight,
        "videomae.embeddings.patch_embeddings.projection.bias": tensors["encoder.patch_embedding.bias"],
        "encoder_to_decoder.weight": tensors["encoder_to_decoder.weight"],
        "mask_token": tensors["decoder.mask_token"][None, None],
    }
    for kind in ("weight", "bias"):
        named[f"videomae.layernorm.{kind}"] = tensors[f"encoder.norm.{kind}"]
        for name in ("norm", "head"):
            named[f"decoder.{name}.{kind}"] = tensors[f"decoder.{name}.{kind}"]
    for ours, theirs in (("encoder", "videomae.encoder.layer"), ("decoder", "decoder.decoder_layers")):
        for number in range(_depth(tensors, ours)):
            block = _videomae_block(tensors, f"{ours}.blocks.{number}")
            named |= prefixed(f"{theirs}.{number}.", block)
    return named


def _videomae_block(tensors: Mapping[str, Tensor], block: str) -> dict[str, Tensor]:
    attention = f"{block}.attention"
    query, key, value = tensors[f"{attention}.qkv.weight"].chunk(3)
    named = {
        "attention.attention.query.weight": query,
        "attention.attention.key.weight": key,
        "attention.attention.value.weight": value,
        "attention.attention.query.bias": tensors[f"{attention}.q_bias"],
        "attention.attention.value.bias": tensors[f"{attention}.v_bias"],
    }
    for ours, theirs in _VIDEOMAE.items():
        for kind in ("weight", "bias"):
            named[f"{theirs}.{kind}"] = tensors[f"{block}.{ours}.{kind}"]
    return named


def vjepa2_tensors(source: Source, part: Part) -> dict[str, Tensor]:
    """Of VJEPA2Model, whose one encoder is that of `part`."""
    tensors, model, encoder = source.tensors, source.config.model, OURS[part]
    weight = convolution(tensors[f"{encoder}.patch_embedding.weight"], model.tubelet, model.patch)
    named = {
        "encoder.embeddings.patch_embeddings.proj.weight": weight,
        "encoder.embeddings.patch_embeddings.proj.bias": tensors[f"{encoder}.patch_embedding.bias"],
        "predictor.embeddings.mask_tokens": tensors["predictor.mask_tokens"][:, None, None],
    }
    for kind in ("weight", "bias"):
        named[f"encoder.layernorm.{kind}"] = tensors[f"{encoder}.norm.{kind}"]
        named[f"predictor.layernorm.{kind}"] = tensors[f"predictor.norm.{kind}"]
        named[f"predictor.proj.{kind}"] = tensors[f"predictor.proj.{kind}"]
        embeddings = f"predictor.embeddings.predictor_embeddings.{kind}"
        named[embeddings] = tensors[f"predictor.embedding.{kind}"]
    for ours, theirs in ((encoder, "encoder.layer"), ("predictor", "predictor.layer")):
        for number in range(_depth(tensors, ours)):
            block = _vjepa2_block(tensors, f"{ours}.blocks.{number}")
            named |= prefixed(f"{theirs}.{number}.", block)
    return named


def _vjepa2_block(tensors: Mapping[str, Tensor], block: str) -> dict[str, Tensor]:
    named = {}
    for kind in ("weight", "bias"):
        parts = tensors[f"{block}.attention.qkv.{kind}"].chunk(3)
        for name, tensor in zip(("query", "key", "value"), parts, strict=True):
            named[f"attention.{name}.{kind}"] = tensor
        for name in ("attention.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            named[f"{name}.{kind}"] = tensors[f"{block}.{name}.{kind}"]
    return named


def _depth(tensors: Mapping[str, Tensor], stack: str) -> int:
    prefix = f"{stack}.blocks."
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
