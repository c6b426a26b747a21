"""Charts of the report as inline SVG; colours and fonts come from the page's style sheet."""

from __future__ import annotations

from typing import Final

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from surgrec.curation.report_mix import LevelMix, Repeats

MOST_BARS: Final = 24
"""Nodes of a level that are shown as bars; more are shown as a curve."""

_WIDTH: Final = 720
_LABEL: Final = 200
_ROW: Final = 30
_CURVE: Final = 220
_MARGIN: Final = 46


def mix_chart(mix: LevelMix) -> Markup:
    """Shares before and after balancing: bars, or curves over the rank of a node where there are many."""
    return _bars(mix) if len(mix.labels) <= MOST_BARS else _curves(mix)


def _svg(height: int, title: str, body: list[Markup]) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="chart"><title>{}</title>{}</svg>'
    ).format(_WIDTH, height, title, title, Markup("").join(body))


def _bars(mix: LevelMix) -> Markup:
    largest = max(float(mix.natural.max()), float(mix.drawn.max()))
    room = _WIDTH - _LABEL - 70
    body = []
    for row, place in enumerate(np.argsort(-mix.natural, kind="stable").tolist()):
        top = row * _ROW + 4
        label = mix.labels[place]
        shown = label if len(label) <= 28 else f"…{label[-27:]}"
        body.append(Markup('<text x="{}" y="{}" class="end">{}</text>').format(_LABEL - 8, top + 15, shown))
        for kind, share, y in (
            ("before", float(mix.natural[place]), top),
            ("after", float(mix.drawn[place]), top + 11),
        ):
            width = round(room * share / largest, 1)
            body.append(
                Markup(
                    '<rect x="{}" y="{}" width="{}" height="10" class="{}"/>'
                    '<text x="{}" y="{}" class="small">{}</text>'
                ).format(_LABEL, y, width, kind, _LABEL + width + 5, y + 9, f"{100 * share:.3g} %")
            )
    return _svg(len(mix.labels) * _ROW + 8, f"Share of each {mix.name}, before and after balancing", body)


def _curves(mix: LevelMix) -> Markup:
    count = len(mix.labels)
    ranks = np.unique(np.geomspace(1, count, 120).round().astype(int)) - 1
    curves = {
        "before": np.sort(mix.natural)[::-1][ranks],
        "after": np.sort(mix.drawn)[::-1][ranks],
    }
    positive = np.concatenate([curve[curve > 0] for curve in curves.values()])
    low = np.floor(np.log10(positive.min()))
    high = max(np.ceil(np.log10(positive.max())), low + 1)
    body = _frame(
        [(10.0**power, f"{10.0 ** (power + 2):g} %") for power in np.arange(low, high + 1)],
        low,
        high,
        f"rank among {count}, by share (logarithmic)",
    )
    for kind, curve in curves.items():
        x = _MARGIN + 30 + (_WIDTH - _MARGIN - 40) * np.log1p(ranks) / np.log1p(count - 1)
        y = _height(np.maximum(curve, 10.0**low), low, high)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
        body.append(Markup('<polyline points="{}" class="line {}"/>').format(points, kind))
    title = f"Shares of {count} nodes of level {mix.name}, before and after balancing"
    return _svg(_CURVE + 30, title, body)


def _height(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    found: NDArray[np.float64] = _CURVE - (_CURVE - 10) * (np.log10(values) - low) / (high - low)
    return found


def _frame(marks: list[tuple[float, str]], low: float, high: float, below: str) -> list[Markup]:
    body = []
    for value, text in marks:
        y = float(_height(np.array([value]), low, high)[0])
        body.append(
            Markup(
                '<line x1="{}" x2="{}" y1="{}" y2="{}" class="grid"/><text x="{}" y="{}" class="small end">{}'
                "</text>"
            ).format(_MARGIN + 30, _WIDTH - 10, f"{y:.1f}", f"{y:.1f}", _MARGIN + 24, f"{y + 4:.1f}", text)
        )
    body.append(
        Markup('<text x="{}" y="{}" class="small end">{}</text>').format(_WIDTH - 10, _CURVE + 22, below)
    )
    return body


def repeats_chart(repeats: Repeats) -> Markup:
    """How many segments are expected to be drawn how often: a histogram over the logarithm."""
    values = np.log10(repeats.expected)
    low, high = float(np.floor(values.min())), float(np.ceil(values.max()))
    if high <= low:
        high = low + 1
    counts, edges = np.histogram(values, bins=36, range=(low, high))
    room, height = _WIDTH - _MARGIN - 10, 150
    step = room / len(counts)
    body = []
    for number, count in enumerate(counts.tolist()):
        tall = height * count / max(1, int(counts.max()))
        first, last = 10.0 ** edges[number], 10.0 ** edges[number + 1]
        title = f"{count} segments: {first:.3g} to {last:.3g} times"
        body.append(
            Markup(
                '<rect x="{}" y="{}" width="{}" height="{}" class="after"><title>{}</title></rect>'
            ).format(
                f"{_MARGIN + number * step:.1f}",
                f"{10 + height - tall:.1f}",
                f"{max(1.0, step - 1):.1f}",
                f"{tall:.1f}",
                title,
            )
        )
    for power in range(int(low), int(high) + 1):
        x = _MARGIN + room * (power - low) / (high - low)
        body.append(
            Markup('<text x="{}" y="{}" class="small {}">{}</text>').format(
                f"{x:.1f}", height + 26, "end" if power == high else "middle", f"{10.0**power:,.10g} ×"
            )
        )
    body.append(
        Markup('<text x="{}" y="18" class="small end">{}</text>').format(_MARGIN - 4, int(counts.max()))
    )
    return _svg(height + 34, f"Expected repeats of {len(values)} segments over a run", body)
