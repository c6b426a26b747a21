"""One of our own checkpoints as an embedder: the mean of its tokens over one clip of a segment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgrec.configs.data import DataConfig
from surgrec.configs.pretrain import JepaPretrain, MaePretrain, from_document
from surgrec.configs.yaml_io import ConfigError
from surgrec.curation.embedders import Choose, Embedder, Network, half_precision, unit
from surgrec.curation.records import CurationError, key_of
from surgrec.loaders.clip_plan import ClipTooLong, clip_frames
from surgrec.loaders.packet_index import PacketIndex
from surgrec.models.build import build_objective
from surgrec.models.objective import Objective
from surgrec.training.checkpoint import list_checkpoints, load_state, verify_checkpoint
from surgrec.training.errors import UserError
from surgrec.training.run_folder import RunFolder
from surgrec.training.saver import restore_weights


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint that was found whole. key: a digest of its weights and of how clips are cut for them."""

    path: Path
    config: MaePretrain | JepaPretrain
    key: str


def open_checkpoint(path: Path) -> OpenedCheckpoint:
    """path: a run folder, of which the newest checkpoint is taken, or a checkpoint. Its files are read once.

    Raises CurationError where there is no checkpoint, or it is damaged.
    """
    chosen = _chosen(path)
    try:
        state = load_state(chosen)
        verify_checkpoint(chosen)
        config = from_document(state["values"]["config"])
    except (UserError, ConfigError, KeyError) as error:
        raise CurationError(f"{error}. ckpt:{path} needs a checkpoint of surgrec.pretrain") from error
    assert isinstance(config, MaePretrain | JepaPretrain)
    data = config.data
    digests = {name: file["xxh3"] for name, file in state["files"].items() if name.startswith("model")}
    about = state["values"]["config"]["model"], data.frames, data.stride, data.fps, data.size, digests
    return OpenedCheckpoint(chosen, config, key_of(*about))


def checkpoint_embedder(path: Path) -> Embedder:
    """The encoder of MAE, the teacher of JEPA, without a mask, on clips of the run's frames, stride or frames
    per second, and size. path, errors: as of open_checkpoint."""
    found = open_checkpoint(path)
    return Embedder(f"ckpt:{found.key}", lambda device: _network(found, device))


def _chosen(path: Path) -> Path:
    for folder in (RunFolder(path).checkpoints, path):
        found = list_checkpoints(folder)
        if found:
            return found[-1][1]
    if not path.is_dir():
        raise CurationError(f"ckpt:{path}: there is no such folder; give a run folder or a checkpoint in it")
    if not (path / "state.json").exists():
        raise CurationError(
            f"ckpt:{path}: the folder holds no checkpoint; give a run folder of surgrec.pretrain, or"
            f" RUN/checkpoints/step-..."
        )
    return path


def load_objective(checkpoint: OpenedCheckpoint, device: torch.device) -> Objective:
    """The model with the checkpoint's weights, on a device. Raises CurationError where they do not fit."""
    config = checkpoint.config
    objective = build_objective(config.model, config.seed, config.data.frames, config.data.size)
    try:
        restore_weights(checkpoint.path, objective)
    except (UserError, OSError) as error:
        raise CurationError(f"{error}. Give another checkpoint") from error
    return objective.to(device).eval()


def _network(checkpoint: OpenedCheckpoint, device: torch.device) -> Network:
    objective = load_objective(checkpoint, device)

    @torch.no_grad()
    def encode(frames: Tensor, shown: list[tuple[int, ...]]) -> Tensor:
        with half_precision(device):
            tokens = objective.features(frames)
        return unit(tokens.float().mean(1))

    data = checkpoint.config.data
    return Network(data.size, _middle(data), encode)


def _middle(data: DataConfig) -> Choose:
    """The clip in the middle of a segment."""
    return lambda index, video, start, end: clip_within(index, video, start, end, 0.5, data)


def clip_within(
    index: PacketIndex, video: int, start: int, end: int, position: float, data: DataConfig
) -> tuple[int, ...]:
    """A clip of a run's shape in [start, end), which starts at `position` in [0, 1) of where it may; where
    the segment does not hold one, frames evenly spread over it."""
    shape: dict[str, Any] = {"frames": data.frames, "stride": None if data.fps is not None else data.stride}
    try:
        return clip_frames(index, video, start, end, position, **shape, fps=data.fps, within=True)
    except ClipTooLong:
        spread = np.linspace(start, end - 1, data.frames).round().astype(int)
        return tuple(spread.tolist())
