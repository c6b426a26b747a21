"""Results as one HTML page that needs nothing else and runs nothing: no script, no request.

Names come from strangers. They are escaped where the page is written, and what the page may load is bounded
by a policy (CSP) that allows its own style sheet and nothing more.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from surgrec.curation.readable import readable
from surgrec.evaluation.published import CAUTION, MEAN, MODELS, SOURCE, TOP1
from surgrec.evaluation.results import Result
from surgrec.evaluation.table import Line, Section, Table, counted, overview, percent, shown, title_of
from surgrec.evaluation.table_charts import confusion_chart, recall_chart
from surgrec.evaluation.table_text import NOTE

MOST_CLASSES: Final = 120
"""Classes of a result whose confusion matrix is on the page."""


def html(table: Table) -> str:
    """The page. The same results have the same text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    style = _asset("page.css")
    models, rows = overview(table)
    page: str = environment.from_string(_asset("page.html")).render(
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii"),
        note=NOTE,
        replaced=table.replaced,
        models=[readable(name) for name in models],
        overview=[
            {
                "anchor": f"set{number}",
                "name": readable(section.dataset),
                "digest": section.manifest_digest[:8],
                "cells": [percent(figure) for figure in row],
            }
            for number, (section, row) in enumerate(zip(table.sections, rows, strict=True), 1)
        ],
        sections=[_section(number, section) for number, section in enumerate(table.sections, 1)],
        published={"source": SOURCE, "caution": CAUTION, "models": MODELS, "top1": TOP1, "mean": MEAN},
    )
    return page


def _section(number: int, section: Section) -> dict[str, Any]:
    return {
        "anchor": f"set{number}",
        "name": readable(section.dataset),
        "digest": section.manifest_digest,
        "columns": [readable(title_of(name)) for name in section.columns],
        "lines": [_line(line, section.columns) for line in section.lines],
        "extras": [
            {
                "title": readable(extra.title),
                "head": [readable(cell) for cell in extra.head],
                "rows": [[readable(cell) for cell in row] for row in extra.rows],
                "note": readable(extra.note),
                "chart": extra.chart,
            }
            for extra in section.extras
        ],
        "details": [_details(line.result) for line in section.lines if line.result],
    }


def _line(line: Line, columns: tuple[str, ...]) -> dict[str, Any]:
    return {
        "kind": line.kind,
        "name": readable(line.name),
        "mode": readable(line.mode) or line.kind,
        "clips": counted(line),
        "incomplete": line.n != line.m,
        "groups": "" if line.groups is None else f"{line.groups:,}",
        "figures": [shown(line, name) for name in columns],
    }


def _details(result: Result) -> dict[str, Any]:
    """What unfolds below a table: classes, confusion, and how the result was made."""
    title = readable(f"{result.model}, {result.mode}")
    names = [each.name for each in result.classes]
    drawn = result.confusion and len(names) <= MOST_CLASSES
    return {
        "title": title,
        "recall": recall_chart(result.classes, f"Recall of each class, {title}"),
        "classes": [
            (
                readable(each.name),
                percent(each.recall) or "no test clip",
                "" if each.auroc is None else f"{100 * each.auroc:.1f}",
            )
            for each in result.classes
        ],
        "confusion": confusion_chart(names, result.confusion, f"Confusion matrix, {title}") if drawn else "",
        "no_confusion": f"more than {MOST_CLASSES} classes" if result.confusion else "not recorded",
        "facts": [
            ("Features", result.features_digest or "none"),
            (
                "Trained parameters",
                "not recorded" if result.trained_parameters is None else f"{result.trained_parameters:,}",
            ),
            ("Chosen on val", _values(result.chosen)),
            ("Options", _values(result.options)),
            ("Seen of a row", _values(result.sampling)),
            ("Date", readable(result.date) or "not recorded"),
            ("Commit", readable(result.commit) or "not recorded"),
            (
                "Versions",
                ", ".join(readable(f"{k} {v}") for k, v in result.versions.items()) or "not recorded",
            ),
        ],
    }


def _values(values: Any) -> str:
    return ", ".join(readable(f"{name} {json.dumps(value)}") for name, value in values.items()) or "none"


def _asset(name: str) -> str:
    return files("surgrec.evaluation").joinpath("table_template", name).read_text(encoding="utf-8")
