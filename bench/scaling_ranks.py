"""What one rank of bench/scaling.py does: builds a model and measures with it what is asked for.

All ranks call every function here together. Heavy modules are imported inside, so that a rank has taken its
place before torch starts its threads.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from rank_group import Ready
from scaling_clips import Clips
from scaling_steps import Steps, config_of, curve_of, parts_of, put_back, settle, speed_of
from scaling_storage import loaded_of, open_loader, stored_of
from scaling_work import PROXIES, SYNTHETIC, Bus, Finished, Found, Options, Speed, Work

if TYPE_CHECKING:
    from surgrec.configs.pretrain import JepaPretrain, MaePretrain
    from torch import Tensor

    from surgrec.models.objective import Objective
    from surgrec.training.distributed import World

BUS_RUNS: Final = 5


def measure_all(works: tuple[Work, ...], options: Options) -> Iterator[Ready | Found | Finished]:
    """Ready once all ranks have met; then of each Work what is found, and Finished."""
    import torch

    from surgrec.training.distributed import start_world, stop_world

    world = start_world("auto")
    world.sum_(torch.ones((), device=world.device))
    world.gather(None)
    yield Ready()
    for before, work in zip((works[0], *works), works, strict=False):
        if work.case != before.case:  # Graphs of another case are of no use, and their number has a limit.
            torch._dynamo.reset()
        yield from measure(work, options, world)
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
        yield Finished()
    stop_world(world)


def measure(work: Work, options: Options, world: World) -> Iterator[Found]:
    """What a Work asks for."""
    from surgrec.models.block_ways import set_blocks
    from surgrec.models.build import build_objective
    from surgrec.training.graphed import graph_stream, graphed_passes
    from surgrec.training.parallel import wrap

    config = config_of(work, options)
    objective = build_objective(config.model, config.seed, config.data.frames, config.data.size)
    objective.to(world.device)
    set_blocks(objective, options.blocks)
    # On the host, since a batch may need all memory of the device.
    begin: dict[str, Tensor] = {name: t.to("cpu", copy=True) for name, t in objective.state_dict().items()}
    if work.ranks > 1:
        yield alone_of(objective, config, work, options, world)
        put_back(objective, begin)
    if work.bus:
        yield bus_of(objective, world)
    if work.ranks == 1:
        # The first one twice: how far one rank repeats itself.
        for ranks in (*work.curves[:1], *work.curves):
            whole = dataclasses.replace(config, batch=ranks * work.batch)
            drawn = Clips(config, work.batch, world, drawn=True)
            yield curve_of(Steps(parts_of(whole, objective, objective, world, drawn)), ranks, options)
            put_back(objective, begin)
    begin.clear()
    stream = graph_stream(config, objective, world)
    model = wrap(objective, world, work.parallel or "ddp", stream)
    drawn = Clips(config, work.batch, world, drawn=True)
    steps = Steps(parts_of(config, objective, model, world, drawn))
    if work.ranks > 1 and work.curves:
        yield curve_of(steps, work.ranks, options)
    steps.parts.batches = Clips(config, work.batch, world)
    steps.parts.graph = graphed_passes(config, model, stream, steps.parts.shape, steps.parts.precision)
    if SYNTHETIC in work.sources:
        yield speed_of(steps, SYNTHETIC, options, world)
    if options.checkpoints:
        steps.take(1)  # AdamW has no state before its first step.
        yield stored_of(steps, options, world)
    if PROXIES in work.sources:
        with open_loader(config, work, world) as loader:
            yield loaded_of(loader, config, options, world)
            steps.parts.batches = loader
            yield speed_of(steps, PROXIES, options, world)


def alone_of(
    objective: Objective, config: MaePretrain | JepaPretrain, work: Work, options: Options, world: World
) -> Speed:
    """Steps that each rank takes by itself, while the others do the same; from a graph where theirs are."""
    from surgrec.training.graphed import graph_stream, graphed_passes

    own = dataclasses.replace(config, batch=work.batch)
    silent = dataclasses.replace(world, size=1, control=None, storage=None)
    parts = parts_of(own, objective, objective, silent, Clips(config, work.batch, world))
    stream = graph_stream(config, objective, world)
    parts.graph = graphed_passes(own, objective, stream, parts.shape, parts.precision)
    return speed_of(Steps(parts), None, options, world)


def bus_of(objective: Objective, world: World) -> Bus:
    """All gradients summed over ranks in one piece, while nothing else goes on."""
    import torch

    from surgrec.models.vit import Block

    weights = sum(p.numel() for p in objective.parameters())
    units = 1 + sum(isinstance(part, Block) for part in objective.modules())
    buffer = torch.zeros(objective.parameter_count, device=world.device)
    seconds = []
    for _ in range(1 + BUS_RUNS):
        settle(world)
        began = time.perf_counter()
        world.sum_(buffer)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(max(world.gather(time.perf_counter() - began)))
    return Bus(seconds[1:], buffer.nbytes, weights * buffer.itemsize, units)
