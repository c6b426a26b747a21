"""Checkpoints: folders step-00000050/ of model.safetensors, optimizer.safetensors and state.json.

A checkpoint is written under a name that starts with a dot, fsynced, and renamed: whatever is called
step-<number> is complete. state.json holds plain values, the length and xxh3 of the two tensor files, and a
checksum of itself; loading verifies all three and names the damaged file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from surgrec.training.errors import UserError
from surgrec.training.tensor_file import FileDigest, file_digest, fsync_folder, read_tensors, write_tensors

FORMAT = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
_NAME = re.compile(r"step-(\d{8,})")


class DamagedCheckpointError(UserError):
    """A file of the checkpoint is missing or does not have its checksum."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents: step, the model's and the optimizer's tensors, and plain values (loader, digests)."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    values: dict[str, Any]


def checkpoint_path(folder: Path, step: int) -> Path:
    """folder/step-00000050"""
    return folder / f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The complete checkpoints in `folder` with their steps, oldest first; none where there is no folder."""
    if not folder.is_dir():
        return []
    found = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write folder/step-<number> and return it. A checkpoint of that step that is already there is replaced.

    Raises OSError (disk full, no permission); then no unfinished file is left and older checkpoints stand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = checkpoint_path(folder, checkpoint.step)
    partial = folder / f".{final.name}.partial"
    _remove(partial)
    try:
        partial.mkdir()
        files = {
            MODEL_FILE: write_tensors(partial / MODEL_FILE, checkpoint.model),
            OPTIMIZER_FILE: write_tensors(partial / OPTIMIZER_FILE, checkpoint.optimizer),
        }
        state: dict[str, Any] = {
            "format": FORMAT,
            "step": checkpoint.step,
            "values": checkpoint.values,
            "files": {name: {"bytes": d.bytes, "xxh3": d.xxh3} for name, d in files.items()},
        }
        state["xxh3"] = _own_digest(state)
        with open(partial / STATE_FILE, "w") as file:
            file.write(json.dumps(state, indent=2, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fsync_folder(partial)
        if final.exists():
            discard_checkpoint(final)
        partial.rename(final)
        fsync_folder(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def load_state(path: Path) -> dict[str, Any]:
    """state.json of the checkpoint at `path`, its own checksum and format verified."""
    file = path / STATE_FILE
    try:
        state = json.loads(file.read_text())
    except OSError as error:
        raise DamagedCheckpointError(
            f"{file} cannot be read ({error.strerror}): no complete checkpoint"
        ) from error
    except ValueError as error:
        raise DamagedCheckpointError(f"{file} is damaged: not JSON ({error})") from error
    if not isinstance(state, dict) or state.get("xxh3") != _own_digest(state):
        raise DamagedCheckpointError(
            f"{file} is damaged: its contents do not have the checksum that it states"
        )
    if state["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {state['format']}; this version reads format {FORMAT}")
    return state


def verify_checkpoint(path: Path) -> None:
    """Compare all files with their checksums. Raises DamagedCheckpointError naming the file."""
    for name, expected in load_state(path)["files"].items():
        _verify(path / name, FileDigest(expected["bytes"], expected["xxh3"]))


def load_checkpoint(path: Path, verify: bool = True) -> Checkpoint:
    """Read the checkpoint at `path`. Raises DamagedCheckpointError naming the file.

    verify=False is for a checkpoint that verify_checkpoint has just passed.
    """
    if verify:
        verify_checkpoint(path)
    state = load_state(path)
    return Checkpoint(
        step=state["step"],
        model=read_tensors(path / MODEL_FILE),
        optimizer=read_tensors(path / OPTIMIZER_FILE),
        values=state["values"],
    )


def prune_checkpoints(folder: Path, keep_last: int, keep_every: int) -> list[Path]:
    """Delete all but the newest `keep_last` and those whose step is a multiple of `keep_every` (0: none).

    Returns what was deleted. Remains of writes and deletions that were cut off go too.
    """
    doomed = [
        path
        for step, path in list_checkpoints(folder)[: -keep_last or None]
        if not (keep_every and step % keep_every == 0)
    ]
    for path in doomed:
        discard_checkpoint(path)
    for pattern in (".step-*.partial", ".step-*.discarded"):
        for remains in folder.glob(pattern):
            shutil.rmtree(remains)
    return doomed


def discard_checkpoint(path: Path) -> None:
    """Delete a checkpoint; renamed first, so that a deletion cut short leaves nothing that looks whole."""
    hidden = path.with_name(f".{path.name}.discarded")
    _remove(hidden)
    path.rename(hidden)
    shutil.rmtree(hidden)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that it is neither resumed from nor deleted; returns the new path."""
    aside = path.with_name(path.name + ".damaged")
    _remove(aside)
    path.rename(aside)
    return aside


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _verify(path: Path, expected: FileDigest) -> None:
    try:
        size = path.stat().st_size
        if size != expected.bytes:
            raise DamagedCheckpointError(f"{path} is damaged: {size:,} bytes instead of {expected.bytes:,}")
        if file_digest(path) != expected:
            raise DamagedCheckpointError(f"{path} is damaged: its checksum is not that of {STATE_FILE}")
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _own_digest(state: dict[str, Any]) -> str:
    rest = {key: value for key, value in state.items() if key != "xxh3"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True).encode())
