"""Tables of results as Markdown, LaTeX and CSV. Names come from strangers and are escaped for each."""

from __future__ import annotations

import csv
import io
from typing import Final

from surgrec.curation.readable import readable
from surgrec.evaluation.published import CAUTION, SOURCE
from surgrec.evaluation.table import Extra, Section, Table, counted, overview, percent, shown, title_of

_MARKDOWN: Final = {ord(letter): f"\\{letter}" for letter in "\\`*_[]<>|&~$:@#!"}
_LATEX: Final = {
    ord(letter): text
    for letter, text in {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "`": r"\textasciigrave{}",
        "-": "{-}",
        "'": r"\textquotesingle{}",
        **{letter: f"\\{letter}" for letter in "{}%$#&_"},
    }.items()
}
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes a cell for a formula by."""
NOTE: Final = "Figures in %, with 95 % intervals by bootstrap over groups where there are any."


def markdown(table: Table) -> str:
    """A table of top-1 over all splits, where there are several, and one for each."""
    parts = []
    if len(table.sections) > 1:
        names, rows = overview(table)
        body = [
            [_split(section), *(percent(figure) for figure in row)]
            for section, row in zip(table.sections, rows, strict=True)
        ]
        parts += ["## Top-1", *_markdown_table(["Data set", *names], body)]
    for section in table.sections:
        parts += [f"## {markdown_cell(_split(section))}", *_markdown_table(_head(section), _body(section))]
        for extra in section.extras:
            parts += [f"### {markdown_cell(extra.title)}"]
            parts += _markdown_table(list(extra.head), [list(row) for row in extra.rows])
            parts += [markdown_cell(extra.note)] if extra.note else []
    parts += [NOTE, *_notes(table)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, *rows]
    text = ["| " + " | ".join(markdown_cell(cell) for cell in line) + " |" for line in lines]
    return ["\n".join([text[0], "|" + "---|" * len(head), *text[1:]])]


def markdown_cell(text: str) -> str:
    """A name as a cell, with what Markdown reads as marks escaped."""
    return readable(text).translate(_MARKDOWN)


def latex(table: Table) -> str:
    """A table environment for each split; needs \\usepackage{booktabs} and, for names, textcomp (part of
    LaTeX since 2020)."""
    parts = ["% needs \\usepackage{booktabs}"]
    for section in table.sections:
        head = _head(section)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(_split(section))}. {_tex(NOTE)}}}",
            rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
            r"\toprule",
            " & ".join(_tex(cell) for cell in head) + r" \\",
            r"\midrule",
        ]
        for kind in ("measured", "baseline", "published"):
            body = _body(section, kind)
            if body and kind != "measured":
                lines.append(r"\midrule")
            lines += [" & ".join(_tex(cell) for cell in row) + r" \\" for row in body]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
        parts += [_latex_extra(section, extra) for extra in section.extras]
    parts += [f"% {_tex(note)}" for note in _notes(table)]
    return "\n\n".join(parts) + "\n"


def _latex_extra(section: Section, extra: Extra) -> str:
    caption = ". ".join(part for part in (_split(section), extra.title, extra.note) if part)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(extra.head) - 1)}}}",
        r"\toprule",
        " & ".join(_tex(cell) for cell in extra.head) + r" \\",
        r"\midrule",
        *(" & ".join(_tex(cell) for cell in row) + r" \\" for row in extra.rows),
        *(r"\bottomrule", r"\end{tabular}", r"\end{table}"),
    ]
    return "\n".join(lines)


def _tex(text: str) -> str:
    return readable(text).translate(_LATEX)


def csv_lines(table: Table) -> str:
    """A line for each figure: shares of 1, not rounded, and empty cells for what is not known."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(
        [
            *(
                "dataset",
                "manifest_digest",
                "kind",
                "name",
                "mode",
                "features_digest",
                "scored",
                "of",
                "groups",
            ),
            *("figure", "value", "low", "high", "trained_parameters", "date", "commit"),
        ]
    )
    for section in table.sections:
        for line in section.lines:
            found = line.result
            for name, figure in line.figures.items():
                cells = [
                    *(section.dataset, section.manifest_digest, line.kind, line.name, line.mode),
                    *(found.features_digest if found else "", line.n, line.m, line.groups),
                    *(name, figure.value, figure.low, figure.high),
                    *((found.trained_parameters, found.date, found.commit) if found else ("", "", "")),
                ]
                rows.writerow([spreadsheet_cell(cell) for cell in cells])
    return out.getvalue()


def spreadsheet_cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula, and in which all prints."""
    if not isinstance(value, str):
        return value
    text = readable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _split(section: Section) -> str:
    return f"{section.dataset} (split {section.manifest_digest[:8]})"


def _head(section: Section) -> list[str]:
    return ["Model", "Evaluation", "Test clips", "Groups", *(title_of(name) for name in section.columns)]


def _body(section: Section, kind: str = "") -> list[list[str]]:
    """Of one kind of line, or of all."""
    return [
        [
            line.name,
            line.mode or line.kind,
            counted(line),
            "" if line.groups is None else str(line.groups),
            *(shown(line, name) for name in section.columns),
        ]
        for line in section.lines
        if kind in ("", line.kind)
    ]


def _notes(table: Table) -> list[str]:
    notes = []
    if any(section.of("published") for section in table.sections):
        notes.append(f"{SOURCE}: {CAUTION}")
    if table.replaced:
        notes.append(
            f"Not shown: {table.replaced} earlier {'result' if table.replaced == 1 else 'results'} of the"
            " same model, split, evaluation, clips and options."
        )
    return notes
