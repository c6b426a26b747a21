"""Models of this project: checkpoints of surgrec.pretrain, and first weights of its presets and runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from surgrec.configs.presets import PRESETS
from surgrec.configs.pretrain import JepaPretrain, MaePretrain, PretrainConfig, from_document
from surgrec.configs.yaml_io import ConfigError, load_yaml
from surgrec.curation.checkpoint_embedder import load_objective, open_checkpoint
from surgrec.curation.records import CurationError, key_of
from surgrec.kernels.patchify import token_grid
from surgrec.models.build import build_objective
from surgrec.models.encoder_form import EncoderForm
from surgrec.models.objective import Objective
from surgrec.models.video_encoder import VideoEncoder, encoder_of, form_of
from surgrec.training.run_folder import RunFolder
from surgrec.weights.clips import clip_of
from surgrec.weights.errors import WeightsError
from surgrec.weights.layout import ClipForm


@dataclass(frozen=True)
class OurModel:
    """identity, form: as of OpenedModel. load: its encoder on a device, MAE's own or JEPA's teacher."""

    identity: str
    clip: ClipForm
    form: EncoderForm
    load: Callable[[torch.device], VideoEncoder]


def open_ours(name: str, seed: int) -> OurModel | None:
    """What ckpt:PATH, random:PRESET or random:RUN names; None for another name. seed: of first weights.

    Raises WeightsError where a checkpoint or the configuration of a run is not there or damaged.
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
        return _untrained(rest, PRESETS[rest][1], seed)
    if kind == "random" and Path(rest).is_dir():
        return _untrained("run", _configuration(Path(rest)), seed)
    return None


def _untrained(name: str, config: PretrainConfig, seed: int) -> OurModel:
    """First weights of a configuration. name: stands in the identity."""
    assert isinstance(config, MaePretrain | JepaPretrain)
    data = config.data
    key = key_of(repr(config.model), data.frames, data.stride, data.fps, data.size, seed)

    def build(device: torch.device) -> Objective:
        return build_objective(config.model, seed, data.frames, data.size).to(device).eval()

    return _model(f"random:{name}/{key}", config, build)


def _configuration(run: Path) -> PretrainConfig:
    """Of a run folder of surgrec.pretrain. Raises WeightsError."""
    path = RunFolder(run).config
    try:
        return from_document(load_yaml(path))
    except ConfigError as error:
        raise WeightsError(f"{error}. random:{run} needs a run folder of surgrec.pretrain") from error


def form_and_clip(config: MaePretrain | JepaPretrain) -> tuple[EncoderForm, ClipForm]:
    """The encoder of a pretraining, and what it wants to see."""
    data, model = config.data, config.model
    form = form_of(model, token_grid((data.frames, data.size, data.size, 3), model.tubelet, model.patch))
    return form, clip_of(form, data.stride if data.fps is None else None, data.fps)


def _model(
    identity: str, config: MaePretrain | JepaPretrain, build: Callable[[torch.device], Objective]
) -> OurModel:
    form, clip = form_and_clip(config)
    return OurModel(identity, clip, form, lambda device: encoder_of(build(device)))
