"""Tables of results: Markdown, LaTeX, CSV, or one HTML page, beside baselines and published numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, get_args

from markupsafe import Markup

from surgrec.evaluation.published import MODELS, SOURCE, TOP1, published_name
from surgrec.evaluation.results import Interval, Result, latest

Format = Literal["markdown", "latex", "csv", "html"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

TITLES: Final = {
    "accuracy": "Top-1",
    "top5": "Top-5",
    "balanced_accuracy": "Balanced",
    "macro_f1": "Macro F1",
    "auroc": "AUROC",
    "video_accuracy": "Video accuracy",
    "video_jaccard": "Video Jaccard",
    "video_edit": "Video edit score",
    "accuracy_parsed": "Top-1 of parsed",
    "parse_failure_rate": "Unparsed",
    "prompt_min": "Worst wording",
    "prompt_max": "Best wording",
    "prompt_sd": "SD over wordings",
    "flip_rate": "Flips of wording",
    "order_consistency": "Same in all orders",
    "position_bias": "Position bias",
    "ece": "ECE",
}
"""How columns are called, in their order; figures of other names follow in theirs."""
PLAIN_SAMPLING: Final = {"clips": 1, "views": ["centre"]}
"""Of a row one clip as it is. What else is seen of it is always named."""
BASELINES: Final = {"majority": "always the most frequent class", "source_lookup": "look-up of the source"}

Kind = Literal["measured", "baseline", "published"]


@dataclass(frozen=True)
class Line:
    """A line of a table. result: what was measured, None for a baseline or a published number, where n, m and
    groups may be None as well."""

    kind: Kind
    name: str
    mode: str
    figures: dict[str, Interval]
    n: int | None
    m: int | None
    groups: int | None
    result: Result | None = None


@dataclass(frozen=True)
class Extra:
    """A further table of a section. chart: SVG above it, which only the page shows."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    chart: Markup | None = None


Extras = Mapping[tuple[str, str], tuple[Extra, ...]]
"""By data set and digest of the split."""


@dataclass(frozen=True)
class Section:
    """Results on one split of a data set. columns: names of figures. lines: measured ones, baselines,
    published ones. extras: further tables."""

    dataset: str
    manifest_digest: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    extras: tuple[Extra, ...] = ()

    def of(self, kind: Kind) -> list[Line]:
        """The lines of a kind."""
        return [line for line in self.lines if line.kind == kind]


@dataclass(frozen=True)
class Table:
    """What all formats show. replaced: results that a later one of the same model, split and way replaced."""

    sections: tuple[Section, ...]
    replaced: int


def render(results: Sequence[Result], format: str, extras: Extras | None = None) -> str:
    """The table as text of one of FORMATS. Where results are of the same model, split, mode and settings, the
    last one is shown, and the table says that there were others. extras: further tables, which CSV leaves
    out.

    Names come from strangers: they are escaped for the format, and what does not print is spelled out. Raises
    ValueError for another format, or where there is no result.
    """
    from surgrec.evaluation.table_page import html
    from surgrec.evaluation.table_text import csv_lines, latex, markdown

    writers = {"markdown": markdown, "latex": latex, "csv": csv_lines, "html": html}
    if format not in writers:
        raise ValueError(f"format {format!r}; expected {', '.join(FORMATS)}")
    if not results:
        raise ValueError("there is no result to show; `python -m surgrec.probe` appends them to a file")
    return writers[format](make_table(results, extras or {}))


def make_table(results: Sequence[Result], extras: Extras = MappingProxyType({})) -> Table:
    """Data sets and splits in the order in which they first come."""
    newest = latest(results)
    keys = dict.fromkeys((result.dataset, result.manifest_digest) for result in newest)
    found = [
        _section(
            [each for each in newest if (each.dataset, each.manifest_digest) == key], extras.get(key, ())
        )
        for key in keys
    ]
    return Table(tuple(found), len(results) - len(newest))


def _section(results: Sequence[Result], extras: tuple[Extra, ...]) -> Section:
    """Of one split."""
    lines = [
        Line(
            "measured",
            each.model,
            _mode(each, results),
            dict(each.figures),
            each.n,
            each.m,
            each.groups,
            each,
        )
        for each in results
    ]
    # Where clips could not be read, baselines of one split differ from model to model.
    seen: dict[str, list[Line]] = {}
    for each in results:
        for name, figures in each.baselines.items():
            title = BASELINES.get(name, plain_name(name))
            line = Line("baseline", title, "", dict(figures), each.n, each.m, each.groups)
            if line not in seen.setdefault(name, []):
                seen[name].append(line)
    lines += [line for found in seen.values() for line in found]
    paper = published_name(results[0].dataset)
    if paper is not None:
        lines += [
            Line("published", model, SOURCE, {"accuracy": Interval(top1 / 100)}, None, None, None)
            for model, top1 in zip(MODELS, TOP1[paper], strict=True)
        ]
    names = dict.fromkeys([*TITLES, *(name for each in results for name in each.figures)])
    columns = tuple(name for name in names if any(name in each.figures for each in results))
    return Section(results[0].dataset, results[0].manifest_digest, columns, tuple(lines), extras)


def _mode(result: Result, others: Sequence[Result]) -> str:
    """The mode, whether it was chosen on test, several clips or views of a row, and those settings in which
    it differs from other results of this model and mode."""
    alike = [each for each in others if (each.model, each.mode) == (result.model, result.mode)]
    names = dict.fromkeys(name for each in alike for name in each.settings)
    said = {
        name
        for name in names
        if len({json.dumps(each.settings.get(name), sort_keys=True) for each in alike}) > 1
    }
    said |= {name for name, plain in PLAIN_SAMPLING.items() if result.sampling.get(name, plain) != plain}
    # Fine-tuning has its own options for clips and views, which are told already.
    said -= {f"test_{name}" for name in said & PLAIN_SAMPLING.keys()}
    shown = [f"{name} {json.dumps(result.settings.get(name))}" for name in names if name in said]
    return ", ".join([result.mode, *["chosen on test"] * result.val_is_test, *shown])


def overview(table: Table) -> tuple[list[str], list[list[Interval | None]]]:
    """Models with their modes, as `model, mode`, and for each section their top-1 or None."""
    names = list(
        dict.fromkeys(
            f"{line.name}, {line.mode}" for section in table.sections for line in section.of("measured")
        )
    )
    rows: list[list[Interval | None]] = []
    for section in table.sections:
        found = {f"{line.name}, {line.mode}": line.figures["accuracy"] for line in section.of("measured")}
        rows.append([found.get(name) for name in names])
    return names, rows


def title_of(figure: str) -> str:
    """The name of a figure, for people."""
    return TITLES.get(figure, plain_name(figure))


def plain_name(name: str) -> str:
    """A name of a record, for people."""
    return name.replace("_", " ")


def percent(figure: Interval | None) -> str:
    """`51.2 [47.0, 55.3]`: the figure and its interval in %, as far as there are any."""
    if figure is None:
        return ""
    if figure.low is None or figure.high is None:
        return f"{100 * figure.value:.1f}"
    return f"{100 * figure.value:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def shown(line: Line, figure: str) -> str:
    """A figure of a line: as `percent` has it, or with the two digits that were published."""
    found = line.figures.get(figure)
    if found is not None and line.kind == "published":
        return f"{100 * found.value:.2f}"
    return percent(found)


def counted(line: Line) -> str:
    """`n of m`; empty where it is not known."""
    return "" if line.n is None else f"{line.n} of {line.m}"
