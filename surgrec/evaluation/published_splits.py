"""Published splits, folders of train.csv, val.csv and test.csv, to manifests."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from surgrec.evaluation.label_map import LabelMapError, read_label_map
from surgrec.evaluation.manifest import (
    SPLITS,
    ManifestError,
    Row,
    Split,
    SplitManifest,
    check,
    path_fault,
    resolve,
)
from surgrec.evaluation.registry import DataSet, NameFacts, read_name
from surgrec.evaluation.registry_table import by_folder

PLACEHOLDER: Final = "__DATA_ROOT__/"
_LABEL: Final = re.compile(r"\d{1,6}", re.ASCII)


class SplitError(ValueError):
    """Published splits that cannot be imported; the message names the file, the cause and the remedy."""


def split_folders(splits: Path) -> list[Path]:
    """The folders of data sets in a folder of published splits, or that folder itself where it is one.

    Raises SplitError where there is none.
    """
    if not splits.is_dir():
        raise SplitError(f"{splits}: no such folder; name the folder `splits` of the release, or a set in it")
    if any((splits / f"{split}.csv").exists() for split in SPLITS):
        return [splits]
    found = sorted(
        folder
        for folder in splits.iterdir()
        if folder.is_dir() and any((folder / f"{split}.csv").exists() for split in SPLITS)
    )
    if not found:
        raise SplitError(f"{splits}: no folder in it has a train.csv, val.csv or test.csv")
    return found


def import_split(folder: Path, data_root: Path, strict: bool = False) -> SplitManifest:
    """The manifest of one data set.

    Rows keep their files' order: train, val, test. Groups follow the registry's rule; strict: the stricter
    one, where the set has two. Videos need not be there. Raises SplitError, also for paths that leave the
    data root.
    """
    dataset = by_folder(folder.resolve().name)
    if dataset is None:
        raise SplitError(
            f"{folder}: no data set of the registry has this folder; `python -m surgrec.benchmark list` shows"
            f" them. Write a manifest of your own for others"
        )
    try:
        names = read_label_map(folder)
    except LabelMapError as error:
        raise SplitError(str(error)) from error
    count = max(dataset.classes, max(names, default=-1) + 1 if names else 0)
    rows: list[Row] = []
    facts: list[NameFacts | None] = []
    for split in SPLITS:
        for path, label in _read_table(folder / f"{split}.csv", data_root, count):
            fact = read_name(dataset, path, strict)
            facts.append(fact)
            rows.append(Row(path, label, split, fact.group if fact and fact.group else path))
    rules = [
        f"published splits, folder {folder.resolve().name}",
        "groups: " + (dataset.strict_rule if strict and dataset.strict_rule else dataset.group_rule),
    ]
    alone = [row.path for row, fact in zip(rows, facts, strict=True) if fact is None]
    if alone:
        rules.append(
            f"{len(alone)} rows whose names do not follow the pattern of the set are groups of their own;"
            f" the first is {alone[0]}"
        )
    classes, named_by = _class_names(dataset, names, rows, facts, count)
    manifest = SplitManifest(dataset.key, classes, tuple(rows), (*rules, f"class names: {named_by}"))
    try:
        check(manifest)
    except ManifestError as error:
        raise SplitError(f"{folder}: {error}") from error
    return manifest


def _class_names(
    dataset: DataSet,
    names: dict[int, str] | None,
    rows: Sequence[Row],
    facts: Sequence[NameFacts | None],
    count: int,
) -> tuple[tuple[str, ...], str]:
    if names is not None:
        return tuple(names.get(label, f"class {label}") for label in range(count)), "label map"
    if dataset.class_names:
        return dataset.class_names, "registry"
    seen: dict[int, Counter[str]] = defaultdict(Counter)
    for row, fact in zip(rows, facts, strict=True):
        if fact and fact.class_name:
            seen[row.label][fact.class_name] += 1
    # Several names for one label stand side by side: the linter says so, and nobody takes one for the other.
    return (
        tuple(" | ".join(sorted(seen[label])) or f"class {label}" for label in range(count)),
        "names of the clips",
    )


def _read_table(table: Path, data_root: Path, count: int) -> list[tuple[str, int]]:
    """Paths below the data root, and labels below `count`, of a published CSV."""
    if not table.is_file():
        raise SplitError(f"{table}: no such file; a data set needs train.csv, val.csv and test.csv")
    rows = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=" ", strict=True)
            for cells in reader:
                if not any(cells):
                    continue
                where = f"{table}: line {reader.line_num}"
                # One space parts the two; more stand behind a path that another tool padded.
                cells = [cells[0], *filter(None, cells[1:])]
                if len(cells) != 2:
                    raise SplitError(
                        f"{where}: expected a path, a space and a label, found {' '.join(cells)!r:.200}; put "
                        f"paths with spaces in double quotes"
                    )
                if not _LABEL.fullmatch(cells[1]):
                    raise SplitError(f"{where}: label {cells[1]!r:.80} is no whole number from 0 on")
                label = int(cells[1])
                if label >= count:
                    raise SplitError(f"{where}: label {label}, and the set has {count} classes, from 0 on")
                rows.append((_below(where, cells[0], data_root), label))
    except UnicodeDecodeError as error:
        raise SplitError(f"{table}: not UTF-8 ({error}); write it again in UTF-8") from error
    except csv.Error as error:
        raise SplitError(f"{table}: line {reader.line_num}: not a CSV table ({error})") from error
    except OSError as error:
        raise SplitError(f"{table}: cannot be read ({error.strerror or error})") from error
    if not rows:
        raise SplitError(f"{table}: no rows")
    return rows


def _below(where: str, text: str, data_root: Path) -> str:
    """A path of a row relative to the data root. Release paths begin with the placeholder, those that were
    moved to a machine with its data root."""
    root = f"{data_root.expanduser().absolute()}/"
    for prefix in (PLACEHOLDER, root):
        if text.startswith(prefix):
            path = text.removeprefix(prefix)
            break
    else:
        raise SplitError(
            f"{where}: {text!r:.200} lies neither below {PLACEHOLDER} nor below the data root {root}; paths"
            f" that leave it are refused"
        )
    fault = path_fault(path)
    if fault:
        raise SplitError(f"{where}: {text!r:.200}: {fault}; it is refused")
    try:
        resolve(data_root, Row(path, 0, "train", path))
    except ManifestError as error:
        raise SplitError(f"{where}: {error}") from error
    return path


def split_sizes(manifest: SplitManifest) -> dict[Split, int]:
    """Rows of each split."""
    counts = Counter(row.split for row in manifest.rows)
    return {split: counts[split] for split in SPLITS}
