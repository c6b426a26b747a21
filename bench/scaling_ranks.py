"""What one rank of bench/scaling.py does: builds the model, takes steps, writes and reads a checkpoint.

All ranks call every function here together. Heavy modules are imported inside, so that a rank has taken its
place before torch starts its threads.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rank_group import Ready
from scaling_clips import Clips
from scaling_work import PROXIES, SYNTHETIC, Bus, Curve, Finished, Found, Loaded, Options, Speed, Stored, Work

if TYPE_CHECKING:
    import torch
    from surgrec.configs.pretrain import JepaPretrain, MaePretrain
    from surgrec.loaders.clip_loader import ClipLoader
    from torch import Tensor

    from surgrec.models.objective import Objective
    from surgrec.training.distributed import World
    from surgrec.training.step import Parts

BUS_RUNS: Final = 5
PLANNED_CLIPS: Final = 64
"""Clips from whose plans the bytes of a clip are taken."""
LONG: Final = 100_000
"""Steps of the run that the measured ones are the first of."""


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
    from surgrec.training.parallel import wrap

    config = config_of(work, options)
    objective = build_objective(config.model, config.seed, config.data.frames, config.data.size)
    objective.to(world.device)
    set_blocks(objective, options.blocks)
    begin: dict[str, Tensor] = {name: t.clone() for name, t in objective.state_dict().items()}
    if work.ranks > 1 and work.alone:
        yield alone_of(objective, config, work, options, world)
        put_back(objective, begin)
        yield bus_of(objective, world)
    if work.ranks == 1:
        for ranks in (
            *work.curves[:1],
            *work.curves,
        ):  # The first one twice: how far one rank repeats itself.
            whole = dataclasses.replace(config, batch=ranks * work.batch)
            drawn = Clips(config, work.batch, world, drawn=True)
            yield curve_of(Steps(parts_of(whole, objective, objective, world, drawn)), ranks, options)
            put_back(objective, begin)
    begin.clear()
    model = wrap(objective, world, work.parallel or "ddp")
    drawn = Clips(config, work.batch, world, drawn=True)
    steps = Steps(parts_of(config, objective, model, world, drawn))
    if work.ranks > 1 and work.curves:
        yield curve_of(steps, work.ranks, options)
    steps.parts.batches = Clips(config, work.batch, world)
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


def config_of(work: Work, options: Options) -> MaePretrain | JepaPretrain:
    """The preset with the batch of all ranks, each rank's in one piece.

    The learning rate rises to 1e-4 in the steps of the loss curve: in a preset's own long warm-up weights
    would hardly move, and gradients that are wrong would not show.
    """
    from surgrec.configs.presets import PRESETS

    config: Any = PRESETS[work.case][1]
    data = config.data
    if work.index is not None:  # Proxies have the training rate already.
        data = dataclasses.replace(data, stride=1, fps=None, index=work.index)
    warmup = float(max(1, options.curve))
    optim = dataclasses.replace(
        config.optim, lr=1e-4, start_lr=1e-5, final_lr=1e-5, lr_per_256=False, warmup=warmup
    )
    whole: MaePretrain | JepaPretrain = dataclasses.replace(
        config,
        batch=work.ranks * work.batch,
        micro_batch=work.batch,
        steps=LONG,
        parallel=work.parallel or "ddp",
        data=data,
        optim=optim,
    )
    return whole


def parts_of(
    config: MaePretrain | JepaPretrain,
    objective: Objective,
    model: torch.nn.Module,
    world: World,
    batches: Clips,
) -> Parts:
    """The Parts of a run, as surgrec/training/session.py puts them together."""
    from surgrec.training.optim import build_adamw
    from surgrec.training.resolve import batch_shape, choose_precision
    from surgrec.training.step import Parts

    optimizer = build_adamw(objective, objective.no_weight_decay, config.optim)
    precision = choose_precision(config, world.device)
    shape = batch_shape(config, world.size)
    return Parts(config, world, objective, model, optimizer, batches, shape, precision)


@dataclass(frozen=True)
class Taken:
    """What is kept of a step: its clips are not, which would fill the device."""

    loss: Tensor
    norm: Tensor
    wait: float


class Steps:
    """Takes the steps of a run, one after the other."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.taken = 0

    def take(self, count: int) -> list[Taken]:
        from surgrec.training.step import train_step

        taken = []
        for _ in range(count):
            self.taken += 1
            result = train_step(self.parts, self.taken)
            taken.append(Taken(result.loss, result.gradient_norm, result.wait_seconds))
        return taken


def put_back(objective: Objective, begin: dict[str, Tensor]) -> None:
    """Gives the weights the values of `begin`, and takes the gradients away."""
    for name, tensor in objective.state_dict().items():
        tensor.copy_(begin[name])
    objective.zero_grad(set_to_none=True)


def settle(world: World) -> None:
    """Until all ranks and their devices have come here."""
    if world.device.type == "cuda":
        import torch

        torch.cuda.synchronize()
    world.gather(None)


def speed_of(steps: Steps, source: str | None, options: Options, world: World) -> Speed:
    """Runs of steps after a warm-up; the ranks of `world` begin each together."""
    import torch

    steps.take(options.warmup)
    seconds, waits = [], []
    for _ in range(options.runs):
        settle(world)
        began = time.perf_counter()
        waited = sum(taken.wait for taken in steps.take(options.steps))
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        both = world.gather((time.perf_counter() - began, waited))
        seconds.append([mine for mine, _ in both])
        waits.append([mine for _, mine in both])
    return Speed(source, seconds, waits)


def alone_of(
    objective: Objective, config: MaePretrain | JepaPretrain, work: Work, options: Options, world: World
) -> Speed:
    """Steps that each rank takes by itself, while the others do the same."""
    own = dataclasses.replace(config, batch=work.batch)
    silent = dataclasses.replace(world, size=1, control=None, storage=None)
    clips = Clips(config, work.batch, world)
    return speed_of(Steps(parts_of(own, objective, objective, silent, clips)), None, options, world)


def curve_of(steps: Steps, ranks: int, options: Options) -> Curve:
    """The first steps of a run on drawn clips."""
    taken = steps.take(options.curve)
    return Curve(ranks, [float(step.loss) for step in taken], [float(step.norm) for step in taken])


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


def stored_of(steps: Steps, options: Options, world: World) -> Stored:
    """Checkpoints by the Saver, and the last of them read as a resumed run reads it, from the disk."""
    from surgrec.configs.pretrain import CheckpointConfig

    from surgrec.training.checkpoint import verify_checkpoint
    from surgrec.training.saver import Saver, restore

    parts = steps.parts
    folder = Path(world.share(tempfile.mkdtemp(prefix="scaling-", dir=options.folder) if world.first else ""))
    save, held, load = [], [], []
    try:
        with Saver(folder, world, parts.objective, parts.optimizer, CheckpointConfig(keep_last=1)) as saver:
            for number in range(1, options.checkpoints + 1):
                settle(world)
                began = time.perf_counter()
                saver.save(number, {})
                settle(world)
                held.append(time.perf_counter() - began)
                saver.wait()
                save.append(max(world.gather(time.perf_counter() - began)))
            path = saver.last
            assert path is not None
            for _ in range(options.checkpoints):
                if world.first:
                    forget(path)
                settle(world)
                began = time.perf_counter()
                world.share_result(lambda: verify_checkpoint(path))
                restore(path, parts.objective, parts.optimizer, world)
                settle(world)
                load.append(time.perf_counter() - began)
        size = sum(file.stat().st_size for file in path.iterdir())
    finally:
        if world.first:
            shutil.rmtree(folder, ignore_errors=True)
    return Stored(save, held, load, size)


def forget(path: Path) -> None:
    """Lets the kernel drop its copies of a checkpoint's files, which are on the disk already."""
    for file in path.iterdir():
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def open_loader(config: MaePretrain | JepaPretrain, work: Work, world: World) -> ClipLoader:
    """This rank's loader, with an engine of its own."""
    from surgrec.loaders.clip_loader import ClipLoader
    from surgrec.loaders.packet_index import PacketIndex

    index = PacketIndex.open(config.data.index)
    return ClipLoader(
        index, config.data, config.seed, config.batch, work.batch, world.rank, world.size, world.device
    )


def loaded_of(
    loader: ClipLoader, config: MaePretrain | JepaPretrain, options: Options, world: World
) -> Loaded:
    """Batches that are asked for as fast as they come, on all ranks at the same time."""
    import torch
    from surgrec.loaders.clip_plan import plan_clip
    from surgrec.loaders.packet_index import PacketIndex

    index = PacketIndex.open(config.data.index)
    requests = next(loader).requests[:PLANNED_CLIPS]
    read = [plan_clip(index, request, config.data.drop_disposable).read_bytes for request in requests]
    for _ in range(config.data.prefetch):  # Made while nobody asked.
        next(loader)
    settle(world)
    began = time.perf_counter()
    clips = 0
    while time.perf_counter() - began < options.loader_seconds:
        clips += len(next(loader).frames)
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    rate = clips / (time.perf_counter() - began)
    return Loaded(world.gather(rate), world.gather(sum(read) / len(read))[0])
