"""What a test set gives to a model that has learnt nothing of the pictures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from surgrec.evaluation.manifest import Row, SplitManifest


@dataclass(frozen=True, slots=True)
class Baselines:
    """Rows of test that are right, of `test`.

    majority: with the most frequent label of train for all. covered: rows whose group is in train;
    covered_right: of those, with the most frequent label of their group in train. lookup: covered_right, and
    of the others those that the majority gets right.
    """

    test: int
    majority_label: int
    majority: int
    covered: int
    covered_right: int
    lookup: int


def majority_label(rows: Iterable[Row]) -> int:
    """The most frequent label, the lowest of equals. Raises ValueError without rows."""
    counts = Counter(row.label for row in rows)
    if not counts:
        raise ValueError("no rows, and so no majority")
    return min(counts, key=lambda label: (-counts[label], label))


def lookup_labels(rows: Iterable[Row]) -> dict[str, int]:
    """The most frequent label of each group, the lowest of equals."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    return {group: majority_label(same) for group, same in groups.items()}


def baselines(manifest: SplitManifest) -> Baselines:
    """Raises ValueError where train or test has no rows."""
    train, test = manifest.of("train"), manifest.of("test")
    if not test:
        raise ValueError("test has no rows")
    most = majority_label(train)
    labels = lookup_labels(train)
    covered = [row for row in test if row.group in labels]
    right = sum(labels[row.group] == row.label for row in covered)
    return Baselines(
        test=len(test),
        majority_label=most,
        majority=sum(row.label == most for row in test),
        covered=len(covered),
        covered_right=right,
        lookup=sum(labels.get(row.group, most) == row.label for row in test),
    )
