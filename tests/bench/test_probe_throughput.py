"""bench/probe_throughput.py on a handful of clips."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def test_it_measures_every_contestant(
    bench_module: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = bench_module("probe_throughput")
    options = script.Options(
        clips=300,
        width=64,
        tokens=8,
        token_clips=50,
        batch=4,
        steps=1,
        linear_steps=3,
        runs=1,
        whole=True,
        out=tmp_path,
    )
    assert script.main(options) == 0
    (file,) = tmp_path.glob("probe_throughput-*.json")
    rows = json.loads(file.read_text())["rows"]
    assert [(entry["name"], entry["metric"]) for entry in rows] == [
        ("attentive-1", "ms_per_step"),
        ("attentive-20", "ms_per_step"),
        ("attentive-20-alone", "ms_per_step"),
        ("attentive-20", "times_one_head"),
        ("attentive-20", "times_faster_than_alone"),
        ("attentive-20", "seconds"),
        ("linear-20", "seconds"),
        ("linear-1", "seconds"),
        ("knn", "seconds"),
        ("process", "peak_gib"),
    ]
    values = {(entry["name"], entry["metric"]): entry["value"] for entry in rows}
    assert all(value > 0 for value in values.values())
    ratio = values["attentive-20", "ms_per_step"] / values["attentive-1", "ms_per_step"]
    assert values["attentive-20", "times_one_head"] == pytest.approx(ratio)
    assert script.main(script.Options(heads=21)) == 1
    assert "--heads is 21" in capsys.readouterr().err
