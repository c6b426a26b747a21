"""bench/mlp_products.py: a small shape on the CPU, wrong results, and the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from surgrec.kernels import mlp_products

CPU = torch.device("cpu")


@pytest.fixture
def bench(bench_module: Callable[[str], ModuleType]) -> ModuleType:
    return bench_module("mlp_products")


def test_what_there_is_is_measured_and_what_is_not_is_said(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = bench.measure_shape("small", bench.SMALL["small"], bench.Args(calls=1, runs=2), CPU)
    measured = [(row.name, row.corpus, row.metric) for row in rows]
    assert measured == [
        (way, f"small {direction}", metric)
        for direction in ("forward", "alone", "backward")
        for way in ("product", "apart")
        for metric in ("tflops", "ms")
    ]
    for rate, time in zip(rows[::2], rows[1::2], strict=True):
        assert rate.high * time.low == pytest.approx(2e-9 * 50 * 24 * 96)
        assert rate.extra["error"] < 1e-5
        assert rate.runs == 2
    said = capsys.readouterr().out
    assert all(f"small {way} fused: left out, no Hopper" in said for way in ("forward", "alone", "backward"))


def test_fused_products_are_measured_and_another_result_is_noticed(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fused:
        linear_gelu = staticmethod(mlp_products.apart)

        @staticmethod
        def linear_gelu_backward(*operands: Any) -> tuple[torch.Tensor, ...]:
            out, activated, sums = mlp_products.apart_backward(*operands)
            return out, activated, 1.1 * sums

    monkeypatch.setattr(mlp_products, "fused_for", lambda direction, made, *operands: Fused)
    rows = bench.measure_shape("small", bench.SMALL["small"], bench.Args(calls=1, runs=1), CPU)
    assert {row.corpus for row in rows if row.name == "fused"} == {"small forward", "small alone"}
    assert "small backward fused: left out, 0.100 away" in capsys.readouterr().out


def test_a_missing_result_is_an_error(bench: ModuleType) -> None:
    one = torch.ones(2, 3)
    assert bench.error_of((one, None), (one, one)) == float("inf")
    assert bench.error_of((None, one), (None, one)) == 0
    assert bench.error_of((1.5 * one, one), (one, one)) == pytest.approx(0.5)


def test_the_script_writes_its_result(bench: ModuleType, tmp_path: Path) -> None:
    assert bench.main(bench.Args(shapes=("no such",), out=tmp_path)) == 2
    assert bench.main(bench.Args(shapes=("small",), calls=1, runs=1, out=tmp_path)) == 0
    assert len(list(tmp_path.glob("mlp_products-*.json"))) == 1
