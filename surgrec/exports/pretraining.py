"""How a model of this project was made, as far as its files tell: for its card, and for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgrec.configs.pretrain import flatten, is_free
from surgrec.exports.model_file import ModelAbout
from surgrec.training.errors import UserError
from surgrec.training.run_folder import RunFolder
from surgrec.training.run_record import read_record
from surgrec.weights.errors import WeightsError

Escape = Callable[[str], str]
"""A text from a file as it may be shown."""


@dataclass(frozen=True)
class Pretraining:
    """data: lines; None without the record of a run. training: a line for each start. recipe: entries and
    their values: of all options, or of the model alone where the schedule is not known."""

    data: list[str] | None
    training: list[str]
    recipe: list[tuple[str, str]]
    scheduled: bool


def pretraining_of(
    about: ModelAbout, run: Path | None, recipe: dict[str, Any] | None, escape: Escape
) -> Pretraining:
    """run: folder with a record, where there is one. recipe: the document of the pretraining's whole
    configuration, where it is known. Paths and names of machines are left out. Raises WeightsError for a
    record that is none."""
    flat: dict[str, Any] = flatten(about.pretraining if recipe is None else recipe)
    entries = [
        (escape(str(name)), escape(str(value)))
        for name, value in flat.items()
        if not is_free(name) and value is not None
    ]
    if run is None:
        return Pretraining(None, [], entries, recipe is not None)
    try:
        starts = read_record(RunFolder(run))["starts"]
        return Pretraining(
            _data(starts[-1], escape), [_start(start, escape) for start in starts], entries, True
        )
    except (UserError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{RunFolder(run).record}: not the record of a run ({error}); put it back, or convert to"
            " safetensors first, which does without"
        ) from error


def _data(start: dict[str, Any], escape: Escape) -> list[str]:
    index, plan = start["index"], start["plan"]
    lines = [f"{index['videos']:,} videos, packet index `{escape(index['digest'])}`"]
    if plan is None:
        return [*lines, "no plan of curation: drawn from the index as it is"]
    return [*lines, f"{plan['segments']:,} segments, plan of curation `{escape(plan['digest'])}`"]


def _start(start: dict[str, Any], escape: Escape) -> str:
    git = start["git"]
    commit = "unknown" if git is None else escape(git["commit"]) + "+" * bool(git["dirty"])
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in start["versions"].items())
    device = f"{int(start['ranks'])} x {escape(start['device'])}"
    return f"{escape(start['time'])}: {device}, commit `{commit}`, {versions}"
