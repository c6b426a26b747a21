"""A comparison of two models as text, JSON and Markdown."""

from __future__ import annotations

import json
from typing import Any

from surgrec.curation.readable import readable
from surgrec.evaluation.comparison import Comparison, SetComparison
from surgrec.evaluation.intervals import Difference
from surgrec.evaluation.table import title_of
from surgrec.evaluation.table_text import markdown_cell

HEAD = ("Data set", "Clips", "Groups", "Figure", "First", "Second", "Difference", "p")


def render(found: Comparison, form: str) -> str:
    """As `text`, `json` or `markdown`. Names come from strangers, and are escaped."""
    if form == "json":
        return json.dumps(_document(found), indent=1)
    names = [f"First: {found.names[0]}", f"Second: {found.names[1]}"]
    notes = [*names, _note(found), *warnings_of(found)]
    rows = _rows(found)
    if form == "markdown":
        lines = ["| " + " | ".join(markdown_cell(cell) for cell in row) + " |" for row in (HEAD, *rows)]
        lines.insert(1, "|" + "---|" * len(HEAD))
        return "\n".join([*lines, "", *(f"{markdown_cell(note)}\n" for note in notes)])
    shown = [[readable(cell) for cell in row] for row in (list(HEAD), *rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in shown]
    return "\n".join([*(line.rstrip() for line in lines), "", *map(readable, notes)])


def warnings_of(found: Comparison) -> list[str]:
    """Sets on which the two were scored on different rows, and what could not be compared."""
    uneven = [
        f"{each.dataset} (split {each.manifest_digest[:8]}): {each.only[0]} test rows were scored by the"
        f" first alone, {each.only[1]} by the second alone; only the {each.rows} common ones are compared"
        for each in found.sets
        if any(each.only)
    ]
    return [*uneven, *(f"not compared: {text}" for text in found.skipped)]


def _note(found: Comparison) -> str:
    return (
        "Figures in %, differences in points, first less second, with 95 % intervals and two-sided p-values"
        f" by paired bootstrap over groups, {found.resamples} resamples; p-values are not corrected for the"
        " number of comparisons."
    )


def _rows(found: Comparison) -> list[list[str]]:
    rows = [
        [
            f"{each.dataset} ({each.manifest_digest[:8]})",
            f"{each.rows} of {each.of}",
            str(each.groups),
            title_of(name),
            f"{100 * each.one[name]:.1f}",
            f"{100 * each.two[name]:.1f}",
            *_shown(difference, found.resamples),
        ]
        for each in found.sets
        for name, difference in each.differences.items()
    ]
    rows += [
        [f"mean of {count} sets", "", "", title_of(name), "", "", *_shown(difference, found.resamples)]
        for name, (difference, count) in found.means.items()
    ]
    return rows


def _shown(difference: Difference, resamples: int) -> tuple[str, str]:
    points = f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    least = difference.p <= 1 / resamples
    return points, f"<= {1 / resamples:g}" if least else f"{difference.p:.3g}"


def _document(found: Comparison) -> dict[str, Any]:
    return {
        "first": found.names[0],
        "second": found.names[1],
        "resamples": found.resamples,
        "sets": [_set(each) for each in found.sets],
        "means": {
            name: difference.plain() | {"sets": count} for name, (difference, count) in found.means.items()
        },
        "skipped": list(found.skipped),
    }


def _set(each: SetComparison) -> dict[str, Any]:
    return {
        "dataset": each.dataset,
        "manifest_digest": each.manifest_digest,
        "rows": {
            "common": each.rows,
            "of": each.of,
            "first_alone": each.only[0],
            "second_alone": each.only[1],
        },
        "groups": each.groups,
        "figures": {
            name: {"first": each.one[name], "second": each.two[name], "difference": difference.plain()}
            for name, difference in each.differences.items()
        },
    }
