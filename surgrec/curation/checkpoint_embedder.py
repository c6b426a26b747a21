"""One of our own checkpoints as an embedder: the mean of its tokens over one clip of a segment."""

from __future__ import annotations

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
from surgrec.training.checkpoint import list_checkpoints, load_state, verify_checkpoint
from surgrec.training.errors import UserError
from surgrec.training.run_folder import RunFolder
from surgrec.training.saver import restore_weights


def checkpoint_embedder(path: Path) -> Embedder:
    """path: a run folder, of which the newest checkpoint is taken, or a checkpoint. The encoder of MAE, the
    teacher of JEPA, without a mask, on clips of the run's frames, stride or frames per second, and size.

    Raises CurationError where there is no checkpoint, or it is damaged.
    """
    chosen = _chosen(path)
    try:
        state = load_state(chosen)
        verify_checkpoint(chosen)
        config = from_document(state["values"]["config"])
    except (UserError, ConfigError, KeyError) as error:
        raise CurationError(
            f"{error}. The embedder ckpt:{path} needs a checkpoint of surgrec.pretrain"
        ) from error
    assert isinstance(config, MaePretrain | JepaPretrain)
    data = config.data
    digests = {name: file["xxh3"] for name, file in state["files"].items() if name.startswith("model")}
    about = state["values"]["config"]["model"], data.frames, data.stride, data.fps, data.size, digests
    return Embedder(f"ckpt:{key_of(*about)}", lambda device: _network(chosen, config, device))


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


def _network(path: Path, config: MaePretrain | JepaPretrain, device: torch.device) -> Network:
    data = config.data
    objective = build_objective(config.model, config.seed, data.frames, data.size)
    try:
        restore_weights(path, objective)
    except (UserError, OSError) as error:
        raise CurationError(f"{error}. Give another checkpoint as the embedder") from error
    objective.to(device).eval()

    @torch.no_grad()
    def encode(frames: Tensor, shown: list[tuple[int, ...]]) -> Tensor:
        with half_precision(device):
            tokens = objective.features(frames)
        return unit(tokens.float().mean(1))

    return Network(data.size, _middle(data), encode)


def _middle(data: DataConfig) -> Choose:
    shape: dict[str, Any] = {"frames": data.frames, "stride": None if data.fps is not None else data.stride}

    def choose(index: PacketIndex, video: int, start: int, end: int) -> tuple[int, ...]:
        """The clip in the middle of the segment; where it does not hold one, frames evenly spread over it."""
        try:
            return clip_frames(index, video, start, end, 0.5, **shape, fps=data.fps, within=True)
        except ClipTooLong:
            spread = np.linspace(start, end - 1, data.frames).round().astype(int)
            return tuple(spread.tolist())

    return choose
