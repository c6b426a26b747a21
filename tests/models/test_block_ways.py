"""Compiled blocks: the same numbers, no graph breaks, no compilation once every kind of batch was seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from surgrec.configs.presets import PRESETS
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from surgrec.models.block_ways import compile_blocks
from surgrec.models.build import build_objective
from surgrec.models.objective import Objective

NAMES = ["demo", "demo-jepa"]


@pytest.fixture(autouse=True)
def _fresh_graphs() -> None:
    torch._dynamo.reset()


class Counting:
    """A compiler that counts the graphs it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        self.graphs += 1
        compiled: Callable[..., object] = aot_eager(graph, inputs)
        return compiled


def build(name: str, checkpointed: bool = False) -> tuple[Objective, Callable[[int, int], Tensor]]:
    """An objective, and its step(number, clips), which gives the loss and leaves gradients in the weights."""
    config = PRESETS[name][1]
    model_config = replace(config.model, checkpoint_activations=checkpointed)
    objective = build_objective(model_config, 0, config.data.frames, config.data.size)
    shape = (config.data.frames, config.data.size, config.data.size, 3)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (6, *shape), dtype=torch.uint8, generator=generator)

    def step(number: int, clips: int) -> Tensor:
        samples = torch.arange(clips) + 6 * number
        loss = objective(frames[:clips], samples, number).loss
        loss.backward()
        return loss.detach()

    return objective, step


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_numbers_are_the_same(name: str, checkpointed: bool) -> None:
    plain, plain_step = build(name)
    compiled, compiled_step = build(name, checkpointed)
    assert compile_blocks(compiled, backend=Counting()) > 0
    for number in range(2):
        torch.testing.assert_close(compiled_step(number, 3), plain_step(number, 3), rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients(compiled), gradients(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_steps_compile_nothing_anew(name: str) -> None:
    """JEPA's sequences have other lengths in every step; a panel or a probe has other batches."""
    objective, step = build(name)
    counting = Counting()
    compile_blocks(objective, backend=counting)
    for number in range(2):
        step(number, 4)
    seen = counting.graphs
    # Two halves of each kind of block: encoder and decoder; or student, teacher, predictor.
    assert 0 < seen <= 8
    for number in range(2, 8):
        step(number, 4)
    assert counting.graphs == seen
    step(8, 2)
    step(9, 6)
    again = counting.graphs
    step(10, 3)
    step(11, 5)
    assert counting.graphs == again
