"""One encoder as a safetensors file that timm loads into a model of surgrec.timm_models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from surgrec.configs.convert import ConvertConfig
from surgrec.configs.data import DataConfig
from surgrec.configs.model import JepaConfig, MaeConfig
from surgrec.exports.comparison import Check, clips_for, compare, features_of
from surgrec.exports.model_file import TIMM_FORMAT
from surgrec.exports.names import fused_bias, shared_encoder
from surgrec.exports.source import Part, Source
from surgrec.exports.video_vit import VideoTransformer, normalised
from surgrec.models.position import sincos_3d, sinusoid_1d
from surgrec.timm_models import timm_name
from surgrec.training.tensor_file import write_tensors


def write(source: Source, config: ConvertConfig, path: Path) -> None:
    """See ExportFormat."""
    chosen = source.part(config.part)
    tensors = timm_tensors(source, chosen)
    about = asdict(source.about) | {"format": TIMM_FORMAT, "format_version": 1, "part": chosen}
    write_tensors(
        path, tensors, {"surgrec": json.dumps(about, sort_keys=True, allow_nan=False), "format": "pt"}
    )


def timm_tensors(source: Source, part: Part) -> dict[str, torch.Tensor]:
    """The weights of one encoder, by the names of VideoTransformer, with its positions."""
    model = source.config.model
    named = fused_bias(shared_encoder(source.encoder_tensors(part), model.tubelet, model.patch))
    return positions_of(source) | named


def positions_of(source: Source) -> dict[str, torch.Tensor]:
    """`pos_embed` [1, N, D] of fixed positions; nothing of rotary ones."""
    transformer, model = source.encoder(source.part(None)).transformer, source.config.model
    if model.position == "rotary_3d":
        return {}
    if model.position == "sincos_3d":
        uniform = model.uniform_power if isinstance(model, JepaConfig) else True
        return {"pos_embed": sincos_3d(transformer.grid, transformer.width, uniform)[None]}
    tokens = transformer.grid[0] * transformer.grid[1] * transformer.grid[2]
    return {"pos_embed": sinusoid_1d(tokens, transformer.width)[None]}


def keywords_of(model: MaeConfig | JepaConfig, data: DataConfig) -> dict[str, Any]:
    """What makes a VideoTransformer of an encoder's form, the size aside."""
    uniform = model.uniform_power if isinstance(model, JepaConfig) else True
    keywords: dict[str, Any] = {"frames": data.frames, "img_size": data.size}
    keywords |= {"patch_size": model.patch, "tubelet": model.tubelet, "position": model.position}
    return keywords | ({"uniform_power": uniform} if model.position == "sincos_3d" else {})


def as_timm(source: Source, part: Part) -> VideoTransformer:
    """One encoder as a model of timm, in evaluation mode."""
    transformer = source.encoder(part).transformer
    network = VideoTransformer(
        embed_dim=transformer.width,
        depth=transformer.depth,
        num_heads=transformer.heads,
        weight_init="skip",
        **keywords_of(source.config.model, source.config.data),
    )
    network.load_state_dict(timm_tensors(source, part))
    return network.eval()


@torch.no_grad()
def verify(source: Source, config: ConvertConfig, path: Path) -> list[Check]:
    """By timm.create_model."""
    import timm

    chosen, model = source.part(config.part), source.config.model
    name = timm_name(model.size, model.position == "rotary_3d")
    keywords = keywords_of(model, source.config.data)
    network: Any = timm.create_model(name, checkpoint_path=str(path), **keywords).eval()
    clips = clips_for(source)
    theirs = network.forward_features(normalised(clips, model.mean, model.std))
    return [compare("features, by timm", features_of(source, chosen, clips), theirs)]
