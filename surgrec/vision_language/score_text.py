"""Scores for the person at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

from surgrec.curation.readable import readable
from surgrec.evaluation.results import Interval
from surgrec.evaluation.table import BASELINES, percent, title_of

SHOWN: Final = 5


def print_scores(documents: Sequence[dict[str, Any]]) -> None:
    """Prints figures of all wordings together, and the accuracy of each; what is missing goes to stderr."""
    for document in documents:
        if ":" in document["mode"]:
            wording = readable(document["mode"].partition(":")[2])
            print(f"    {wording:28} {_figure(document['figures']['accuracy'])}")
            continue
        _print_together(document)


def _print_together(document: dict[str, Any]) -> None:
    rows = document["rows"]["test"]
    print(
        readable(
            f"{document['dataset']} (split {document['manifest_digest'][:8]}), {document['mode']} of"
            f" {document['model']}"
        )
    )
    print(f"test: {rows['read']} of {rows['of']} rows, {document['test_groups']} groups")
    missing = document["missing"]
    for _, path, reason in missing[:SHOWN]:
        print(f"missing: {readable(path)}: {readable(reason)}", file=sys.stderr)
    if len(missing) > SHOWN:
        print(f"and {len(missing) - SHOWN} missing rows more", file=sys.stderr)
    for name, figure in document["figures"].items():
        print(f"  {title_of(name):20} {_figure(figure)}")
    positions = document["positions"]
    if positions["p"] is not None:
        print(f"  positions            chi-square {positions['chi_square']:.1f}, p {positions['p']:.3g}")
    for name, figures in document["baselines"].items():
        print(f"  beside: {readable(BASELINES.get(name, name))}: {_figure(figures['accuracy'])}")


def _figure(figure: dict[str, Any]) -> str:
    return f"{percent(Interval(figure['value'], figure['low'], figure['high']))} %"
