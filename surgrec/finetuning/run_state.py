"""What a run of fine-tuning keeps after each epoch: its newest checkpoint, and that of the best epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgrec.configs.finetune import FREE
from surgrec.configs.pretrain import differences
from surgrec.finetuning.classifier import trained
from surgrec.finetuning.tuner import Tuner
from surgrec.training.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    checkpoint_path,
    discard_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_state,
    save_checkpoint,
)
from surgrec.training.errors import UserError
from surgrec.training.optim import optimizer_tensors, prepare_state
from surgrec.training.run_folder import RunFolder

WEIGHTS, AVERAGE = "weights.", "average."


def save_epoch(run: RunFolder, step: int, tuner: Tuner, values: dict[str, Any], best: int) -> None:
    """Writes the checkpoint of an epoch, and deletes those that are neither the newest nor of step `best`.

    Raises OSError; then the checkpoints before it stand.
    """
    tensors: dict[str, Tensor] = {WEIGHTS + name: value for name, value in trained(tuner.classifier).items()}
    tensors |= {AVERAGE + name: value for name, value in tuner.average.values.items()}
    save_checkpoint(run.checkpoints, Checkpoint(step, tensors, optimizer_tensors(tuner.optimizer), values))
    for found, path in list_checkpoints(run.checkpoints):
        if found not in (step, best):
            discard_checkpoint(path)


def newest(run: RunFolder, wanted: dict[str, Any]) -> Path | None:
    """The checkpoint that a start goes on from; None for a new run. wanted: values that it must have,
    `config` up to the entries of FREE.

    Raises UserError where the folder holds a run of other options, videos, weights or split.
    """
    found = list_checkpoints(run.checkpoints)
    if not found:
        return None
    path = found[-1][1]
    values = load_state(path)["values"]
    changed = differences(values.get("config", {}), wanted["config"])
    lines = [
        f"  {key}: {old!r} there, {new!r} here" for key, (old, new) in changed.items() if key not in FREE
    ]
    lines += [
        f"  {key}: {values.get(key)!r} there, {wanted[key]!r} here"
        for key in wanted
        if key != "config" and values.get(key) != wanted[key]
    ]
    if lines:
        raise UserError(
            f"{run.path} holds another run:\n" + "\n".join(lines) + "\nGive the same ones, or another --out."
        )
    return path


def restore_epoch(path: Path, tuner: Tuner) -> dict[str, Any]:
    """Puts weights, average and the optimizer's state back; returns the values. Raises UserError."""
    saved = _load(path)
    _fill(saved.model, WEIGHTS, dict(trained(tuner.classifier)))
    _fill(saved.model, AVERAGE, tuner.average.values)
    room = prepare_state(tuner.optimizer, {name: value.shape for name, value in saved.optimizer.items()})
    for name, value in room.items():
        value.copy_(saved.optimizer[name])
    return saved.values


def restore_best(run: RunFolder, step: int, tuner: Tuner) -> None:
    """Makes the average after update `step` the weights of the classifier. Raises UserError."""
    _fill(_load(checkpoint_path(run.checkpoints, step)).model, AVERAGE, dict(trained(tuner.classifier)))


def _load(path: Path) -> Checkpoint:
    try:
        return load_checkpoint(path)
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{error}. Start again with another --out") from error


@torch.no_grad()
def _fill(tensors: dict[str, Tensor], prefix: str, targets: dict[str, Tensor]) -> None:
    there = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    assert there.keys() == targets.keys(), "the configuration names the same network"
    for name, value in targets.items():
        value.copy_(there[name])
