"""Products without a GELU against float64, on a Hopper GPU with quack-kernels."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from surgrec.kernels import hopper_tiles, mlp_products, products
from surgrec.kernels.hopper_tiles import PlainRow, Tiling
from torch import Tensor
from torch.nn import functional

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != mlp_products.CAPABILITY,
        reason="needs a GPU of compute capability 9.x",
    ),
    pytest.mark.skipif(importlib.util.find_spec("quack") is None, reason="needs quack-kernels"),
]

LOW = torch.bfloat16
OUTPUTS, INPUTS = 1152, 384
# Both divide the layer; the rows they do not.
TILINGS = [Tiling(128, 192, 2, 1, pingpong=True), Tiling(256, 128, 1, 2, pingpong=False)]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").to(LOW)


def near(ours: Tensor, exact: Tensor) -> None:
    """Within bfloat16's rounding of the whole."""
    assert ours.dtype == LOW
    assert float((ours.double() - exact).norm() / exact.norm()) < 2.5e-3


@pytest.fixture(params=TILINGS)
def tiling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tiling:
    """One that all products of this layer are made with; sums over tokens in seven pieces."""
    whole: Tiling = request.param
    cut = Tiling(
        whole.rows, whole.columns, whole.cluster_rows, whole.cluster_columns, whole.pingpong, pieces=7
    )
    table = {
        ("product", OUTPUTS, INPUTS): (PlainRow(1, whole),),
        ("data_gradient", OUTPUTS, INPUTS): (PlainRow(1, whole),),
        ("weight_gradient", OUTPUTS, INPUTS): (PlainRow(4000, cut), PlainRow(1, whole)),
    }
    monkeypatch.setattr(hopper_tiles, "PLAIN", table)
    return whole


@pytest.mark.parametrize("rows", [1, 1000, 4097, 20_480])
def test_against_float64(rows: int, tiling: Tiling) -> None:
    x, weight, bias, gradient = draw(rows, INPUTS), draw(OUTPUTS, INPUTS), draw(OUTPUTS), draw(rows, OUTPUTS)
    assert mlp_products.ready(
        lambda found: found.prepare_plain("product", tiling, True, x.device), 0, x, weight, bias
    )
    exact = functional.linear(x.double(), weight.double())
    near(products.product(x, weight), exact)
    near(products.product(x, weight, bias), exact + bias.double())
    near(products.data_gradient(gradient, weight), gradient.double() @ weight.double())
    found = products.weight_gradient(gradient, x)
    near(found, gradient.double().t() @ x.double())
    assert torch.equal(found, products.weight_gradient(gradient, x))
    assert not mlp_products.causes


def test_a_graph_replays_sums_in_pieces(tiling: Tiling) -> None:
    x, gradient = draw(4097, INPUTS), draw(4097, OUTPUTS)
    expected = products.weight_gradient(gradient, x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = products.weight_gradient(gradient, x)
    for _ in range(3):
        found.fill_(float("nan"))
        graph.replay()
        assert torch.equal(found, expected)


@pytest.mark.parametrize("key", list(hopper_tiles.PLAIN))
def test_rows_of_the_table(key: tuple[hopper_tiles.Plain, int, int]) -> None:
    """Each one, for as many tokens as it was measured from."""
    kind, outputs, inputs = key
    for row in hopper_tiles.PLAIN[key]:
        gradient, x, weight = draw(row.tokens, outputs), draw(row.tokens, inputs), draw(outputs, inputs)
        if kind == "product":
            near(products.product(x, weight), x.double() @ weight.double().t())
        elif kind == "data_gradient":
            near(products.data_gradient(gradient, weight), gradient.double() @ weight.double())
        else:
            near(products.weight_gradient(gradient, x), gradient.double().t() @ x.double())
    assert not mlp_products.causes
