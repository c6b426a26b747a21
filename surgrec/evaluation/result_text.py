"""A result for the person at the terminal."""

from __future__ import annotations

import sys
from typing import Any, Final

from surgrec.curation.readable import readable

SHOWN: Final = 5


def print_result(result: dict[str, Any]) -> None:
    """Prints figures and baselines of a result's document; what is missing goes to stderr."""
    rows = result["rows"]["test"]
    title = f"{result['dataset']} (split {result['manifest_digest'][:8]}), {result['mode']} of"
    print(readable(f"{title} {result['model']}"))
    print(
        f"test: {rows['read']} of {rows['of']} rows, {result['test_groups']} groups; chosen on val:"
        f" {', '.join(f'{name} {value:g}' for name, value in result['chosen'].items())}"
    )
    if result.get("val_is_test"):
        print("val and test hold the same clips: what was chosen on val was chosen on test", file=sys.stderr)
    for split, path, reason in result["missing"][:SHOWN]:
        print(readable(f"missing, {split}: {path}: {reason}"), file=sys.stderr)
    if len(result["missing"]) > SHOWN:
        print(f"and {len(result['missing']) - SHOWN} missing rows more", file=sys.stderr)
    for split, names in result["classes_missing"].items():
        if names:
            print(readable(f"classes that {split} lacks: {', '.join(names)}"), file=sys.stderr)
    for name, figure in result["figures"].items():
        print(f"  {name:20} {_figure(figure)}")
    for name, figures in result["baselines"].items():
        print(f"  {name + ' baseline':20} accuracy {_figure(figures['accuracy'])}")
    for entry in result.get("few_shot", []):
        accuracy = entry["accuracy"]
        spread = "" if accuracy["deviation"] is None else f" +- {100 * accuracy['deviation']:.1f}"
        print(f"  {entry['shots']} shots: accuracy {100 * accuracy['mean']:.1f}{spread} %")


def _figure(figure: dict[str, Any]) -> str:
    bounds = "" if figure["low"] is None else f"  [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
    return f"{100 * figure['value']:5.1f} %{bounds}"
