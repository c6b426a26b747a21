"""bench/products.py: a small layer on the CPU, a choice that is wrong, and the layers of the table."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from surgrec.kernels import hopper_tiles, mlp_products, products
from surgrec.kernels.hopper_tiles import PlainRow, Tiling

CPU = torch.device("cpu")


@pytest.fixture
def bench(bench_module: Callable[[str], ModuleType]) -> ModuleType:
    return bench_module("products")


def test_each_product_is_measured(bench: ModuleType) -> None:
    rows = bench.measure_layer((48, 16), 40, bench.Args(calls=1, runs=2), CPU)
    assert [(row.name, row.corpus, row.metric) for row in rows] == [
        ("library", f"48x16 {kind} 40", metric)
        for kind in ("product", "data_gradient", "weight_gradient")
        for metric in ("tflops", "ms")
    ]
    for rate, time in zip(rows[::2], rows[1::2], strict=True):
        assert rate.high * time.low == pytest.approx(2e-9 * 40 * 48 * 16)
        assert rate.extra["error"] < 1e-5


def test_a_choice_is_measured_beside_the_library_and_left_out_where_it_is_wrong(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = (PlainRow(1, Tiling(128, 128, 1, 1, pingpong=True)),)
    table = {("product", 48, 16): row, ("weight_gradient", 48, 16): row}
    monkeypatch.setattr(hopper_tiles, "PLAIN", table)
    monkeypatch.setattr(mlp_products, "products_for", lambda device: object())
    monkeypatch.setattr(products, "product", torch.nn.functional.linear)
    monkeypatch.setattr(products, "weight_gradient", lambda gradient, x: 1.1 * gradient.t() @ x)
    rows = bench.measure_layer((48, 16), 40, bench.Args(calls=1, runs=1), CPU)
    assert [row.name for row in rows if row.metric == "ms"] == ["library", "chosen", "library", "library"]
    assert "48x16 weight_gradient 40 chosen: left out, 0.1" in capsys.readouterr().out


def test_all_layers_of_the_table_are_among_those_measured(bench: ModuleType) -> None:
    for (kind, *layer), rows in hopper_tiles.PLAIN.items():
        tokens = bench.TOKENS[min(layer)]
        assert tuple(layer) in bench.LAYERS
        for row in rows:
            taken = [hopper_tiles.plain_tiling(kind, *layer, each) == row.tiling for each in tokens]
            assert any(taken), (kind, layer, row)


def test_an_unknown_layer_is_refused(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(bench.Args(layers=("1x1",), save=False)) == 2
    assert "48x16" in capsys.readouterr().err
