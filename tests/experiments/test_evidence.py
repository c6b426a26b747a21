"""The page of evidence says what the results say, and lists all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import evidence
from experiments.run import ROOT


def document(size: str, failure: str = "", **more: Any) -> dict[str, Any]:
    measures = [
        {
            "subject": subject,
            "task": "digit",
            "figure": "accuracy",
            "seed": seed,
            "value": value,
            "low": value - 5,
            "high": value + 5,
            "n": 9,
            "of": 10,
            "amount": None,
        }
        for subject, values in (("MAE", (50.0, 60.0)), ("rival", (20.0, 20.0)))
        for seed, value in enumerate(values)
    ]
    return {
        "size": size,
        "date": "2026-11-29",
        "commit": "abc",
        "seconds": 120,
        "failure": failure,
        "machine": {"device": "a chip", "cpus": 2},
        "seeds": [0, 1],
        "checks": [{"claim": "better", "found": "+35", "holds": True}],
        "measures": measures,
        "curves": {},
    } | more


def test_tables_hold_means_intervals_and_every_run(tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "balance" / "results"
    folder.mkdir(parents=True)
    for name, content in (
        ("cpu-a-20261129.json", document("cpu", commit="old")),
        ("cpu-a-20261129-2.json", document("cpu", commit="new")),
        ("cpu-a-20261129-3.json", document("cpu", "step x ended badly:\nmore\nfor a reason", checks=[])),
    ):
        (folder / name).write_text(json.dumps(content))
    text = evidence.section("balance", tmp_path)
    # Student's t with one degree of freedom: 12.706 * sqrt(50 / 2).
    assert "| MAE | 55.0 [-8.5, 118.5] (9 of 10) |" in text
    assert "| rival | 20.0 [20.0, 20.0] (9 of 10) |" in text
    assert "| better | +35 | yes |" in text
    assert text.count("**cpu** (a chip") == 1
    runs = text.split("Every run:")[1]
    assert (
        runs.index("| old |") < runs.index("| new |") < runs.index("failed: step x ended badly: for a reason")
    )
    assert "more" not in runs
    assert evidence.section("collapse", tmp_path) == "Not run yet."


def test_of_one_seed_the_interval_is_that_of_the_test_clips() -> None:
    measure = document("cpu")["measures"][0]
    assert evidence.cell([measure]) == "50.0 [45.0, 55.0] (9 of 10)"
    assert evidence.cell([measure | {"low": None, "n": 10}]) == "50.0"


def test_the_page_is_what_the_results_make_of_it() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert evidence.rewritten(page) == page, "run python experiments/evidence.py"
    for name in evidence.NAMES:
        for size in evidence.SIZES:
            found = evidence.shown(evidence.documents(name), size)
            if found is not None and found["curves"]:
                assert (ROOT / "docs" / f"evidence-{name.replace('_', '-')}-{size}.png").exists()


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="must stand in it once"):
        evidence.rewritten("nothing")


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    jepa = {
        "step": [1, 2],
        "loss": [1.0, 0.5],
        "monitor/feature_std": [0.5, 0.6],
        "monitor/rankme": [9.0, 8.0],
    }
    curves = {"mae-0": {"step": [1, 2], "loss": [2.0, 1.0]}, "jepa-0": jepa}
    evidence.draw(document("cpu", curves=curves), tmp_path / "curves.png")
    from PIL import Image

    picture = Image.open(tmp_path / "curves.png")
    assert picture.width > 3 * picture.height  # four panels
