"""Files of the original programs: VideoMAE's pretraining checkpoint, V-JEPA's, of which V-JEPA 2's is one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgrec.configs.convert import ConvertConfig
from surgrec.exports.comparison import Check, clips_for, compare, features_of
from surgrec.exports.names import fused_bias, prefixed, shared_encoder, shared_names, within
from surgrec.exports.referee import decoded, our_predictions, predictions
from surgrec.exports.source import Part, Source, jepa_of, mae_of
from surgrec.exports.timm_file import as_timm, positions_of
from surgrec.exports.video_vit import normalised
from surgrec.kernels.patchify import patchify
from surgrec.models.jepa import Jepa
from surgrec.models.position import sincos_3d
from surgrec.training.tensor_file import DigestedFile

BACKBONE = "module.backbone."
PARTS: tuple[Part, ...] = ("encoder", "target_encoder")


def write_videomae(source: Source, config: ConvertConfig, path: Path) -> None:
    """`model`: encoder, decoder and what is between them. See ExportFormat."""
    mae, tensors = mae_of(source, "VideoMAE"), source.tensors
    form = mae.config
    encoder = shared_encoder(source.encoder_tensors("encoder"), form.tubelet, form.patch)
    decoder = shared_names(within("decoder.", tensors))
    token = decoder.pop("mask_token")[None, None]
    model = prefixed("encoder.", encoder) | prefixed("decoder.", decoder)
    between = tensors["encoder_to_decoder.weight"]
    _save({"model": model | {"encoder_to_decoder.weight": between, "mask_token": token}}, path)


@torch.no_grad()
def verify_videomae(source: Source, config: ConvertConfig, path: Path) -> list[Check]:
    """By timm's blocks."""
    mae, clips = mae_of(source, "VideoMAE"), clips_for(source)
    weights = _load(path)["model"]
    network = as_timm(source, "encoder")
    network.load_state_dict(fused_bias(within("encoder.", weights)) | positions_of(source))
    theirs = network.forward_features(normalised(clips, mae.config.mean, mae.config.std))
    checks = [compare("features, by timm's blocks", features_of(source, "encoder", clips), theirs)]
    mask = mae.mask(torch.arange(len(clips)))
    form = mae.config
    patches = patchify(clips, mask.visible, form.tubelet, form.patch, form.mean, form.std)
    visible = mae.encoder(patches, mask.visible)
    ours = mae.predict(clips, mask)
    checks.append(compare("decoder, by timm's blocks", ours, decoded(mae, weights, visible, mask)))
    return checks


def write_vjepa(source: Source, config: ConvertConfig, path: Path) -> None:
    """`encoder`, `target_encoder` and `predictor`, each under `module.backbone.`, and `epoch`. See
    ExportFormat."""
    jepa = jepa_of(source, "V-JEPA", ("sincos_3d", "rotary_3d"))
    model = jepa.config
    top: dict[str, Any] = {"epoch": 0}
    for each in PARTS:
        named = shared_encoder(source.encoder_tensors(each), model.tubelet, model.patch)
        top[each] = prefixed(BACKBONE, positions_of(source) | named)
    top["predictor"] = prefixed(BACKBONE, _predictor(jepa, within("predictor.", source.tensors)))
    _save(top, path)


@torch.no_grad()
def verify_vjepa(source: Source, config: ConvertConfig, path: Path) -> list[Check]:
    """By timm's blocks."""
    jepa, clips = jepa_of(source, "V-JEPA", ("sincos_3d", "rotary_3d")), clips_for(source)
    top = _load(path)
    network, checks = as_timm(source, "encoder"), []
    for each in PARTS:
        network.load_state_dict(within(BACKBONE, top[each]))
        theirs = network.forward_features(normalised(clips, jepa.config.mean, jepa.config.std))
        ours = features_of(source, each, clips)
        checks.append(compare(f"{each}, by timm's blocks", ours, theirs))
    weights = within(BACKBONE, top["predictor"])
    for group in range(len(jepa.config.groups)):
        checks.append(
            compare(
                f"predictor of mask group {group}, by timm's blocks",
                our_predictions(jepa, ours, group),
                predictions(jepa, weights, ours, group),
            )
        )
    return checks


def _predictor(jepa: Jepa, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By V-JEPA's names."""
    named: dict[str, Tensor] = {}
    config = jepa.config
    for name, tensor in shared_names(tensors).items():
        if name == "mask_tokens":
            named |= {f"mask_tokens.{n}": token[None, None] for n, token in enumerate(tensor)}
        else:
            named[f"predictor_{name.replace('embedding.', 'embed.')}"] = tensor
    if config.position == "sincos_3d":
        table = sincos_3d(jepa.grid, config.predictor_width, config.uniform_power)
        named["predictor_pos_embed"] = table[None]
    return named


def _save(top: dict[str, Any], path: Path) -> None:
    """Raises OSError."""
    # Whole copies: a view would bring the memory of what it is a part of along.
    whole = {k: {n: t.clone() for n, t in v.items()} if isinstance(v, dict) else v for k, v in top.items()}
    with _KeepingFile(path) as file:
        try:
            torch.save(whole, file)
        except RuntimeError as error:
            raise file.error or error from None
        os.fsync(file.fileno())


class _KeepingFile(DigestedFile):
    """Keeps the OSError of a write, for which torch.save raises another that does not tell the cause."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _load(path: Path) -> dict[str, Any]:
    top: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return top
