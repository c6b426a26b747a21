"""Products without a GELU: the library's numbers, what has a row in the table, and failures of a compiler."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable

import pytest
import torch
from surgrec.kernels import hopper_tiles, mlp_products, products
from surgrec.kernels.hopper_tiles import Plain, PlainRow, Tiling, plain_tiling
from torch import Tensor
from torch.nn import functional

LOW = torch.bfloat16
SMALL = Tiling(128, 128, 1, 2, pingpong=True)
LARGE = Tiling(128, 192, 2, 1, pingpong=True)
CUT = Tiling(128, 192, 2, 1, pingpong=True, pieces=7)
OUTPUTS, INPUTS = 24, 16
ROWS = {
    ("product", OUTPUTS, INPUTS): (PlainRow(100, LARGE), PlainRow(6, SMALL)),
    ("data_gradient", OUTPUTS, INPUTS): (PlainRow(6, SMALL),),
    ("weight_gradient", OUTPUTS, INPUTS): (PlainRow(6, CUT),),
}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = LOW) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Recorder:
    """Stands for kernels/hopper_products.py: what is asked of it; its numbers are the library's, plus one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.prepared: list[tuple[Plain, Tiling, bool]] = []
        self.made: list[tuple[Plain, Tiling]] = []

    def prepare_plain(self, kind: Plain, tiling: Tiling, biased: bool, device: torch.device) -> None:
        self.prepared.append((kind, tiling, biased))
        if self.error is not None:
            raise self.error

    def multiply(
        self, kind: Plain, tiling: Tiling, out: Tensor, first: Tensor, second: Tensor, bias: Tensor | None
    ) -> None:
        assert out.dim() == first.dim() == second.dim() == 2
        self.made.append((kind, tiling))
        if kind == "product":
            out.copy_(functional.linear(first, second, bias) + 1)
        else:
            out.copy_((first.t() if kind == "weight_gradient" else first) @ second + 1)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recorder], Recorder]:
    """Lets a Recorder compute what has a row in a small table, on any device."""

    def installed(recorder: Recorder) -> Recorder:
        monkeypatch.setattr(hopper_tiles, "PLAIN", ROWS)
        monkeypatch.setattr(mlp_products, "causes", [])
        monkeypatch.setattr(mlp_products, "products_for", lambda device: recorder)
        return recorder

    return installed


@pytest.mark.parametrize("dtype", [torch.float64, LOW])
def test_by_the_library_they_are_what_autograd_finds(dtype: torch.dtype) -> None:
    x, weight, bias = (
        draw(2, 3, 8, dtype=dtype),
        draw(16, 8, seed=1, dtype=dtype),
        draw(16, seed=2, dtype=dtype),
    )
    x.requires_grad_()
    weight.requires_grad_()
    expected = functional.linear(x, weight, bias)
    assert torch.equal(products.product(x, weight, bias), expected)
    assert torch.equal(products.product(x, weight), functional.linear(x, weight))
    turned = x.transpose(0, 1)
    assert torch.equal(products.product(turned, weight), functional.linear(turned, weight))
    gradient = draw(2, 3, 16, seed=3, dtype=dtype)
    of_x, of_weight = torch.autograd.grad(expected, [x, weight], gradient)
    rows = gradient.flatten(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(products.data_gradient(rows, weight), of_x.flatten(0, 1))
        torch.testing.assert_close(products.weight_gradient(rows, x.flatten(0, 1)), of_weight)


def test_rows_of_the_table_are_taken(install: Callable[[Recorder], Recorder]) -> None:
    recorder = install(Recorder())
    x, weight, bias = draw(2, 3, INPUTS), draw(OUTPUTS, INPUTS, seed=1), draw(OUTPUTS, seed=2)
    gradient = draw(6, OUTPUTS, seed=3)
    out = products.product(x, weight, bias)
    assert torch.equal(out, functional.linear(x, weight, bias) + 1)
    assert not out._is_view()
    assert torch.equal(products.product(x, weight), functional.linear(x, weight) + 1)
    assert torch.equal(products.data_gradient(gradient, weight), gradient @ weight + 1)
    rows = x.flatten(0, 1)
    assert torch.equal(products.weight_gradient(gradient, rows), gradient.t() @ rows + 1)
    assert products.product(draw(100, INPUTS), weight).shape == (100, OUTPUTS)
    assert recorder.prepared == [
        ("product", SMALL, True),
        ("product", SMALL, False),
        ("data_gradient", SMALL, False),
        ("weight_gradient", CUT, False),
        ("product", LARGE, False),
    ]
    assert recorder.made == [(kind, tiling) for kind, tiling, _ in recorder.prepared]


def test_what_has_no_row_or_does_not_fit_is_the_librarys(install: Callable[[Recorder], Recorder]) -> None:
    recorder = install(Recorder())
    x, weight = draw(6, INPUTS), draw(OUTPUTS, INPUTS, seed=1)
    for left, right in (
        (x[:5], weight),
        (x[:0], weight),
        (x, weight[:16]),
        (x.float(), weight.float()),
        (draw(2, INPUTS, 4).transpose(1, 2), weight),
    ):
        assert torch.equal(products.product(left, right), functional.linear(left, right))
    gradient = draw(12, OUTPUTS)[::2]
    assert torch.equal(products.data_gradient(gradient, weight), gradient @ weight)
    assert torch.equal(products.weight_gradient(gradient, x), gradient.t() @ x)
    assert recorder.prepared == []


def test_a_compiler_that_fails_is_asked_once(install: Callable[[Recorder], Recorder]) -> None:
    recorder = install(Recorder(RuntimeError("no such target")))
    gradient, weight = draw(6, OUTPUTS), draw(OUTPUTS, INPUTS)
    for _ in range(2):
        assert torch.equal(products.data_gradient(gradient, weight), gradient @ weight)
    assert len(recorder.prepared) == len(mlp_products.causes) == 1
    assert recorder.made == []


def test_tables() -> None:
    for (kind, outputs, inputs), rows in hopper_tiles.PLAIN.items():
        # Rows of every operand and of the output then begin at multiples of 16 bytes.
        assert outputs % mlp_products.MULTIPLE == inputs % mlp_products.MULTIPLE == 0
        tokens = [row.tokens for row in rows]
        assert tokens == sorted(set(tokens), reverse=True)
        assert min(tokens) > 0
        assert plain_tiling(kind, outputs, inputs, min(tokens) - 1) is None
        assert kind == "weight_gradient" or all(row.tiling.pieces == 1 for row in rows)


COMPILE = """
import torch
from quack.gemm_runtime import host

host.get_max_active_clusters = lambda *sizes: 66  # it asks the GPU
from surgrec.kernels import hopper_products, hopper_tiles

cpu = torch.device("cpu")
for pieces in (1, 7):
    tiling = hopper_tiles.Tiling(128, 192, 2, 1, pingpong=True, pieces=pieces)
    hopper_products.prepare_plain("weight_gradient", tiling, False, cpu)
for kind in ("product", "data_gradient"):
    for biased in (False, True):
        hopper_products.prepare_plain(kind, hopper_tiles.Tiling(128, 192, 2, 1, pingpong=True), biased, cpu)
for (kind, *_), rows in hopper_tiles.PLAIN.items():
    for row in rows:
        hopper_products.prepare_plain(kind, row.tiling, False, cpu)
print("compiled", host._compile_gemm_epi.cache_info().misses)
"""


@pytest.mark.skipif(importlib.util.find_spec("quack") is None, reason="needs quack-kernels")
def test_products_compile_for_hopper(on_hopper: Callable[[str], str]) -> None:
    """For sm_90a on any machine: in every layout, with a bias, and with sums in pieces."""
    printed = re.search(r"^compiled (\d+)$", on_hopper(COMPILE), re.MULTILINE)
    assert printed is not None
    assert int(printed[1]) >= 6
