"""Where clips lie in the videos that they were cut from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgrec.evaluation.manifest import Row, SplitManifest
from surgrec.evaluation.registry import Unit, read_name
from surgrec.evaluation.registry_table import DATASETS


@dataclass(frozen=True, slots=True)
class Placed:
    """A row and its span [start, end) in a source video."""

    row: Row
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Sources:
    """Rows by source video, in the order of their starts; clips at most `gap` units apart are neighbours."""

    placed: dict[str, list[Placed]]
    unit: Unit
    gap: float


def place(manifest: SplitManifest, gap_seconds: float) -> Sources:
    """Spans from seconds of the rows, where a row has them, else from names that the registry can read.

    Rows of which neither tells the span are left out.
    """
    dataset = DATASETS.get(manifest.dataset)
    from_names = any(row.start is None and row.end is None for row in manifest.rows)
    placed: dict[str, list[Placed]] = {}
    for row in manifest.rows:
        if row.start is not None or row.end is not None:
            end = math.inf if row.end is None else row.end
            placed.setdefault(f"file {row.path}", []).append(Placed(row, row.start or 0.0, end))
        elif dataset and (facts := read_name(dataset, row.path)) and facts.span:
            span = facts.span
            placed.setdefault(f"source {span.source}", []).append(Placed(row, span.start, span.end))
    for clips in placed.values():
        clips.sort(key=lambda clip: (clip.start, clip.end, clip.row.path, clip.row.split))
    if dataset and from_names and dataset.unit != "seconds":
        return Sources(placed, dataset.unit, dataset.adjacent)
    return Sources(placed, "seconds", gap_seconds)


def touching(
    clips: Sequence[Placed], others: Sequence[Placed], gap: float
) -> tuple[list[tuple[Placed, Placed]], list[tuple[Placed, Placed]]]:
    """Pairs (clip, other) that overlap, and pairs that lie at most `gap` apart.

    For each clip there is one pair at most, in the first list where it overlaps any. Both are in the order of
    their starts. O(n log n).
    """
    overlapping: list[tuple[Placed, Placed]] = []
    adjacent: list[tuple[Placed, Placed]] = []
    if not clips or not others:
        return overlapping, adjacent
    starts = np.array([other.start for other in others])
    furthest = _furthest(others)
    for clip in clips:
        before = int(np.searchsorted(starts, clip.end, "left"))
        near = int(np.searchsorted(starts, clip.end + gap, "right"))
        if before and (other := others[furthest[before - 1]]).end > clip.start:
            overlapping.append((clip, other))
        elif near and (other := others[furthest[near - 1]]).end + gap >= clip.start:
            adjacent.append((clip, other))
    return overlapping, adjacent


def _furthest(clips: Sequence[Placed]) -> NDArray[np.int64]:
    """For each place the number of the clip, up to there, that ends last."""
    numbers = np.zeros(len(clips), np.int64)
    best = 0
    for number, clip in enumerate(clips):
        if clip.end > clips[best].end:
            best = number
        numbers[number] = best
    return numbers
