"""Product and GELU in one kernel against the two of them, on a Hopper GPU with quack-kernels."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from surgrec.kernels import mlp_products
from surgrec.kernels.gelu import plain_gelu_backward
from surgrec.kernels.mlp_products import linear_gelu, linear_gelu_backward
from torch import Tensor, nn
from torch.nn import functional

from surgrec.models.block_ways import set_blocks
from surgrec.models.vit import Blocks

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
# Of ViT-Ti to ViT-H; rows that are no multiple of any tile, and fewer than one has.
WIDTHS = [192, 384, 768, 1024, 1280]
ROWS = [1, 1000, 4097, 20_480]


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).to(LOW)


def layer(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias of an MLP's first layer, whose outputs are of about 1."""
    return draw(rows, width), draw(4 * width, width, scale=width**-0.5), draw(4 * width)


def way_back(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The output's gradient, the second layer's weight, and values before the GELU of every size."""
    return draw(rows, width), draw(width, 4 * width, scale=width**-0.5), draw(rows, 4 * width, scale=2)


def taken(direction: str, *operands: Tensor) -> bool:
    """Whether a fused product computes it; if not, there is nothing to compare."""
    return mlp_products.fused_for(direction, 0, *operands) is not None  # type: ignore[arg-type]


def near(ours: Tensor, theirs: Tensor) -> None:
    """Within bfloat16's rounding, of the whole and of each number."""
    apart = (ours.double() - theirs.double()).norm() / theirs.double().norm()
    assert float(apart) < 2.5e-3
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_forward(rows: int, width: int) -> None:
    operands = layer(rows, width)
    assert taken("forward", *operands)
    hidden, activated = linear_gelu(*operands)
    assert hidden is not None
    exact = functional.linear(*(operand.double() for operand in operands))
    near(hidden, exact)
    near(activated, functional.gelu(exact))
    others = mlp_products.apart(*operands)
    torch.testing.assert_close((hidden, activated), others, rtol=2e-2, atol=2e-2)
    none, alone = linear_gelu(*operands, keep=False)
    assert none is None
    near(alone, functional.gelu(exact))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_backward(rows: int, width: int) -> None:
    operands = way_back(rows, width)
    assert taken("backward", *operands)
    gradient, weight, hidden = (operand.double() for operand in operands)
    expected = plain_gelu_backward(gradient @ weight, hidden)
    found = linear_gelu_backward(*operands)
    near(found[0], expected[0])
    near(found[1], expected[1])
    assert found[2].dtype == torch.float32
    # What is summed up has not been rounded: as near as the order of float32 sums makes it.
    torch.testing.assert_close(found[2].double(), expected[2], rtol=1e-4, atol=2e-5 * (1 + rows**0.5))
    torch.testing.assert_close(
        found[2], mlp_products.apart_backward(*operands)[2], rtol=1e-2, atol=rows**0.5 / 50
    )


def test_every_value_is_the_exact_gelus() -> None:
    """The bias alone runs through [-12, 12]."""
    bias = torch.linspace(-12, 12, 3072, device="cuda").to(LOW)
    x, weight = torch.zeros(8, 768, device="cuda", dtype=LOW), draw(3072, 768)
    assert taken("forward", x, weight, bias)
    _, activated = linear_gelu(x, weight, bias)
    exact = functional.gelu(bias.double())
    torch.testing.assert_close(activated[3].double(), exact, rtol=2**-8, atol=1e-6)


def test_sums_are_the_same_every_time() -> None:
    operands = way_back(4097, 384)
    assert torch.equal(linear_gelu_backward(*operands)[2], linear_gelu_backward(*operands)[2])


def test_other_operands_go_the_other_way() -> None:
    x, weight, bias = layer(64, 384)
    for operands in (
        (x.float(), weight.float(), bias.float()),
        (x[:, :380], weight[:, :380], bias),
        (x[:0], weight, bias),
    ):
        assert not taken("forward", *operands)
        hidden, activated = linear_gelu(*operands)
        torch.testing.assert_close((hidden, activated), mlp_products.apart(*operands))


def captured(run: Callable[[], tuple[Tensor, ...]]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """A graph as training captures it (surgrec/training/graphed.py), and where its results lie."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        results = run()
    return graph, results


def test_a_graph_replays_them() -> None:
    there, back = layer(4097, 384), way_back(4097, 384)

    def run() -> tuple[Tensor, ...]:
        hidden, activated = linear_gelu(*there)
        assert hidden is not None
        return hidden, activated, linear_gelu(*there, keep=False)[1], *linear_gelu_backward(*back)

    assert taken("forward", *there)
    graph, results = captured(run)
    for seed in (1, 2):
        torch.manual_seed(seed)
        for operand, fresh in zip((*there, *back), (*layer(4097, 384), *way_back(4097, 384)), strict=True):
            operand.copy_(fresh)
        for result in results:
            result.fill_(float("nan"))
        graph.replay()
        for one, other in zip(results, run(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_blocks_are_as_near_to_float32_with_them_as_without(
    checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    blocks = Blocks(2, 384, 6, "zero", "auto", checkpointed).cuda()
    for parameter in blocks.parameters():
        nn.init.normal_(parameter, std=0.03)
    x, weights = (torch.randn(3, 500, 384, device="cuda") for _ in range(2))
    used: list[str] = []

    def run(way: str, half: bool) -> list[Tensor]:
        set_blocks(blocks, way)  # type: ignore[arg-type]
        start = x.clone().requires_grad_()
        with torch.autocast("cuda", LOW, enabled=half):
            stream, rest, bias = blocks(start)
        out = stream if rest is None or bias is None else stream + rest + bias
        gradients = torch.autograd.grad((out * weights).sum(), [start, *blocks.parameters()])
        return [out.detach(), *gradients]

    ask = mlp_products.fused_for

    def spy(direction: str, made: int, *operands: Tensor) -> mlp_products.Products | None:
        found = ask(direction, made, *operands)  # type: ignore[arg-type]
        used.extend([direction] if found is not None else [])
        return found

    exact = run("plain", half=False)
    monkeypatch.setattr(mlp_products, "fused_for", spy)
    together = run("fused", half=True)
    assert {"forward", "backward"} <= set(used)
    assert len(used) == (6 if checkpointed else 4)
    monkeypatch.setattr(mlp_products, "fused_for", lambda *ignored: None)
    apart = run("fused", half=True)
    names = ["output", "input", *(name for name, _ in blocks.named_parameters())]
    for name, one, other, wanted in zip(names, together, apart, exact, strict=True):
        size = wanted.norm().clamp(min=1e-8)
        error, allowed = float((one - wanted).norm() / size), float((other - wanted).norm() / size)
        assert error < max(1.2 * allowed, 2.0**-9), (name, error, allowed)
