"""From handwriting to a table: draw a labelled set, extract features, probe them, and show what came out."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgrec.benchmark import main as benchmark
from surgrec.demo_data.digit_set import make_set
from surgrec.demo_data.handwriting import sklearn_digits
from surgrec.evaluation.results import read_results
from surgrec.extract import main as extract
from surgrec.probe import main as probe


def test_from_a_set_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, features, results = tmp_path / "set", tmp_path / "f.h5", tmp_path / "results.jsonl"
    make_set(root, sklearn_digits(), {"train": 1, "val": 1, "test": 1}, workers=1)
    manifest = root / "motion.json"
    assert benchmark(["check", str(manifest), "--data-root", str(root), "--no-decode"]) == 0
    assert benchmark(["lint", str(manifest)]) == 0
    given = ["--manifest", str(manifest)]
    made = ["--data-root", str(root), "--model", "random:demo", "--tokens", "--out", str(features)]
    assert extract([*given, *made]) == 0
    for kind in ("knn", "linear", "attentive"):
        options = ["--kind", kind, "--out", str(results), "--resamples", "100", "--device", "cpu"]
        options += [] if kind == "knn" else ["--steps", "60", "--seeds", "0"]
        assert probe([str(features), *given, *options]) == 0
    capsys.readouterr()
    found = read_results(results)
    assert [result.mode for result in found] == ["probe-knn", "probe-linear", "probe-attentive"]
    assert all((result.n, result.m) == (80, 80) for result in found)
    majority = found[0].baselines["majority"]["accuracy"].value
    assert majority == 0.125
    # Untrained networks see some of it: eight classes, 80 clips.
    assert max(result.figures["accuracy"].value for result in found) > 1.5 * majority
    assert benchmark(["table", str(results)]) == 0
    assert capsys.readouterr().out.count("random") == 3
