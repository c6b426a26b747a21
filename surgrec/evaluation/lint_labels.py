"""Faults of the labels of a split."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

import numpy as np

from surgrec.evaluation.clip_spans import Placed, Sources
from surgrec.evaluation.findings import Finding, LintOptions, describe, listed
from surgrec.evaluation.lint_leaks import key_of
from surgrec.evaluation.manifest import SPLITS, Row, SplitManifest
from surgrec.evaluation.registry import read_name
from surgrec.evaluation.registry_table import DATASETS

COLUMN_NAMES: Final = frozenset(
    {
        "action",
        "actions",
        "class",
        "classes",
        "frame",
        "frames",
        "gesture",
        "id",
        "index",
        "label",
        "labels",
        "name",
        "phase",
        "phases",
        "severe_index",
        "severity",
        "severity_index",
        "step",
        "steps",
        "task",
        "time",
        "timestamp",
        "video",
    }
)
"""Headers and columns of annotations. As the name of a class they are a line of the table that was read as
one."""
NO_CLASS: Final = frozenset(
    {
        "background",
        "idle",
        "irrelevant",
        "negative",
        "negatives",
        "no_action",
        "no_label",
        "no_phase",
        "none",
        "not_initialized",
        "other",
        "others",
        "out_of_body",
        "outside",
        "rest",
        "transition",
        "undefined",
        "unknown",
        "unlabeled",
        "unlabelled",
    }
)
"""What annotations call footage that belongs to none of their classes."""


def plain(name: str) -> str:
    """A class name in small letters, without a leading number, words joined by underscores."""
    return re.sub(r"[\W_]+", "_", re.sub(r"^\d+[\W_]+", "", name.strip().lower())).strip("_")


def label_faults(manifest: SplitManifest, options: LintOptions) -> Iterator[Finding]:
    """Findings about classes: absent, suspicious, or torn between names and labels."""
    yield from _absent(manifest)
    yield from _suspicious(manifest, options)
    yield from _names_and_labels(manifest, options)


def _absent(manifest: SplitManifest) -> Iterator[Finding]:
    name = manifest.classes.__getitem__
    seen = {split: {row.label for row in manifest.of(split)} for split in SPLITS}
    everywhere = set.union(*seen.values())
    gaps = [label for label in range(len(manifest.classes)) if label not in everywhere]
    if gaps:
        yield Finding(
            "label-gap",
            "warning",
            f"{len(gaps)} of {len(manifest.classes)} classes have no clip:"
            f" {listed(f'{label} {name(label)}' for label in gaps)}",
            len(gaps),
        )
    for split in SPLITS:
        if not seen[split]:
            yield Finding(f"no-{split}", "error", f"{split} has no rows", 0)
    if len(everywhere) == 1:
        yield Finding("one-class", "error", "all clips have one label: there is nothing to tell apart", 1)
    for split in SPLITS:
        missing = sorted(everywhere - seen[split]) if seen[split] else []
        if not missing:
            continue
        tested = [label for label in missing if label in seen["val"] | seen["test"]]
        if split == "train" and tested:
            rows = sum(row.label in missing for row in manifest.of("test"))
            why = f"cannot be learnt, and {rows:,} test rows have them"
        else:
            why = "cannot be chosen for" if split == "val" else "are not measured"
        yield Finding(
            f"class-missing-from-{split}",
            "error" if split == "train" else "warning",
            f"{len(missing)} classes have no clip in {split} and {why}:"
            f" {listed(f'{label} {name(label)}' for label in missing)}",
            len(missing),
        )


def _suspicious(manifest: SplitManifest, options: LintOptions) -> Iterator[Finding]:
    used = Counter(row.label for row in manifest.rows)
    for label, name in enumerate(manifest.classes):
        if not used[label]:
            continue
        rows = [row for row in manifest.rows if row.label == label]
        if plain(name) in COLUMN_NAMES:
            yield Finding(
                "header-as-class",
                "error",
                f"class {label} is called {name!r}, as a header or column of annotations: a line of a table"
                f" was read as a class",
                len(rows),
                describe(rows, options.examples),
            )
        elif plain(name) in NO_CLASS:
            yield Finding(
                "no-class-as-class",
                "warning",
                f"class {label}, {name!r}, is what belongs to no class, and counts as one",
                len(rows),
                describe(rows, options.examples),
            )
    hidden = [
        row
        for row in manifest.rows
        if any(plain(part) in NO_CLASS for part in row.path.split("/")[:-1])
        and plain(manifest.classes[row.label]) not in NO_CLASS
    ]
    if hidden:
        yield Finding(
            "negatives-as-class",
            "error",
            f"{len(hidden):,} rows lie in folders of footage that belongs to no class, and carry the label of"
            f" one",
            len(hidden),
            describe(hidden, options.examples),
        )


def _names_and_labels(manifest: SplitManifest, options: LintOptions) -> Iterator[Finding]:
    """Whether labels and the classes that the clips' names tell are one to one."""
    dataset = DATASETS.get(manifest.dataset)
    if dataset is None:
        return
    facts = [read_name(dataset, row.path) for row in manifest.rows]
    strange = [row for row, fact in zip(manifest.rows, facts, strict=True) if fact is None]
    if strange:
        yield Finding(
            "unknown-name",
            "warning",
            f"{len(strange):,} rows have names that do not follow the pattern of {dataset.name}: their groups"
            f" are not known",
            len(strange),
            describe(strange, options.examples),
        )
    if not dataset.group:
        yield Finding(
            "groups-not-known",
            "warning",
            f"the names of {dataset.name} do not tell which clips come from one recording: leaks cannot be"
            f" seen",
            len(manifest.rows),
        )
    names: dict[int, dict[str, Row]] = defaultdict(dict)
    labels: dict[str, dict[int, Row]] = defaultdict(dict)
    for row, fact in zip(manifest.rows, facts, strict=True):
        if fact and fact.class_name:
            names[row.label].setdefault(fact.class_name, row)
            labels[fact.class_name].setdefault(row.label, row)
    for label, same in sorted(names.items()):
        if len(same) > 1:
            yield Finding(
                "several-names-of-a-label",
                "error",
                f"label {label} is {len(same)} classes by the names of its clips: {listed(sorted(same))}",
                len(same),
                describe(list(same.values()), options.examples),
            )
    for name, found in sorted(labels.items()):
        if len(found) > 1:
            yield Finding(
                "several-labels-of-a-name",
                "error",
                f"clips that are {name!r} by their names have the labels {listed(map(str, sorted(found)))}",
                len(found),
                describe(list(found.values()), options.examples),
            )
        elif name in manifest.classes and manifest.classes[next(iter(found))] != name:
            label = next(iter(found))
            yield Finding(
                "name-of-another-class",
                "error",
                f"clips that are {name!r} by their names have label {label}, which is"
                f" {manifest.classes[label]!r}",
                1,
                describe(list(found.values()), options.examples),
            )


def covered_clips(sources: Sources, options: LintOptions) -> Iterator[Finding]:
    """Clips of which a clip of another label covers `options.covered` or more."""
    pairs = covered_pairs(sources, options.covered)
    if pairs:
        yield Finding(
            "covered-by-another-label",
            "error",
            f"{len(pairs):,} clips lie to {100 * options.covered:.0f} % or more within a clip of another"
            f" label",
            len(pairs),
            tuple(
                f"{clip.row.label} {clip.row.path} within {other.row.label} {other.row.path}"
                for clip, other in pairs[: options.examples]
            ),
        )


def covered_pairs(sources: Sources, share: float) -> list[tuple[Placed, Placed]]:
    """Pairs (clip, clip of another label that covers `share` of it or more), each clip once."""
    pairs: list[tuple[Placed, Placed]] = []
    for clips in sources.placed.values():
        once = list({(key_of(clip.row), clip.row.label): clip for clip in clips}.values())
        pairs += _covered(once, share)
    return pairs


def _covered(clips: list[Placed], share: float) -> list[tuple[Placed, Placed]]:
    start = np.array([clip.start for clip in clips])
    end = np.array([clip.end for clip in clips])
    label = np.array([clip.row.label for clip in clips])
    found = []
    for clip in clips:
        length = clip.end - clip.start
        if not math.isfinite(length):
            continue
        common = np.minimum(end, clip.end) - np.maximum(start, clip.start)
        common[label == clip.row.label] = 0
        best = int(common.argmax())
        if common[best] > 0 and common[best] >= share * length:
            found.append((clip, clips[best]))
    return found
