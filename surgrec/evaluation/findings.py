"""What the linter finds in a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from surgrec.evaluation.manifest import Row

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, or one fact, of a split.

    code: what kind it is, for programs. text: what was counted, in words. count: rows concerned, or what the
    code says. rows: some of them, described. figures: shares in [0, 1] and counts, by name.
    """

    code: str
    severity: Severity
    text: str
    count: int
    rows: tuple[str, ...] = ()
    figures: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class LintOptions:
    """difference: of two accuracies, in [0, 1], that the test set should show. examples: rows of a finding
    that are shown. covered: share of a clip that a clip of another label covers, from which it counts as
    mislabelled. gap_seconds: clips no further apart are neighbours, where a manifest gives seconds."""

    difference: float = 0.05
    examples: int = 3
    covered: float = 0.5
    gap_seconds: float = 1.0


def describe(rows: Sequence[Row], count: int) -> tuple[str, ...]:
    """The first rows as text: split, label, path and seconds."""
    return tuple(f"{row.split} {row.label} {row.path}{_seconds(row)}" for row in rows[:count])


def percent(share: float) -> str:
    """A share with one decimal, as tables print it."""
    return f"{100 * share:.1f} %"


def listed(names: Iterable[str], count: int = 6) -> str:
    """Names in a sentence, no more than `count`."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _seconds(row: Row) -> str:
    if row.start is None and row.end is None:
        return ""
    return f" [{row.start or 0:g}, {'end' if row.end is None else f'{row.end:g}'})"
