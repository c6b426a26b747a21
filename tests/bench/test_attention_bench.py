"""bench/attention.py: small shapes on the CPU, wrong backends, and the rows of the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture
def bench(bench_module: Callable[[str], ModuleType]) -> ModuleType:
    return bench_module("attention")


def test_backends_that_run_are_measured_and_others_said(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    args = bench.Args(calls=1, runs=1)
    dense = bench.measure_shape("small", bench.SMALL["small"], args, CPU)
    packed = bench.measure_shape("small-packed", bench.SMALL["small-packed"], args, CPU)
    assert {row.name for row in dense} >= {"sdpa", "flash"}
    assert [row.name for row in packed] == ["sdpa"]
    assert all(
        row.metric == "tflops" and row.value > 0 and row.extra["apart"] < 1e-5 for row in dense + packed
    )
    said = capsys.readouterr().out
    assert "small xformers: left out" in said
    assert "small-packed flash: left out" in said


def test_another_result_is_noticed(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from surgrec.kernels import attention

    monkeypatch.setitem(attention.DENSE, "flash", lambda q, k, v: 1.1 * attention.DENSE["sdpa"](q, k, v))
    rows = bench.measure_shape("small", bench.SMALL["small"], bench.Args(calls=1, runs=1), CPU)
    assert "flash" not in {row.name for row in rows}


def test_rows_of_the_table(bench: ModuleType) -> None:
    shapes = {
        "short": bench.Shape(8, 100, 100, 4),
        "middle": bench.Shape(8, 500, 500, 4),
        "long": bench.Shape(8, 900, 900, 4),
        "ragged": bench.Shape(8, 50, 900, 4),
        "narrow": bench.Shape(8, 900, 900, 4, 32),
    }
    speeds = {
        "short": {"flash": 3, "cudnn": 2, "sdpa": 9},
        "middle": {"flash": 2, "cudnn": 3, "sdpa": 1},
        "long": {"flash": 4, "cudnn": 5},
        "ragged": {"xformers": 1, "flash": 2},
        "narrow": {"triton": 2, "cudnn": 1},
    }
    rows = [
        bench.row(name, shape, "tflops", [value]) for shape, s in speeds.items() for name, value in s.items()
    ]
    assert bench.table_rows(rows, shapes, 9) == [
        "    Row(9, False, 32, ANY_LENGTH, ('triton', 'cudnn')),",
        "    Row(9, False, ANY_WIDTH, 100, ('flash', 'cudnn')),",
        "    Row(9, False, ANY_WIDTH, ANY_LENGTH, ('cudnn', 'flash')),",
        "    Row(9, True, ANY_WIDTH, ANY_LENGTH, ('flash', 'xformers')),",
    ]


def test_the_script_writes_its_result(bench: ModuleType, tmp_path: Path) -> None:
    assert bench.main(bench.Args(shapes=("no such",), out=tmp_path)) == 2
    assert bench.main(bench.Args(shapes=("small",), calls=1, runs=1, out=tmp_path)) == 0
    assert len(list(tmp_path.glob("attention-*.json"))) == 1
