"""Splits without leaks: whole groups in train, val and test, classes in the shares of the set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from surgrec.evaluation.clip_spans import place
from surgrec.evaluation.findings import listed, percent
from surgrec.evaluation.lint_labels import covered_pairs
from surgrec.evaluation.lint_leaks import Key, key_of
from surgrec.evaluation.manifest import SPLITS, Row, Split, SplitManifest
from surgrec.evaluation.share_search import TOLERANCE
from surgrec.evaluation.stratify import MOST_CLASSES, MOST_CLIPS, MOST_PARTS, misses, stratify

METHOD = 2
"""Of the way groups are chosen; another number gives other splits."""
COVERED = 0.5


class RepairError(ValueError):
    """A split that cannot be repaired; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Miss:
    """A class whose share of a split is more than TOLERANCE per cent and one clip from its share of the set.

    clips of `of` in the split, `wanted` clips by its share; in_all: clips of the class, in `groups` groups.
    """

    split: Split
    name: str
    clips: int
    wanted: float
    of: int
    in_all: int
    groups: int


@dataclass(frozen=True, slots=True)
class Repaired:
    """The new splits, and the classes for which groups did not allow the shares."""

    manifest: SplitManifest
    misses: tuple[Miss, ...]


def repair(
    manifest: SplitManifest,
    parts: Sequence[int] = (70, 15, 15),
    seed: int = 0,
    drop_classes: Sequence[str] = (),
    drop_covered: bool = False,
) -> Repaired:
    """Group-disjoint splits of all clips of a manifest, in the proportions `parts` of train, val, test.

    Clips that stand in several rows are taken once; those with more than one label, and those of classes to
    be dropped, are left out, with drop_covered also those of which half or more lies within a clip of another
    label; groups that share a source video are one. The result does not depend on the
    order of the rows, nor on the machine. Raises RepairError.
    """
    if len(parts) != len(SPLITS) or min(parts) < 1 or sum(parts) > MOST_PARTS:
        raise RepairError(
            f"--parts {' '.join(map(str, parts))}: three whole numbers from 1 on, of train, val and test, of"
            f" at most {MOST_PARTS} together"
        )
    rules = [f"repaired from digest {manifest.digest}", *manifest.rules]
    rows, dropped = _one_of_each(manifest)
    rules += dropped
    if drop_covered:
        sources = place(replace(manifest, rows=tuple(rows)), 0.0)
        covered = {key_of(clip.row) for clip, _ in covered_pairs(sources, COVERED)}
        rows = [row for row in rows if key_of(row) not in covered]
        rules.append(
            f"{len(covered)} clips left out of which half or more lies within a clip of another label"
        )
    rows, classes = _without_classes(rows, manifest.classes, drop_classes)
    if drop_classes:
        rules.append(f"classes dropped, and the others numbered anew: {', '.join(sorted(set(drop_classes)))}")
    if len({row.label for row in rows}) < 2:
        raise RepairError("clips of fewer than two classes are left: there is nothing to tell apart")
    if len(rows) > MOST_CLIPS:
        raise RepairError(
            f"{len(rows):,} clips; splits of {MOST_CLIPS:,} at most can be repaired: divide the manifest"
            " by hand"
        )
    if len(classes) > MOST_CLASSES:
        raise RepairError(
            f"{len(classes):,} classes; splits of {MOST_CLASSES:,} at most can be repaired: leave some out"
            " with --drop-classes"
        )
    rows, merged = _merge_groups(replace(manifest, rows=tuple(rows)))
    rules += merged
    names = sorted({row.group for row in rows})
    if len(names) < len(SPLITS):
        raise RepairError(
            f"{len(names)} groups, and train, val and test need one each; use another group rule, or"
            f" cross-validation"
        )
    number = {name: place for place, name in enumerate(names)}
    counts = np.zeros((len(names), len(classes)), np.int64)
    for row in rows:
        counts[number[row.group], row.label] += 1
    chosen = stratify(names, counts, parts, seed)
    missed = _misses(counts, chosen, classes)
    rules.append(
        f"whole groups to train:val:test = {':'.join(map(str, parts))}, classes in their shares of the set,"
        f" method {METHOD}, seed {seed}"
    )
    rules += [describe_miss(miss) for miss in missed]
    placed = [replace(row, split=SPLITS[int(chosen[number[row.group]])]) for row in rows]
    placed.sort(key=lambda row: (SPLITS.index(row.split), *_sortable(key_of(row))))
    return Repaired(SplitManifest(manifest.dataset, classes, tuple(placed), tuple(rules)), missed)


def describe_miss(miss: Miss) -> str:
    """As it stands in the rules of the manifest."""
    return (
        f"not within {TOLERANCE} %: {miss.name} has {miss.clips} of {miss.of} clips of {miss.split}"
        f" ({percent(miss.clips / miss.of)}), {miss.wanted:.1f} by its share; its"
        f" {miss.in_all} clips are of {miss.groups} groups"
    )


def _sortable(key: Key) -> tuple[str, float, float]:
    path, start, end = key
    return path, -1.0 if start is None else float(start), -1.0 if end is None else float(end)


def _one_of_each(manifest: SplitManifest) -> tuple[list[Row], list[str]]:
    """Each clip once, in the order of paths, without those with several labels."""
    same: dict[Key, list[Row]] = defaultdict(list)
    for row in manifest.rows:
        same[key_of(row)].append(row)
    rules = []
    torn = sorted((key for key, rows in same.items() if len({row.label for row in rows}) > 1), key=_sortable)
    if torn:
        rules.append(
            f"{len(torn)} clips with more than one label left out: {listed(path for path, _, _ in torn)}"
        )
        for key in torn:
            del same[key]
    again = sum(len(rows) - 1 for rows in same.values())
    if again:
        rules.append(f"{again} rows that repeat a clip left out")
    if not same:
        raise RepairError("no clip has one label only")
    return [min(same[key], key=lambda row: row.group) for key in sorted(same, key=_sortable)], rules


def _without_classes(
    rows: Sequence[Row], classes: tuple[str, ...], dropped: Sequence[str]
) -> tuple[list[Row], tuple[str, ...]]:
    unknown = sorted(set(dropped) - set(classes))
    if unknown:
        raise RepairError(
            f"--drop-classes {', '.join(unknown)}: no such class; they are {', '.join(classes)}"
        )
    kept = [label for label, name in enumerate(classes) if name not in dropped]
    if not dropped:
        return list(rows), classes
    numbers = {label: number for number, label in enumerate(kept)}
    return (
        [replace(row, label=numbers[row.label]) for row in rows if row.label in numbers],
        tuple(classes[label] for label in kept),
    )


def _merge_groups(manifest: SplitManifest) -> tuple[list[Row], list[str]]:
    """Groups that have a file or a source video in common become one, under the first of their names."""
    parent = {row.group: row.group for row in manifest.rows}

    def find(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    shared: dict[str, set[str]] = defaultdict(set)
    for row in manifest.rows:
        shared[f"file {row.path}"].add(row.group)
    for source, clips in place(manifest, 0.0).placed.items():
        shared[source].update(clip.row.group for clip in clips)
    before = len(parent)
    for groups in shared.values():
        roots = {find(group) for group in groups}
        first = min(roots)
        for root in roots:
            parent[root] = first
    after = len({find(group) for group in parent})
    rules = (
        [f"{before - after} groups joined to others with which they share a video"] if after < before else []
    )
    return [replace(row, group=find(row.group)) for row in manifest.rows], rules


def _misses(counts: NDArray[np.int64], chosen: NDArray[np.int64], classes: Sequence[str]) -> tuple[Miss, ...]:
    held = np.stack([counts[chosen == number].sum(0) for number in range(len(SPLITS))])
    total, sizes = held.sum(0), held.sum(1)
    return tuple(
        Miss(
            split=SPLITS[number],
            name=classes[label],
            clips=int(held[number, label]),
            wanted=int(sizes[number]) * int(total[label]) / int(total.sum()),
            of=int(sizes[number]),
            in_all=int(total[label]),
            groups=int((counts[:, label] > 0).sum()),
        )
        for number, label in np.argwhere(misses(held)).tolist()
    )
