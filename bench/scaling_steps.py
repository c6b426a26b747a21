"""Training steps as a rank of bench/scaling.py takes and times them."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scaling_clips import Clips
from scaling_work import Curve, Options, Speed, Work

if TYPE_CHECKING:
    import torch
    from surgrec.configs.pretrain import JepaPretrain, MaePretrain
    from torch import Tensor

    from surgrec.models.objective import Objective
    from surgrec.training.distributed import World
    from surgrec.training.step import Parts

LONG: Final = 100_000
"""Steps of the run that the measured ones are the first of."""


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


def curve_of(steps: Steps, ranks: int, options: Options) -> Curve:
    """The first steps of a run on drawn clips."""
    taken = steps.take(options.curve)
    return Curve(ranks, [float(step.loss) for step in taken], [float(step.norm) for step in taken])
