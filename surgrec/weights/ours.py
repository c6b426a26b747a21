"""Models of this project: checkpoints of surgrec.pretrain, and first weights of its presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from surgrec.configs.model import VIT_SHAPES
from surgrec.configs.presets import PRESETS
from surgrec.configs.pretrain import JepaPretrain, MaePretrain
from surgrec.curation.checkpoint_embedder import load_objective, open_checkpoint
from surgrec.curation.records import CurationError, key_of
from surgrec.models.build import build_objective
from surgrec.models.objective import Objective
from surgrec.models.video_encoder import VideoEncoder, encoder_of
from surgrec.weights.errors import WeightsError
from surgrec.weights.layout import ClipForm


@dataclass(frozen=True)
class OurModel:
    """identity: as of VideoModel. load: its encoder on a device, MAE's own or JEPA's teacher."""

    identity: str
    clip: ClipForm
    load: Callable[[torch.device], VideoEncoder]


def open_ours(name: str, seed: int) -> OurModel | None:
    """What ckpt:PATH or random:PRESET names; None for another name. seed: of first weights.

    Raises WeightsError where a checkpoint is not there or damaged.
    """
    kind, _, rest = name.partition(":")
    if kind == "ckpt" and rest:
        try:
            checkpoint = open_checkpoint(Path(rest))
        except CurationError as error:
            raise WeightsError(str(error)) from error

        def load(device: torch.device) -> Objective:
            try:
                return load_objective(checkpoint, device)
            except CurationError as error:
                raise WeightsError(str(error)) from error

        return _model(f"ckpt:{checkpoint.key}", checkpoint.config, load)
    if kind == "random" and rest in PRESETS:
        preset = PRESETS[rest][1]
        assert isinstance(preset, MaePretrain | JepaPretrain)
        data = preset.data
        key = key_of(repr(preset.model), data.frames, data.stride, data.fps, data.size, seed)

        def build(device: torch.device) -> Objective:
            return build_objective(preset.model, seed, data.frames, data.size).to(device).eval()

        return _model(f"random:{rest}/{key}", preset, build)
    return None


def clip_of(config: MaePretrain | JepaPretrain) -> ClipForm:
    """What the encoder of a pretraining wants to see."""
    data, model = config.data, config.model
    return ClipForm(
        data.frames,
        data.size,
        data.stride if data.fps is None else None,
        data.fps,
        model.mean,
        model.std,
        model.tubelet,
        model.patch,
        VIT_SHAPES[model.size].width,
    )


def _model(
    identity: str, config: MaePretrain | JepaPretrain, build: Callable[[torch.device], Objective]
) -> OurModel:
    return OurModel(identity, clip_of(config), lambda device: encoder_of(build(device)))
