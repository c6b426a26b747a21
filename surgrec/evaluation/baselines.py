"""What a model must beat: always the most frequent class, and looking up where a clip comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from surgrec.evaluation.manifest import Row
from surgrec.evaluation.metrics import Floats, Ints


def majority(train: Sequence[Row]) -> int:
    """The most frequent label of the train rows, the lowest of equally frequent ones."""
    counts = Counter(row.label for row in train)
    return min(counts, key=lambda label: (-counts[label], label))


def lookup(train: Sequence[Row], test: Sequence[Row]) -> tuple[Ints, Ints]:
    """What the group of a test row says: the most frequent label of its train rows; for a group that train
    lacks, the majority of all.

    Returns:
        int64 [n], the answers; and int64 [n], 1 for rows whose group is in train, else 0. In an honest split
        all are 0, and the first is the majority baseline.
    """
    by_group: dict[str, list[Row]] = {}
    for row in train:
        by_group.setdefault(row.group, []).append(row)
    fallback = majority(train)
    known = {group: majority(rows) for group, rows in by_group.items()}
    answers = np.array([known.get(row.group, fallback) for row in test], np.int64)
    return answers, np.array([row.group in known for row in test], np.int64)


def as_scores(answers: Ints, classes: int) -> Floats:
    """float64 [n, C]: 1 for the answer, else 0."""
    return np.eye(classes)[answers]
