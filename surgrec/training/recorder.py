"""Gathers the numbers of the steps between two points, over all ranks, and hands them to the monitor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgrec.models.health import collapsed
from surgrec.training.console import Console
from surgrec.training.distributed import World
from surgrec.training.monitor import Monitor, memory_use
from surgrec.training.step import StepResult


@dataclass(frozen=True)
class Totals:
    """Counts since the first step of the run; they are part of a checkpoint."""

    decoded_frames: int = 0
    output_frames: int = 0
    substitutes: int = 0


@dataclass
class _Window:
    """What the steps since the last point add up to on this rank."""

    began: float
    steps: int = 0
    wait_seconds: float = 0.0
    decoded_frames: int = 0
    output_frames: int = 0
    substitutes: int = 0
    video_repetition: float = 0.0
    decode_repetition: float = 0.0


class Recorder:
    """One point every few steps: means over the steps since the last one, rates, counts, memory, mix.

    Sums stay on the device until a point is due. `flops_per_clip` and `peak` (FLOP/s of one device) give the
    model FLOP utilisation; None leaves it out. `failures` counts this rank's clips that could not be decoded
    since the start of this process, `failures_before` those in the ledger before. `mix` gives scalars of the
    domains and data sets drawn and expected.
    """

    def __init__(
        self,
        world: World,
        batch: int,
        monitor: Monitor | None,
        console: Console,
        flops_per_clip: float,
        peak: float | None,
        failures: Callable[[], int],
        failures_before: int,
        mix: Callable[[], dict[str, float]],
        totals: Totals,
    ) -> None:
        self._world = world
        self._batch = batch
        self._monitor = monitor
        self._console = console
        self._flops_per_clip = flops_per_clip
        self._peak = peak
        self._failures = failures
        self._failures_before = failures_before
        self._mix = mix
        self._totals = totals
        self._sums: dict[str, Tensor] = {}
        self._good: Tensor = torch.zeros((), device=world.device)
        self._window = _Window(time.monotonic())
        self._warned = False

    def add(self, result: StepResult) -> None:
        """Take in a step, without waiting for the device."""
        # A step that was skipped would make every mean NaN.
        good = (~result.bad).float()
        self._good = self._good + good
        values = {
            "train/loss": result.loss,
            "train/gradient_norm": result.gradient_norm,
        }
        for name, value in values.items():
            kept = torch.where(result.bad, torch.zeros_like(value), value)
            self._sums[name] = self._sums[name] + kept if name in self._sums else kept
        window = self._window
        window.steps += 1
        window.wait_seconds += result.wait_seconds
        window.decoded_frames += result.decoded_frames
        window.output_frames += result.output_frames
        window.substitutes += result.substitutes
        window.video_repetition += result.video_repetition
        window.decode_repetition += result.decode_repetition

    def point(self, result: StepResult, bad_steps: int) -> None:
        """Write the point of the step just taken in, and begin anew. All ranks call it together."""
        window, seconds = self._window, time.monotonic() - self._window.began
        good = max(float(self._good), 1.0)
        local: dict[str, Any] = {
            "means": {name: float(value) / good for name, value in self._sums.items()},
            "monitors": {name: float(value) for name, value in result.monitors.items()},
            "failures": self._failures(),
            "wait": window.wait_seconds / seconds,
            "decoded": window.decoded_frames,
            "output": window.output_frames,
            "repetition": {
                "data/video_repetition": window.video_repetition / window.steps,
                "data/decode_repetition": window.decode_repetition / window.steps,
            },
        }
        self._totals = self.totals()
        ranks = self._world.gather(local)
        means = _mean_over_ranks(ranks, "means")
        monitors = _mean_over_ranks(ranks, "monitors")
        failures = self._failures_before + sum(r["failures"] for r in ranks)
        clips_per_second = window.steps * self._batch / seconds
        wait = sum(r["wait"] for r in ranks) / len(ranks)
        if self._monitor is not None:
            if "rankme" in monitors:
                monitors["collapsed"] = float(self._watch(result.step, monitors))
            values = means | {f"monitor/{name}": value for name, value in monitors.items()}
            values |= {
                "train/lr": result.hyperparameters.lr,
                "train/weight_decay": result.hyperparameters.weight_decay,
                "train/bad_steps": float(bad_steps),
                "speed/clips_per_second": clips_per_second,
                "speed/data_wait": wait,
                "data/decoded_per_output_frame": sum(r["decoded"] for r in ranks)
                / max(sum(r["output"] for r in ranks), 1),
                **_mean_over_ranks(ranks, "repetition"),
                "data/ledger": float(failures),
                "data/substitutes": float(self._totals.substitutes),
            }
            if self._peak is not None:
                achieved = clips_per_second * self._flops_per_clip
                values["speed/mfu"] = achieved / (self._peak * self._world.size)
            values |= memory_use(self._world.device) | self._mix()
            self._monitor.scalars(result.step, values)
            self._console.progress(
                result.step, means["train/loss"], result.hyperparameters.lr, clips_per_second, wait
            )
        self._sums = {}
        self._good = torch.zeros_like(self._good)
        self.restart_clock()

    def _watch(self, step: int, monitors: dict[str, float]) -> bool:
        """Whether features have collapsed; the first time it is said to the person at the terminal."""
        found = collapsed(monitors)
        if found and not self._warned:
            self._warned = True
            self._console.say(
                f"COLLAPSE at step {step}: the teacher's features are nearly the same whatever it sees"
                f" (feature_std {monitors['feature_std']:.3f}, rankme {monitors['rankme']:.1f}). The loss"
                f" does not tell. Raise model.ema_start, or lower optim.lr, and begin again in another --out."
            )
        return found

    def restart_clock(self) -> None:
        """Begin a window now."""
        self._window = _Window(time.monotonic())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here (a checkpoint, a picture) does not count as slowness of the training."""
        began = time.monotonic()
        yield
        self._window.began += time.monotonic() - began

    def totals(self) -> Totals:
        """Counts over all ranks since the first step of the run. All ranks call it together."""
        window = self._window
        ranks = self._world.gather((window.decoded_frames, window.output_frames, window.substitutes))
        decoded, output, substitutes = (sum(column) for column in zip(*ranks, strict=True))
        return Totals(
            self._totals.decoded_frames + decoded,
            self._totals.output_frames + output,
            self._totals.substitutes + substitutes,
        )


def _mean_over_ranks(ranks: list[dict[str, Any]], group: str) -> dict[str, float]:
    """Mean of each scalar over the ranks; those that are not finite anywhere are left out."""
    means = {name: sum(r[group][name] for r in ranks) / len(ranks) for name in ranks[0][group]}
    return {name: value for name, value in means.items() if math.isfinite(value)}
