"""Checkpoints: folders step-00000050/ of safetensors and state.json.

One process writes model.safetensors and optimizer.safetensors; of many, each writes the parts it holds, as
model-shard-00001-of-00004.safetensors and so on, by torch.distributed.checkpoint (DCP). Either is read by any
number of processes. One process has a writer of its own (tensor_file.py), because DCP's has fixed names
(model-00001-of-00001), adds an index file, and puts each file together in memory before it writes it.

A checkpoint is written under a name that starts with a dot, fsynced, and renamed: whatever is called
step-<number> is complete. state.json holds plain values, the length and xxh3 of each tensor file, and a
checksum of itself; loading verifies them all and names the damaged file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from surgrec.training.distributed import ALONE, World
from surgrec.training.errors import UserError
from surgrec.training.shard_files import StoredTensor, read_shards, stored_tensors, write_shards
from surgrec.training.tensor_file import FileDigest, file_digest, fsync_folder, write_tensors

FORMAT = 1
MODEL = "model"
OPTIMIZER = "optimizer"
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


def save_checkpoint(folder: Path, checkpoint: Checkpoint, world: World = ALONE) -> Path:
    """Write folder/step-<number> and return it. A checkpoint of that step that is already there is replaced.

    Of many ranks, all call it together, each with its part of the tensors (see `shard_files.write_shards`)
    and all with the same values.

    Raises OSError on every rank (disk full, no permission), UserError where rank 0 does not see what others
    have written; then no unfinished file is left and older checkpoints stand.
    """
    final = checkpoint_path(folder, checkpoint.step)
    partial = folder / f".{final.name}.partial"
    try:
        world.share_result(lambda: _begin(partial))
        files: dict[str, FileDigest] = {}
        for kind, tensors in ((MODEL, checkpoint.model), (OPTIMIZER, checkpoint.optimizer)):
            if world.size == 1:
                name = f"{kind}.safetensors"
                files[name] = write_tensors(partial / name, tensors)
            else:
                files |= write_shards(partial, kind, tensors, world)
        ranks = world.gather(files)
        world.share_result(lambda: _publish(partial, final, checkpoint, ranks))
    except BaseException:
        if world.first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def _begin(partial: Path) -> None:
    _remove(partial)
    partial.mkdir(parents=True)


def _publish(partial: Path, final: Path, checkpoint: Checkpoint, ranks: list[dict[str, FileDigest]]) -> None:
    """Add state.json to the files that the ranks have written, and give the folder its name; on rank 0."""
    for rank, files in enumerate(ranks):
        for name in files:
            if not (partial / name).exists():
                raise UserError(
                    f"rank {rank} has written {name}, and rank 0 does not see it in {partial}: the run "
                    f"folder must lie on a file system that all machines share. Give another --out."
                )
    files = {name: digest for files in ranks for name, digest in files.items()}
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
    fsync_folder(final.parent)


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


def stored(path: Path, kind: str) -> dict[str, StoredTensor]:
    """Names, shapes and dtypes of a checkpoint's tensors of a kind, MODEL or OPTIMIZER."""
    return stored_tensors(path, _files(path, kind))


def read_into(path: Path, kind: str, targets: dict[str, Tensor], world: World = ALONE) -> None:
    """Fill `targets` in place with tensors of a kind; of a DTensor, each rank its part. All ranks call it.

    It does not matter how many ranks have written the checkpoint. targets: named and shaped as `stored` says.
    """
    read_shards(path, _files(path, kind), targets, world)


def load_checkpoint(path: Path) -> Checkpoint:
    """All of the checkpoint at `path`, whole tensors on the CPU, whether one rank wrote it or many.

    Raises DamagedCheckpointError naming the file.
    """
    verify_checkpoint(path)
    state = load_state(path)
    tensors: dict[str, dict[str, Tensor]] = {}
    for kind in (MODEL, OPTIMIZER):
        entries = stored(path, kind)
        tensors[kind] = {name: torch.empty(entry.shape, dtype=entry.dtype) for name, entry in entries.items()}
        read_into(path, kind, tensors[kind])
    return Checkpoint(state["step"], tensors[MODEL], tensors[OPTIMIZER], state["values"])


def _files(path: Path, kind: str) -> list[str]:
    return [name for name in load_state(path)["files"] if name.startswith(kind)]


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
