"""The training loop, the same for MAE and JEPA, for one process and many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from surgrec.training.distributed import SharedFlag
from surgrec.training.guard import FiniteGuard
from surgrec.training.recorder import Recorder
from surgrec.training.signals import StopRequest
from surgrec.training.step import Batch, Parts, train_step


@dataclass(frozen=True)
class Hooks:
    """What the loop asks all ranks for at certain steps: a checkpoint, which may be begun only; a picture."""

    save: Callable[[int], None]
    draw: Callable[[int, Batch], None]


@dataclass(frozen=True)
class Outcome:
    """Where the loop ended: its last step, the signal that stopped it (0: none), its last batch (if any)."""

    step: int
    signal: int
    last_batch: Batch | None


def train(
    parts: Parts, start: int, recorder: Recorder, guard: FiniteGuard, stop: StopRequest, hooks: Hooks
) -> Outcome:
    """Take the steps start + 1 .. config.steps, or as far as a signal on any rank allows.

    Ends with a checkpoint of the last step taken, which may be begun only. Raises BadStepError as the guard
    says; then there is none.
    """
    config = parts.config
    flag = SharedFlag(parts.world)
    step, saved, batch = start, start, None
    signal = 0
    recorder.restart_clock()
    while step < config.steps:
        signal = flag.exchange(stop.received)
        if signal:
            break
        step += 1
        last = step == config.steps
        point = step % config.log.every == 0 or step == 1 or last
        result = train_step(parts, step, monitor=point)
        guard.add(result)
        recorder.add(result)
        batch = result.last_batch
        if point:
            guard.settle()
            recorder.point(result, guard.count)
        if config.log.panels_every and (step % config.log.panels_every == 0 or step == 1):
            with recorder.paused():
                hooks.draw(step, batch)
        if step % config.checkpoint.every == 0 or last:
            guard.settle()
            with recorder.paused():
                hooks.save(step)
            saved = step
    flag.close()
    if saved < step:
        guard.settle()
        hooks.save(step)
    return Outcome(step, signal, batch)
