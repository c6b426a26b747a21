"""Checkpoints of a run: written beside the training, and put back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from surgrec.configs.pretrain import CheckpointConfig
from surgrec.models.objective import Objective
from surgrec.training.checkpoint import (
    MODEL,
    OPTIMIZER,
    Checkpoint,
    load_state,
    prune_checkpoints,
    read_into,
    save_checkpoint,
    stored,
)
from surgrec.training.distributed import World
from surgrec.training.errors import UserError
from surgrec.training.optim import optimizer_tensors, prepare_state
from surgrec.training.staging import HostCopies


class Saver:
    """Writes checkpoints from copies on the host, in a thread, one at a time.

    `last` is the newest that is complete, as `wait` has found. On leaving, the one under way is waited for,
    unless a second Ctrl-C ends the run. All ranks call save and wait together.

    The thread calls torch.distributed.checkpoint's `save`, not its `async_save`: besides the shards there are
    state.json, the renaming and old checkpoints to see to, none of which the training should wait for either.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        config: CheckpointConfig,
    ) -> None:
        self.last: Path | None = None
        self._folder = folder
        self._world = world
        self._objective = objective
        self._optimizer = optimizer
        self._config = config
        self._copies = {MODEL: HostCopies(world), OPTIMIZER: HostCopies(world)}
        self._writing: _Writing | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception) and self._writing is not None:
            # What ended the run is what is told, not what came of this.
            self._writing.thread.join()

    def save(self, step: int, values: dict[str, Any]) -> None:
        """Begin the checkpoint of `step`, once that before is written. values: plain, the same on all ranks.

        Raises what went wrong with the one before, see `wait`.
        """
        self.wait()
        contents = Checkpoint(
            step,
            self._copies[MODEL].take(self._objective.state_dict()),
            self._copies[OPTIMIZER].take(optimizer_tensors(self._optimizer)),
            values,
        )
        self._writing = _Writing(step, lambda: self._write(contents))

    def wait(self) -> None:
        """Until what was begun is written.

        Raises UserError, on every rank, where it could not be; then the checkpoints before it are whole.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        writing.thread.join()
        if isinstance(writing.error, OSError):
            raise UserError(
                f"the checkpoint of step {writing.step} cannot be written in {self._folder}: "
                f"{writing.error.strerror}. Checkpoints written before it are whole; make room and start "
                f"again with the same command to go on from the last."
            ) from writing.error
        if writing.error is not None:
            raise writing.error
        self.last = writing.path

    def _write(self, contents: Checkpoint) -> Path:
        if self._world.device.type == "cuda":
            # A thread starts out on the first GPU, and would take memory of it.
            torch.cuda.set_device(self._world.device)
        for copies in self._copies.values():
            copies.wait()
        world = self._world.for_storage()
        path = save_checkpoint(self._folder, contents, world)
        keep = self._config
        world.share_result(lambda: len(prune_checkpoints(self._folder, keep.keep_last, keep.keep_every)))
        return path


class _Writing:
    """A thread at work on the checkpoint of `step`; once joined, its path or its error."""

    def __init__(self, step: int, work: Callable[[], Path]) -> None:
        self.step = step
        self.path: Path | None = None
        self.error: BaseException | None = None
        self._work = work
        # A daemon: a second Ctrl-C ends the process at once, and what is half written has no final name.
        self.thread = threading.Thread(target=self._run, name=f"checkpoint of step {step}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.path = self._work()
        except BaseException as error:
            self.error = error


def restore(
    path: Path, objective: Objective, optimizer: torch.optim.Optimizer, world: World
) -> tuple[int, dict[str, Any]]:
    """Put the weights and the optimizer's state back, whoever wrote them; returns the step and the values.

    All ranks call it together. Raises UserError where names or shapes are not those of this run. The files
    are not verified: find_checkpoint has done that.
    """
    state = load_state(path)
    try:
        weights = _fitting(path, objective)
        room = prepare_state(optimizer, {name: t.shape for name, t in stored(path, OPTIMIZER).items()})
    except ValueError as error:
        raise UserError(f"the checkpoint of step {state['step']} does not fit this run: {error}") from error
    read_into(path, MODEL, weights, world)
    read_into(path, OPTIMIZER, room, world)
    return state["step"], state["values"]


def restore_weights(path: Path, objective: Objective) -> None:
    """Put the weights back, whoever wrote them, in one process. Raises UserError where names or shapes are
    not those of the objective."""
    try:
        weights = _fitting(path, objective)
    except ValueError as error:
        raise UserError(f"{path} does not fit the model of its configuration: {error}") from error
    read_into(path, MODEL, weights)


def _fitting(path: Path, objective: Objective) -> dict[str, Tensor]:
    """The objective's tensors, if the checkpoint holds those. Raises ValueError."""
    weights, there = objective.state_dict(), stored(path, MODEL)
    _check_names(set(there), set(weights))
    for name, tensor in weights.items():
        if there[name].shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(there[name].shape)}, here {tuple(tensor.shape)}")
    return weights


def _check_names(there: set[str], wanted: set[str]) -> None:
    for names, what in ((wanted - there, "it has no"), (there - wanted, "this run has no")):
        if names:
            raise ValueError(f"{what} {', '.join(sorted(names)[:5])}")
