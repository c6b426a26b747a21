"""One update of the weights: micro-batches forward and backward, clipping, AdamW, EMA."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from surgrec.configs.pretrain import OptimConfig, PretrainConfig
from surgrec.kernels.counter_rng import stream_key
from surgrec.models.objective import Objective, ObjectiveOutput
from surgrec.training.distributed import World
from surgrec.training.graphed import GraphedPasses
from surgrec.training.optim import clip_gradients, set_hyperparameters
from surgrec.training.parallel import accumulating
from surgrec.training.passes import forward_backward
from surgrec.training.resolve import BatchShape
from surgrec.training.schedules import learning_rate, warmup_steps, weight_decay


class Batch(Protocol):
    """What the loop reads of a loader's batch: frames u8 [b,T,H,W,3] on the device, samples int64 [b]."""

    @property
    def frames(self) -> Tensor: ...
    @property
    def samples(self) -> Tensor: ...
    @property
    def requests(self) -> Sequence[Any]: ...
    @property
    def substitutes(self) -> int: ...
    @property
    def decoded_frames(self) -> int: ...
    @property
    def video_repetition(self) -> float: ...
    @property
    def decode_repetition(self) -> float: ...


class Batches(Protocol):
    """An endless stream of this rank's micro-batches, whose place can be written down and taken up again."""

    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Hyperparameters:
    """Values of one step."""

    lr: float
    weight_decay: float


def hyperparameters(optim: OptimConfig, step: int, steps: int, batch: int) -> Hyperparameters:
    """Of update number `step`, 1..steps, for a global batch of `batch` clips."""
    scale = batch / 256 if optim.lr_per_256 else 1.0
    lr = learning_rate(
        step,
        steps,
        warmup_steps(optim.warmup, steps),
        optim.start_lr * scale,
        optim.lr * scale,
        optim.final_lr * scale,
        optim.stretch,
    )
    decay = weight_decay(step, steps, optim.weight_decay, optim.final_weight_decay, optim.stretch)
    return Hyperparameters(lr, decay)


@dataclass
class Parts:
    """All that a step works with. `model` is what `parallel.wrap` made of `objective`.

    `graph` passes micro-batches through in place of `model`, where there is one.
    """

    config: PretrainConfig
    world: World
    objective: Objective
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    shape: BatchShape
    precision: torch.dtype
    graph: GraphedPasses | None = None


@dataclass
class StepResult:
    """What one update gave. loss, gradient_norm, bad and monitors are scalars that stay on the device.

    video_repetition, decode_repetition: means over the micro-batches.
    """

    step: int
    loss: Tensor
    gradient_norm: Tensor
    bad: Tensor
    monitors: dict[str, Tensor]
    hyperparameters: Hyperparameters
    last_batch: Batch
    requests: list[Any] = field(default_factory=list)
    wait_seconds: float = 0.0
    decoded_frames: int = 0
    output_frames: int = 0
    substitutes: int = 0
    video_repetition: float = 0.0
    decode_repetition: float = 0.0


def train_step(parts: Parts, step: int, monitor: bool = False) -> StepResult:
    """Update number `step` (from 1). Where loss or gradients are not finite on any rank, nothing is updated.

    monitor asks the objective for its monitors, of the last micro-batch.

    On the CPU, and where max_bad_steps allows bad steps, that is looked up before the update. Otherwise, on a
    GPU, a flag on the device tells AdamW to skip, so that the host need not wait; the loop hears of it a step
    later and stops, and what the EMA did meanwhile is in no checkpoint.
    """
    config, world = parts.config, parts.world
    hyper = hyperparameters(config.optim, step, config.steps, config.batch)
    set_hyperparameters(parts.optimizer, hyper.lr, hyper.weight_decay)
    if parts.graph is None:
        parts.optimizer.zero_grad(set_to_none=True)
    result = _accumulate(parts, step, hyper, monitor)

    trained = [p for group in parts.optimizer.param_groups for p in group["params"]]
    result.gradient_norm = clip_gradients(trained, config.optim.clip)
    finite = torch.isfinite(result.loss) & torch.isfinite(result.gradient_norm)
    shared = world.sum_(torch.stack([result.loss, (~finite).float()]))
    result.loss = shared[0] / world.size
    result.bad = shared[1] > 0

    if world.device.type == "cpu" or config.max_bad_steps:
        if bool(result.bad):
            return result
    else:
        parts.optimizer.found_inf = result.bad.float()  # type: ignore[attr-defined]  # as GradScaler sets it
    parts.optimizer.step()
    parts.objective.after_step(step - 1, round(config.steps * config.optim.stretch))
    return result


def _accumulate(parts: Parts, step: int, hyper: Hyperparameters, monitor: bool) -> StepResult:
    """Forward and backward of all micro-batches of a step; the gradients are left in the parameters."""
    config, world, count = parts.config, parts.world, parts.shape.accumulation
    zero = torch.zeros((), device=world.device)
    result: StepResult | None = None
    if parts.graph is not None:
        # Before the first batch is asked for, which starts the loader's threads.
        parts.graph.capture()
    for micro in range(count):
        began = time.perf_counter()
        batch = next(parts.batches)
        waited = time.perf_counter() - began
        seed_torch(config.seed, step, micro, world.rank)
        last = micro == count - 1
        if parts.graph is not None:
            output = ObjectiveOutput(parts.graph(batch.frames, batch.samples, micro))
        else:
            with accumulating(parts.model, last):
                output = forward_backward(
                    parts.model,
                    batch.frames,
                    batch.samples,
                    step - 1,
                    monitor and last,
                    parts.precision,
                    count,
                )
        if result is None:
            result = StepResult(step, zero, zero, zero, {}, hyper, batch)
        result.last_batch = batch
        result.loss = result.loss + output.loss
        result.monitors = output.monitors
        result.requests.extend(batch.requests)
        result.wait_seconds += waited
        result.decoded_frames += batch.decoded_frames
        result.output_frames += batch.frames.shape[0] * batch.frames.shape[1]
        result.substitutes += batch.substitutes
        result.video_repetition += batch.video_repetition / count
        result.decode_repetition += batch.decode_repetition / count
    assert result is not None
    return result


def seed_torch(seed: int, step: int, micro: int, rank: int) -> None:
    """Seed PyTorch's generators (drop path) for one micro-batch: stream "torch/<step>/<micro>/<rank>"."""
    torch.manual_seed(stream_key(seed, f"torch/{step}/{micro}/{rank}") >> 1)
