"""The clips of downstream sets: which footage a model will be tested on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from surgrec.corpus.discovery import Entry, InputError, csv_rows, find_entries

SPLITS: Final = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "": "test",
}
"""What a table may call splits; one that it does not name counts as test."""
COLUMNS: Final = ("path", "dataset", "split", "start", "end")


@dataclass(frozen=True, slots=True)
class Clip:
    """Seconds [start, end) of a downstream video, from its first frame on; the end may be infinite."""

    path: str
    dataset: str
    split: str
    start: float = 0.0
    end: float = np.inf


def find_clips(inputs: Sequence[str]) -> list[Clip]:
    """The clips that tables (.csv with a column path, and dataset, split, start, end where they are known),
    files, folders and patterns name. Those of files and folders are whole videos of the split test.

    Raises InputError where an input is missing, malformed or names nothing.
    """
    clips: list[Clip] = []
    for text in inputs:
        if text.lower().endswith(".csv"):
            clips += _table(Path(text).expanduser())
        else:
            remarks: list[str] = []
            clips += [
                Clip(entry.path, entry.dataset, "test") for entry in find_entries([text], remarks=remarks)
            ]
            if remarks:
                raise InputError(f"{remarks[0]}: what cannot be read cannot be looked for")
    return clips


def entries_of(clips: Sequence[Clip]) -> list[Entry]:
    """Their videos, each once, to be indexed."""
    return list({clip.path: Entry(clip.path, clip.dataset) for clip in clips}.values())


def _table(table: Path) -> list[Clip]:
    if not table.is_file():
        raise InputError(f"{table}: no such table; check the path")
    _, rows = csv_rows(table)
    if not rows:
        raise InputError(f"{table}: the table has no rows")
    folder = Path(os.path.abspath(table)).parent
    clips = []
    for number, row in enumerate(rows, 1):
        cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
        if not cells["path"]:
            raise InputError(f"{table}: row {number} has no path")
        split = SPLITS.get(cells["split"].lower())
        if split is None:
            raise InputError(f"{table}: row {number}: split {cells['split']!r}; expected train, val or test")
        path = os.path.abspath(folder / Path(cells["path"]).expanduser())
        clip = Clip(path, cells["dataset"] or Path(path).parent.name, split)
        try:
            start, end = float(cells["start"] or 0), float(cells["end"] or "inf")
        except ValueError as error:
            raise InputError(f"{table}: row {number}: start and end are seconds ({error})") from error
        if not 0 <= start < end:
            raise InputError(f"{table}: row {number}: seconds {start:g} to {end:g} are no clip")
        clips.append(replace(clip, start=start, end=end))
    return clips
