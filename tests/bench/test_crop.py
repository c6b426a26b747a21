"""bench/crop.py on one small batch, where the twins stand in for the kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

CPU = torch.device("cpu")


def test_contestants_agree_and_are_measured(bench_module: Callable[[str], ModuleType]) -> None:
    bench = bench_module("crop")
    args = bench.Args(clips=2, frames=1, size=32, runs=1)
    rows = bench.measure("480p10", args, CPU)
    assert [row.name for row in rows] == ["crop_clips", "crop_clips+dali", "to_rgb", "to_rgb+dali"]
    assert all(row.metric == "clips_per_s" and row.value > 0 for row in rows)
    assert rows[3].extra["levels_apart"] < 1


def test_other_pictures_are_noticed(
    bench_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_module("crop")
    monkeypatch.setattr(bench, "TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match=r"differ by .* levels"):
        bench.measure("256p", bench.Args(clips=1, frames=1, size=32, runs=1), CPU)


def test_unknown_sources_are_refused(
    bench_module: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = bench_module("crop")
    assert bench.main(bench.Args(sources=("8k",), out=tmp_path)) == 2
    assert "8k" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
