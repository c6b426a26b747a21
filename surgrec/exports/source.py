"""A model of this project, whichever of its files holds it, as it is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from surgrec.configs.model import Position
from surgrec.configs.pretrain import JepaPretrain, MaePretrain, from_document, to_document
from surgrec.curation.checkpoint_embedder import load_objective, open_checkpoint
from surgrec.curation.records import CurationError
from surgrec.exports.model_file import ModelAbout, read_tensors
from surgrec.models.build import build_objective
from surgrec.models.jepa import Jepa
from surgrec.models.mae import MaskedAutoencoder
from surgrec.models.objective import Objective
from surgrec.models.video_encoder import VideoEncoder, form_of
from surgrec.training.checkpoint import load_state
from surgrec.weights.errors import WeightsError

Part = Literal["encoder", "target_encoder"]
OURS: Final[dict[Part, str]] = {"encoder": "encoder", "target_encoder": "teacher"}
"""V-JEPA's words for student and teacher, and the names of our modules."""


@dataclass(frozen=True)
class Source:
    """A whole model, in evaluation mode on the CPU, and what it is. run: its run folder, where there is
    one. recipe: the document of its pretraining's whole configuration, where it is known."""

    about: ModelAbout
    config: MaePretrain | JepaPretrain
    objective: Objective
    run: Path | None
    recipe: dict[str, Any] | None

    @property
    def mae(self) -> MaskedAutoencoder | None:
        """The objective where it is MAE."""
        return self.objective if isinstance(self.objective, MaskedAutoencoder) else None

    @property
    def jepa(self) -> Jepa | None:
        """The objective where it is JEPA."""
        return self.objective if isinstance(self.objective, Jepa) else None

    @property
    def kind(self) -> str:
        """What it is, for messages."""
        name = "MAE" if self.jepa is None else "JEPA"
        return f"{name} with {self.config.model.position} positions"

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """All weights, by our names."""
        return self.objective.state_dict()

    def part(self, asked: Part | None) -> Part:
        """MAE's encoder; of JEPA the one that is asked for, by default the teacher, as everywhere here.

        Raises WeightsError for a teacher of MAE.
        """
        if self.jepa is None and asked == "target_encoder":
            raise WeightsError("--part target_encoder: MAE has one encoder; leave --part out")
        return asked or ("encoder" if self.jepa is None else "target_encoder")

    def encoder(self, part: Part) -> VideoEncoder:
        """One of the encoders: uint8 [B, T, S, S, 3] -> [B, N, D]."""
        transformer = getattr(self.objective, OURS[part])
        return VideoEncoder(transformer, form_of(self.config.model, transformer.grid))

    def encoder_tensors(self, part: Part) -> dict[str, Tensor]:
        """The weights of one of the encoders, by the names of VisionTransformer."""
        prefix = f"{OURS[part]}."
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}


def open_source(path: Path) -> Source:
    """path: a run folder of surgrec.pretrain, of which the newest checkpoint is taken; a checkpoint; or a
    file that `--to safetensors` wrote. Read, and verified, once.

    Raises WeightsError naming file, cause and remedy.
    """
    if path.is_file():
        about, tensors = read_tensors(path)
        config = from_document(about.pretraining)
        assert isinstance(config, MaePretrain | JepaPretrain)
        objective = build_objective(config.model, 0, config.data.frames, config.data.size)
        try:
            objective.load_state_dict(tensors)
        except RuntimeError as error:
            what = str(error).splitlines()[1].strip()[:200]
            raise WeightsError(
                f"{path}: not a whole model ({what}); give a run folder, or what --to safetensors wrote"
            ) from error
        return Source(about, config, objective.eval(), None, None)
    try:
        found = open_checkpoint(path)
        objective = load_objective(found, torch.device("cpu"))
    except CurationError as error:
        raise WeightsError(str(error)) from error
    state = load_state(found.path)
    run = found.path.parent.parent
    pretraining = _pretraining_of(found.config, to_document(found.config))
    values: dict[str, Any] = state["values"]
    about = ModelAbout(
        f"ckpt:{found.key}", pretraining, int(state["step"]), str(values.get("index_digest") or "")
    )
    record = run if (run / "run.json").exists() else None
    return Source(about, found.config, objective, record, values["config"])


def mae_of(source: Source, whose: str) -> MaskedAutoencoder:
    """The model, for a format of MAE. whose: the format's program. Raises WeightsError."""
    if source.mae is None or source.mae.config.position != "sinusoid_1d":
        raise WeightsError(
            f"{whose} has an encoder with sinusoid_1d positions and a pixel decoder; this model is"
            f" {source.kind}. Give --to timm, safetensors or another"
        )
    return source.mae


def jepa_of(source: Source, whose: str, positions: tuple[Position, ...]) -> Jepa:
    """The model, for a format of JEPA. whose: the format's program. Raises WeightsError."""
    if source.jepa is None or source.jepa.config.position not in positions:
        raise WeightsError(
            f"{whose} has a predictor and {' or '.join(positions)} positions; this model is {source.kind}."
            " Give --to timm, safetensors or another"
        )
    return source.jepa


def _pretraining_of(config: MaePretrain | JepaPretrain, document: dict[str, Any]) -> dict[str, Any]:
    """Of a pretraining's document the part that its model is built from."""
    names = ("frames", "stride", "fps", "size")
    return {
        "objective": document["objective"],
        "model": document["model"],
        "data": {name: getattr(config.data, name) for name in names},
    }
