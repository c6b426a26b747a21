"""bench/extract_throughput.py on a handful of clips."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest


def test_it_measures_both_on_the_same_clips(
    bench_module: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpora = bench_module("corpora")
    small = corpora.Corpus((corpora.VideoSpec(64, 64, 25, 25, 4), corpora.VideoSpec(64, 64, 25, 25, 3)))
    monkeypatch.setitem(corpora.CORPORA, "small", small)
    script = bench_module("extract_throughput")
    options = script.Options(
        ("random:demo",), ("small",), 6, 1.0, 2, 1, 1, "cpu", cache=tmp_path / "cache", out=tmp_path
    )
    assert script.main(options) == 0
    (file,) = tmp_path.glob("extract_throughput-*.json")
    rows = json.loads(file.read_text())["rows"]
    assert [(entry["name"], entry["metric"]) for entry in rows] == [
        ("loader", "clips_per_s"),
        ("extract", "clips_per_s"),
        ("extract", "share"),
        ("extract", "seconds"),
    ]
    loader, extract, share, _ = (entry["value"] for entry in rows)
    assert share == pytest.approx(extract / loader)
    for wrong, said in (
        ({"corpora": ("none",)}, "unknown corpora"),
        ({"clips": 2}, "--clips must be more"),
        ({"seconds": 60.0}, "no video is as long"),
        ({"clips": 1000}, "do not hold as many"),
        ({"models": ("random:none",)}, "no model"),
    ):
        assert script.main(replace(options, **wrong)) == 1
        assert said in capsys.readouterr().err


def test_rows_differ(
    bench_module: Callable[[str], ModuleType], build_index_of: object, tmp_path: Path
) -> None:
    corpora, script = bench_module("corpora"), bench_module("extract_throughput")
    path = tmp_path / "a.mp4"
    corpora.write_video(corpora.VideoSpec(64, 64, 25, 25, 4), path)
    index = build_index_of([path], tmp_path / "corpus.h5")
    rows = script.rows_of(index, script.Options(clips=10, seconds=1.0))
    assert len({(entry.path, entry.start) for entry in rows}) == 10
    assert [entry.start for entry in rows] == [0.0, 1.0, 2.0, 3.0, 0.1, 1.1, 2.1, 3.1, 0.2, 1.2]
