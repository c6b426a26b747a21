"""One rank of test_graphed_ranks_gpu.py: steps under DDP, launched one by one and from graphs; prints JSON.

python -m torch.distributed.run --nproc-per-node 2 graphed_ranks.py ACCUMULATION
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch
from surgrec.configs.presets import PRESETS
from surgrec.loaders.clip_loader import Batch

from surgrec.models.block_ways import set_blocks
from surgrec.models.build import build_objective
from surgrec.training.distributed import World, start_world, stop_world
from surgrec.training.graphed import graph_stream, graphed_passes
from surgrec.training.optim import build_adamw
from surgrec.training.parallel import wrap
from surgrec.training.resolve import batch_shape
from surgrec.training.step import Parts, train_step

ROWS, STEPS = 4, 6


class Clips:
    """Other noise in each batch of each rank, the same for both ways of stepping."""

    def __init__(self, config: Any, world: World) -> None:
        self._shape = (ROWS, config.data.frames, config.data.size, config.data.size, 3)
        self._world, self._taken = world, 0

    def __next__(self) -> Batch:
        number = self._taken * self._world.size + self._world.rank
        self._taken += 1
        generator = torch.Generator().manual_seed(number)
        frames = torch.randint(0, 64 + 16 * (number % 12), self._shape, generator=generator)
        samples = torch.arange(number * ROWS, (number + 1) * ROWS)
        return Batch(frames.to(torch.uint8).to(self._world.device), samples, [], 0, 0, 0.0)


def run(graph: str, accumulation: int, world: World) -> tuple[list[float], torch.Tensor]:
    """Losses of some steps, and all weights after them."""
    batch = ROWS * accumulation * world.size
    config: Any = replace(PRESETS["demo"][1], batch=batch, micro_batch=ROWS, blocks="fused", graph=graph)
    objective = build_objective(config.model, 0, config.data.frames, config.data.size).to(world.device)
    set_blocks(objective, config.blocks)
    stream = graph_stream(config, objective, world)
    model = wrap(objective, world, "ddp", stream)
    optimizer = build_adamw(objective, objective.no_weight_decay, config.optim)
    shape = batch_shape(config, world.size)
    passes = graphed_passes(config, model, stream, shape, torch.bfloat16)
    assert (passes is None) == (graph == "off")
    clips: Any = Clips(config, world)
    parts = Parts(config, world, objective, model, optimizer, clips, shape, torch.bfloat16, passes)
    losses = [float(train_step(parts, step).loss) for step in range(1, STEPS + 1)]
    return losses, torch.cat([p.detach().flatten() for p in objective.parameters()])


def main() -> None:
    world = start_world("cuda")
    accumulation = int(sys.argv[1])
    eager, weights = run("off", accumulation, world)
    graphed, found = run("auto", accumulation, world)
    start = build_objective(PRESETS["demo"][1].model, 0, 8, 64)
    begin = torch.cat([p.detach().flatten() for p in start.parameters()]).to(world.device)
    difference = float((found - weights).norm() / (weights - begin).norm())
    sums = world.gather(float(found.double().sum()))
    if world.first:
        print(json.dumps({"eager": eager, "graphed": graphed, "difference": difference, "sums": sums}))
    stop_world(world)


if __name__ == "__main__":
    main()
