"""Product and GELU together: the way for any device, when the fused one is taken, and failures of it."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from surgrec.kernels import hopper_tiles, mlp_products
from surgrec.kernels.gelu import gelu, gelu_backward
from surgrec.kernels.hopper_tiles import Direction, Tiling, tiling_for
from torch import Tensor
from torch.nn import functional

CPU = torch.device("cpu")
LOW = torch.bfloat16
MODULE = "surgrec.kernels.hopper_products"
WIDTHS = [192, 384, 768, 1024, 1280]
"""Of the presets' encoders, decoders and predictors."""


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = LOW) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Recorder:
    """Stands for kernels/hopper_products.py: what is asked of it, and recognisable answers."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.prepared: list[tuple[str, int]] = []
        self.answer = torch.zeros(0)

    def prepare(self, direction: Direction, depth: int, device: torch.device) -> None:
        self.prepared.append((direction, depth))
        if self.error is not None:
            raise self.error

    def linear_gelu(self, x: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Any, Tensor]:
        return keep, self.answer

    def linear_gelu_backward(self, gradient: Tensor, weight: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        return self.answer, self.answer, self.answer


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recorder], Recorder]:
    """Lets a Recorder compute what fits, on any device."""

    def installed(recorder: Recorder) -> Recorder:
        monkeypatch.setattr(mlp_products, "causes", [])
        monkeypatch.setattr(mlp_products, "products_for", lambda device: recorder)
        return recorder

    return installed


@pytest.mark.parametrize("dtype", [torch.float32, LOW])
def test_apart_they_are_the_product_and_the_kernels(dtype: torch.dtype) -> None:
    x, weight, bias = draw(7, 8, dtype=dtype), draw(16, 8, seed=1, dtype=dtype), draw(16, seed=2, dtype=dtype)
    hidden, activated = mlp_products.linear_gelu(x, weight, bias)
    assert hidden is not None
    assert torch.equal(hidden, torch.addmm(bias, x, weight.t()))
    assert torch.equal(activated, gelu(hidden))
    none, alone = mlp_products.linear_gelu(x, weight, bias, keep=False)
    assert none is None
    assert torch.equal(alone, activated)
    gradient, second = draw(7, 8, seed=3, dtype=dtype), draw(8, 16, seed=4, dtype=dtype)
    found = mlp_products.linear_gelu_backward(gradient, second, hidden)
    for one, other in zip(found, gelu_backward(gradient @ second, hidden), strict=True):
        assert torch.equal(one, other)
    assert found[2].dtype == torch.float32


def test_gradients_are_those_that_autograd_finds() -> None:
    sizes = {"x": (7, 6), "weight": (10, 6), "bias": (10,), "second": (4, 10)}
    x, weight, bias, second = (
        draw(*size, seed=seed, dtype=torch.float64) for seed, size in enumerate(sizes.values())
    )
    gradient = draw(7, 4, seed=9, dtype=torch.float64)
    hidden, activated = mlp_products.linear_gelu(x, weight, bias)
    assert hidden is not None
    bias.requires_grad_()
    exact = functional.linear(x, weight, bias)
    out = functional.gelu(exact)
    of_hidden, of_bias = torch.autograd.grad(out @ second.t(), [exact, bias], gradient)
    torch.testing.assert_close((hidden, activated), (exact.detach(), out.detach()))
    # The weight's transpose lies as the function is told: [D, F], of a layer from F to D.
    found = mlp_products.linear_gelu_backward(gradient, second, hidden)
    torch.testing.assert_close(found, (of_hidden, out.detach(), of_bias))


def test_fused_products_are_asked_for_what_fits(install: Callable[[Recorder], Recorder]) -> None:
    recorder = install(Recorder())
    x, weight, bias = draw(5, 16), draw(24, 16), draw(24)
    assert mlp_products.linear_gelu(x, weight, bias)[0] is True
    assert mlp_products.linear_gelu(x, weight, bias, keep=False)[0] is False
    found = mlp_products.linear_gelu_backward(draw(5, 16), draw(16, 24), draw(5, 24))
    assert all(part is recorder.answer for part in found)
    assert recorder.prepared == [("forward", 16), ("alone", 16), ("backward", 16)]
    # Another dtype, rows that no multiple of 16 bytes apart, and no rows go the other way.
    for like in (x.float(), draw(5, 12), x[:0]):
        operands = draw(24, like.shape[1], dtype=like.dtype), bias.to(like.dtype)
        hidden, activated = mlp_products.linear_gelu(like, *operands)
        assert hidden is not True
        assert activated.shape == (len(like), 24)
    assert len(recorder.prepared) == 3


def test_what_fits() -> None:
    whole = draw(6, 32)
    for fine in (whole, whole[2:], whole[:1], whole[1], whole.flatten()):
        assert mlp_products.fits(fine)
    for other in (
        whole.half(),
        whole.t(),
        whole[:, :24],
        whole[::2],
        whole[:1, :24],
        whole.flatten()[4:28],
        whole[0].expand(6, 32),
        whole[:0],
        draw(6, 12),
        torch.empty(1 << 20, 1 << 11, dtype=LOW, device="meta"),
    ):
        assert not mlp_products.fits(other)
        assert not mlp_products.fits(whole, other)
    assert mlp_products.fits(torch.empty((1 << 20) - 1, 1 << 11, dtype=LOW, device="meta"))


def test_outputs_beyond_32_bits_are_made_apart(install: Callable[[Recorder], Recorder]) -> None:
    recorder = install(Recorder())
    x, bias = draw(2, 16), draw(16)
    assert mlp_products.fused_for("forward", 2**31 - 1, x, x, bias) is recorder
    assert mlp_products.fused_for("forward", 2**31, x, x, bias) is None


def test_a_compiler_that_fails_is_named_once(
    install: Callable[[Recorder], Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    recorder = install(Recorder(RuntimeError("ptxas:\n  " + "no such target " * 100)))
    x, weight, bias = draw(5, 16), draw(24, 16), draw(24)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            _, activated = mlp_products.linear_gelu(x, weight, bias)
            assert torch.equal(activated, functional.gelu(torch.addmm(bias, x, weight.t())))
    assert recorder.prepared == [("forward", 16)]
    (record,) = caplog.records
    assert "does not compile here" in record.getMessage()
    assert "RuntimeError: ptxas: no such target" in record.getMessage()
    assert len(record.getMessage()) < 500
    assert mlp_products.causes[0] in record.getMessage()


def test_a_package_that_cannot_be_imported_is_named_and_a_missing_one_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    look = mlp_products._hopper_products.__wrapped__
    monkeypatch.setattr(mlp_products, "causes", [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert look() is None
    assert not caplog.records
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, MODULE, None)
    monkeypatch.delattr("surgrec.kernels.hopper_products", raising=False)
    with caplog.at_level(logging.WARNING):
        assert look() is None
    (record,) = caplog.records
    assert "cannot be imported" in record.getMessage()
    assert mlp_products.causes


@pytest.mark.parametrize(("capability", "fused"), [(8, False), (9, True), (10, False), (12, False)])
def test_devices(capability: int, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    monkeypatch.setattr(mlp_products, "_hopper_products", lambda: recorder)
    look = mlp_products.products_for.__wrapped__
    assert (look(torch.device("cuda", 0)) is recorder) == fused
    assert look(CPU) is None


def test_tiles() -> None:
    assert tiling_for("forward", 384) == tiling_for("alone", 512) == Tiling(256, 128, 1, 2, pingpong=False)
    assert tiling_for("forward", 520) == tiling_for("alone", 1280) == Tiling(128, 128, 1, 2, pingpong=True)
    assert tiling_for("backward", 384) == Tiling(128, 256, 2, 1, pingpong=False)
    assert tiling_for("backward", 768) == Tiling(128, 128, 1, 1, pingpong=True)
    assert tiling_for("backward", 1024) == Tiling(128, 128, 2, 1, pingpong=True)
    for table in (hopper_tiles.FORWARD, hopper_tiles.BACKWARD):
        depths = [row.depth for row in table]
        assert depths == sorted(set(depths))
        assert depths[-1] == hopper_tiles.ANY_DEPTH


COMPILE = f"""
import torch
from quack.gemm_runtime import host

host.get_max_active_clusters = lambda *sizes: 66  # it asks the GPU
from surgrec.kernels import hopper_products

for direction in hopper_products.EPILOGUES:
    for depth in {WIDTHS}:
        hopper_products.prepare(direction, depth, torch.device("cpu"))
info = host._compile_gemm_epi.cache_info()
print("compiled", info.misses, "of", info.currsize)
"""


@pytest.mark.skipif(importlib.util.find_spec("quack") is None, reason="needs quack-kernels")
def test_products_compile_for_hopper_once(tmp_path: Path, on_hopper: Callable[[str], str]) -> None:
    """For sm_90a on any machine; a second process finds them where Triton keeps its kernels."""
    tilings = {
        (direction, tiling_for(direction, width))
        for direction in ("forward", "alone", "backward")
        for width in WIDTHS
    }
    for compiled in (len(tilings), 0):
        assert f"compiled {compiled} of {len(tilings)}" in on_hopper(COMPILE)
    assert len(list(tmp_path.glob("quack/*/*.o"))) == len(tilings)
