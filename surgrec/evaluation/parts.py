"""The rows of each split that could be read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgrec.evaluation.features import FeatureError
from surgrec.evaluation.manifest import SPLITS, Split, SplitManifest

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """The rows of a split that were read. rows: int64 [n], ascending numbers in the manifest. labels, groups:
    int64 [n], groups from 0 without gaps. of: rows of the split in the manifest. lacks: classes that occur in
    none of the n rows."""

    rows: Rows
    labels: Rows
    groups: Rows
    of: int
    lacks: tuple[int, ...]


def part_among(present: NDArray[np.bool_], manifest: SplitManifest, split: Split, where: str) -> Part:
    """A split. present: bool [rows of the manifest]. where: begins the message of an error.

    Raises FeatureError where none of its rows is present.
    """
    every = [number for number, row in enumerate(manifest.rows) if row.split == split]
    rows = np.array([number for number in every if present[number]], np.int64)
    if not len(rows):
        cause = f"all {len(every)} rows of it are missing" if every else "the manifest has no row of it"
        raise FeatureError(
            f"{where}: nothing to read for the split {split}: {cause}. Train, val and test are needed;"
            " `python -m surgrec.benchmark repair` makes them"
        )
    labels = np.array([manifest.rows[number].label for number in rows], np.int64)
    groups = np.unique([manifest.rows[number].group for number in rows], return_inverse=True)[1]
    lacks = tuple(sorted(set(range(len(manifest.classes))) - set(labels.tolist())))
    return Part(rows, labels, groups.astype(np.int64), len(every), lacks)


def parts_among(present: NDArray[np.bool_], manifest: SplitManifest, where: str) -> dict[Split, Part]:
    """The three splits. present, where: as of part_among.

    Raises FeatureError where one is empty, or train holds one class only: nothing can be learned or said.
    """
    found = {split: part_among(present, manifest, split, where) for split in SPLITS}
    if len(set(found["train"].labels.tolist())) < 2:
        only = manifest.classes[found["train"].labels[0]]
        raise FeatureError(
            f"{where}: train holds one class only, {only!r}: there is nothing to learn. Check the labels of"
            " the manifest"
        )
    return found
