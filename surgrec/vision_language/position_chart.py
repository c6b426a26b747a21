"""How often each position was chosen, as inline SVG in the style of evaluation/table_charts.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

from surgrec.evaluation.table_charts import svg
from surgrec.vision_language.prompts import letter_of

_WIDTH: Final = 720
_LABEL: Final = 60
_VALUE: Final = 180
_ROW: Final = 22


def position_chart(chosen: Sequence[float], expected: Sequence[float], title: str) -> Markup:
    """A bar for each position, with a mark where it would end if positions did not matter."""
    room = _WIDTH - _LABEL - _VALUE
    most = max([1.0, *chosen, *expected])
    body = []
    for k, (said, right) in enumerate(zip(chosen, expected, strict=True)):
        y, mark = k * _ROW, f"{_LABEL + room * right / most:.1f}"
        body.append(
            Markup(
                '<text x="{}" y="{}" class="end">{}</text>'
                '<rect x="{}" y="{}" width="{}" height="14" class="bar"/>'
                '<path d="M{} {}V{}" class="whisker"/>'
                '<text x="{}" y="{}" class="small">{}</text>'
            ).format(
                *(_LABEL - 8, y + 15, letter_of(k)),
                *(_LABEL, y + 4, f"{room * said / most:.1f}"),
                *(mark, y + 1, y + 21),
                *(_WIDTH - _VALUE + 8, y + 15, f"{said:,.0f}, {right:,.1f} expected"),
            )
        )
    return svg(_WIDTH, _ROW * len(chosen) + 4, title, body)
