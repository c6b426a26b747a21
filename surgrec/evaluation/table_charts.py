"""Charts of a result as inline SVG; colours and fonts come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

from surgrec.curation.readable import readable
from surgrec.evaluation.results import ClassResult
from surgrec.evaluation.table import percent

MOST_LABELLED: Final = 24
"""Classes of a confusion matrix whose cells are large enough for numbers."""

_WIDTH: Final = 720
_LABEL: Final = 220
_VALUE: Final = 130
_ROW: Final = 22


def svg(width: float, height: float, title: str, body: list[Markup]) -> Markup:
    """A chart of this size, with its title for those who do not see it."""
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="chart"><title>{}</title>{}</svg>'
    ).format(f"{width:g}", f"{height:g}", title, title, Markup("").join(body))


def _short(name: str, most: int) -> str:
    text = readable(name)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def recall_chart(classes: Sequence[ClassResult], title: str) -> Markup:
    """A bar for the recall of each class, with its interval; classes that test lacks are said to be so."""
    room = _WIDTH - _LABEL - _VALUE
    body = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _LABEL + room * share
        body.append(
            Markup(
                '<line x1="{}" x2="{}" y1="0" y2="{}" class="grid"/>'
                '<text x="{}" y="{}" class="small middle">{}</text>'
            ).format(x, x, _ROW * len(classes), x, _ROW * len(classes) + 16, f"{100 * share:g} %")
        )
    for number, each in enumerate(classes):
        y = number * _ROW
        body.append(
            Markup('<text x="{}" y="{}" class="end"><title>{}</title>{}</text>').format(
                _LABEL - 8, y + 15, readable(each.name), _short(each.name, 26)
            )
        )
        if each.recall is None:
            text = "no test clip"
        else:
            text = percent(each.recall)
            width = f"{room * each.recall.value:.1f}"
            body.append(
                Markup('<rect x="{}" y="{}" width="{}" height="14" class="bar"/>').format(
                    _LABEL, y + 4, width
                )
            )
            if each.recall.low is not None and each.recall.high is not None:
                low, high = (f"{_LABEL + room * end:.1f}" for end in (each.recall.low, each.recall.high))
                body.append(
                    Markup('<path d="M{} {}h0M{} {}V{}M{} {}V{}M{} {}H{}" class="whisker"/>').format(
                        *(low, y + 11, low, y + 7, y + 15, high, y + 7, y + 15, low, y + 11, high)
                    )
                )
        body.append(
            Markup('<text x="{}" y="{}" class="small">{}</text>').format(_WIDTH - _VALUE + 8, y + 15, text)
        )
    return svg(_WIDTH, _ROW * len(classes) + 22, title, body)


def confusion_chart(names: Sequence[str], confusion: Sequence[Sequence[int]], title: str) -> Markup:
    """Rows by what is true, columns by what was said; shade is the share of the row."""
    count = len(names)
    side = 26.0 if count <= MOST_LABELLED else max(3.0, 620 / count)
    left, top = (180.0, 150.0) if count <= MOST_LABELLED else (26.0, 26.0)
    body = [
        Markup('<text x="{}" y="14" class="small">said →</text>').format(left),
        Markup('<text x="4" y="{}" class="small">true ↓</text>').format(f"{top - 6:g}"),
    ]
    for row, counts in enumerate(confusion):
        y, total = top + row * side, max(1, sum(counts))
        if count <= MOST_LABELLED:
            body.append(
                Markup(
                    '<text x="{}" y="{}" class="small end">{}</text>'
                    '<text transform="translate({} {}) rotate(-60)" class="small">{}</text>'
                ).format(
                    *(f"{left - 6:g}", f"{y + 17:g}", _short(names[row], 22)),
                    *(f"{left + row * side + 16:g}", f"{top - 6:g}", _short(names[row], 20)),
                )
            )
        for column, clips in enumerate(counts):
            x = left + column * side
            hint = f"{readable(names[row])} taken for {readable(names[column])}: {clips} of {sum(counts)}"
            share = clips / total
            body.append(
                Markup(
                    '<g><title>{}</title><rect x="{}" y="{}" width="{}" height="{}" class="cell"/>'
                    '<rect x="{}" y="{}" width="{}" height="{}" class="{}" fill-opacity="{}"/>'
                ).format(
                    *(hint, f"{x:.4g}", f"{y:.4g}", f"{side - 1:.4g}", f"{side - 1:.4g}"),
                    *(f"{x:.4g}", f"{y:.4g}", f"{side - 1:.4g}", f"{side - 1:.4g}"),
                    *("right" if row == column else "wrong", f"{share:.2f}"),
                )
            )
            if count <= MOST_LABELLED and clips:
                body.append(
                    Markup('<text x="{}" y="{}" class="small middle count">{}</text>').format(
                        f"{x + side / 2 - 0.5:g}", f"{y + 17:g}", clips
                    )
                )
            body.append(Markup("</g>"))
    return svg(left + count * side + 80, top + count * side + 4, title, body)
