"""Tables of scores: those of evaluation/table.py, with one of the wordings and one of the positions that were
chosen for each model."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from surgrec.evaluation.results import Result, result_of
from surgrec.evaluation.table import TITLES, Extra, percent, render, title_of
from surgrec.vision_language.position_chart import position_chart
from surgrec.vision_language.prompts import letter_of

PREFIX: Final = "vlm-"


def render_scores(documents: Sequence[Mapping[str, Any]], form: str) -> str:
    """As text of one of FORMATS; documents as `score` and `python -m surgrec.probe` write them.

    Raises ValueError as `render` does.
    """
    results = [result_of(document) for document in documents]
    if form == "csv":
        return render(results, form)
    together = [result for result in results if not _is_wording(result)]
    extras: dict[tuple[str, str], list[Extra]] = defaultdict(list)
    latest = {result.key: (result, document) for result, document in zip(results, documents, strict=True)}
    for result, document in latest.values():
        if _is_wording(result) or not result.mode.startswith(PREFIX):
            continue
        own = [(each, more) for each, more in latest.values() if _belongs(each, result)]
        place = extras[result.dataset, result.manifest_digest]
        if own:
            place.append(_wordings(result, own))
        place += _positions(result, document.get("positions"))
    return render(together or results, form, {key: tuple(own) for key, own in extras.items()})


def _is_wording(result: Result) -> bool:
    return result.mode.startswith(PREFIX) and ":" in result.mode


def _belongs(wording: Result, result: Result) -> bool:
    """Whether a result is of one wording of another one."""
    return wording.mode.startswith(f"{result.mode}:") and (
        wording.dataset,
        wording.manifest_digest,
        wording.model,
        json.dumps(wording.options, sort_keys=True),
    ) == (result.dataset, result.manifest_digest, result.model, json.dumps(result.options, sort_keys=True))


def _wordings(result: Result, own: Sequence[tuple[Result, Mapping[str, Any]]]) -> Extra:
    names = [name for name in TITLES if any(name in each.figures for each, _ in own)]
    rows = [
        (
            each.mode.partition(":")[2],
            str(document.get("family", "")),
            *(percent(each.figures.get(name)) for name in names),
        )
        for each, document in own
    ]
    return Extra(
        f"Wordings: {result.model}, {result.mode}",
        ("Wording", "Family", *map(title_of, names)),
        tuple(rows),
        "Of each wording in the first order of the options of each clip.",
    )


def _positions(result: Result, positions: Any) -> list[Extra]:
    """The table of positions, none where the document does not hold it as `score` writes it."""
    if not isinstance(positions, dict):
        return []
    chosen, expected = (_numbers(positions.get(name)) for name in ("chosen", "expected"))
    statistic, p = positions.get("chi_square"), positions.get("p")
    known = isinstance(statistic, int | float) and (p is None or isinstance(p, int | float))
    if not known or not chosen or len(chosen) != len(expected):
        return []
    title = f"Positions: {result.model}, {result.mode}"
    shown = "not tested: all clips had one order" if p is None else f"p {p:.3g}"
    return [
        Extra(
            title,
            ("Position", "Chosen", "Expected"),
            tuple(
                (letter_of(k), f"{said:,.0f}", f"{right:,.1f}")
                for k, (said, right) in enumerate(zip(chosen, expected, strict=True))
            ),
            "Answers by the position that they choose; expected if what is said did not depend on where it is"
            f" shown. Chi-square {statistic:.1f}, {shown}.",
            position_chart(chosen, expected, title),
        )
    ]


def _numbers(values: Any) -> list[float]:
    """Empty for what is no list of numbers."""
    numbers = isinstance(values, list) and all(isinstance(each, int | float) for each in values)
    return [float(each) for each in values] if numbers else []
