"""What the baselines say of each test row, as scores like a model's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from surgrec.evaluation.baselines import lookup_labels, majority_label
from surgrec.evaluation.manifest import Row
from surgrec.evaluation.metrics import Floats, Ints


def lookup(train: Sequence[Row], test: Sequence[Row]) -> tuple[Ints, Ints]:
    """What the group of a test row says: the most frequent label of its train rows; for a group that train
    lacks, the majority of all.

    Returns:
        int64 [n], the answers; and int64 [n], 1 for rows whose group is in train, else 0. In an honest split
        all are 0, and the first is the majority baseline.
    """
    known, fallback = lookup_labels(train), majority_label(train)
    answers = np.array([known.get(row.group, fallback) for row in test], np.int64)
    return answers, np.array([row.group in known for row in test], np.int64)


def as_scores(answers: Ints, classes: int) -> Floats:
    """float64 [n, C]: 1 for the answer, else 0."""
    return np.eye(classes)[answers]
