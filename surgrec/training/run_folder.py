"""The run folder: who may write in it, what is in it already, and whether a new start fits it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from surgrec.configs.pretrain import PretrainConfig, differences, is_free, to_document
from surgrec.configs.yaml_io import ConfigError, dump_yaml, load_yaml
from surgrec.training.checkpoint import (
    DamagedCheckpointError,
    list_checkpoints,
    load_state,
    set_aside,
    verify_checkpoint,
)
from surgrec.training.errors import UserError
from surgrec.training.tensor_file import fsync_folder


@dataclass(frozen=True)
class RunFolder:
    """Names of what a run folder holds."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def reconstruction(self) -> Path:
        return self.path / "reconstruction.png"

    @property
    def network(self) -> Path:
        return self.path / "network.safetensors"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def bad_step(self, step: int) -> Path:
        return self.path / f"nan-step-{step}.json"


def choose_folder(out: Path | None, name: str) -> RunFolder:
    """--out, or runs/NAME-TIME, which is always a new one."""
    if out is not None:
        return RunFolder(out)
    base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = base, 2
    while path.exists():
        path = base.with_name(f"{base.name}-{number}")
        number += 1
    return RunFolder(path)


def open_folder(run: RunFolder) -> IO[str]:
    """Create the folder, check that it can be written, and lock it; keep the returned file open.

    Raises UserError where it cannot be written, holds something else than a run, or another process trains
    in it.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        _check_foreign(run)
        lock = open(run.path / ".lock", "a+")  # noqa: SIM115  # open for as long as the run lasts
    except OSError as error:
        raise UserError(
            f"run folder {run.path} cannot be written: {error.strerror}. Give another with --out."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise UserError(
            f"another process ({owner}) is training in {run.path}. Wait for it, or give another --out."
        ) from None
    lock.truncate(0)
    lock.write(f"{os.uname().nodename} pid {os.getpid()}")
    lock.flush()
    return lock


def _check_foreign(run: RunFolder) -> None:
    """Raises UserError for a folder of other files, among which those of a run would be lost."""
    names = {path.name for path in run.path.iterdir()}
    visible = sorted(name for name in names if not name.startswith("."))
    if visible and not names & {run.config.name, run.record.name, run.checkpoints.name, ".lock"}:
        raise UserError(
            f"{run.path} holds other files ({', '.join(visible[:3])}{', ...' if visible[3:] else ''}) and no "
            f"run. Give a new folder with --out."
        )


def find_checkpoint(run: RunFolder, config: PretrainConfig, index_digest: str) -> Path | None:
    """The checkpoint that this start continues from, or None for a new run.

    Raises UserError where the folder holds a run that this configuration does not continue, where the newest
    checkpoint is damaged (unless checkpoint.fall_back), or where --resume names what is not there.
    """
    present = list_checkpoints(run.checkpoints)
    if config.resume == "none":
        if present:
            raise UserError(
                f"{run.path} holds a run with checkpoints up to step {present[-1][0]}. --resume none wants a "
                f"new run: give another --out, or remove the folder."
            )
        return None
    if config.resume == "auto":
        # A start that failed before its first step binds nobody.
        if run.config.exists() and (present or _has_lines(run.metrics)):
            _check_config(run.config, config, f"{run.path} holds a run")
        if not present:
            return None
        path = _newest_sound(present, config.checkpoint.fall_back)
    else:
        path = Path(config.resume)
        if not path.is_dir():
            raise UserError(
                f"--resume {path}: no such checkpoint folder. It is auto, none, or RUN/checkpoints/step-N."
            )
        verify_checkpoint(path)
        step = load_state(path)["step"]
        if present and present[-1][0] > step:
            raise UserError(
                f"{run.path} holds checkpoints up to step {present[-1][0]}, later than {path}. "
                f"Give another --out to branch off from step {step}."
            )
    check_fit(path, config, index_digest)
    return path


def _has_lines(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _newest_sound(present: list[tuple[int, Path]], fall_back: bool) -> Path:
    for _, path in reversed(present):
        try:
            verify_checkpoint(path)
            return path
        except DamagedCheckpointError as error:
            if not fall_back:
                raise DamagedCheckpointError(
                    f"{error}\nThe newest checkpoint cannot be used. --checkpoint.fall-back sets it aside "
                    f"and resumes from the one before."
                ) from error
            print(f"{error}\nset aside as {set_aside(path)}", flush=True)
    raise UserError("no checkpoint is left that is not damaged: give another --out to start again")


def check_fit(path: Path, config: PretrainConfig, index_digest: str) -> None:
    """Refuse a checkpoint of a run that differs in anything but the entries of FREE, or of another corpus."""
    values = load_state(path)["values"]
    _refuse_differences(differences(values["config"], to_document(config)), f"{path} comes from a run")
    if values["index_digest"] != index_digest:
        raise UserError(
            f"{path} was trained on an index with digest {values['index_digest']}, {config.data.index} has "
            f"{index_digest}: other clips would be drawn. Give the index of that run, or another --out."
        )


def _check_config(file: Path, config: PretrainConfig, subject: str) -> None:
    try:
        old = load_yaml(file)
    except ConfigError as error:
        raise UserError(f"{error}. Remove the run folder, or give another --out.") from error
    _refuse_differences(differences(old, to_document(config)), subject)


def _refuse_differences(changed: dict[str, tuple[Any, Any]], subject: str) -> None:
    lines = [f"  {key}: {a!r} there, {b!r} here" for key, (a, b) in changed.items() if not is_free(key)]
    if lines:
        raise UserError(
            f"{subject} with another configuration:\n"
            + "\n".join(lines)
            + "\nGive the same values, or another --out."
        )


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file so that a reader sees the old or the new one, whole."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    fsync_folder(path.parent)


def write_config(run: RunFolder, config: PretrainConfig) -> None:
    """RUN/config.yaml, which --config reads."""
    write_atomically(run.config, dump_yaml(to_document(config)))


def drop_later_lines(path: Path, step: int) -> None:
    """Remove lines of a .jsonl file whose "step" is later than `step`, and a last one that was cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry["step"] <= step:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept))
