"""What happens to steps whose loss or gradients are not finite."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from typing import Any

import torch

from surgrec.models.objective import Objective
from surgrec.models.shards import local_tensors
from surgrec.training.distributed import World
from surgrec.training.errors import UserError
from surgrec.training.run_folder import RunFolder, write_atomically
from surgrec.training.step import StepResult


class BadStepError(UserError):
    """Loss or gradients were not finite more often than max_bad_steps allows."""


def check_weights(objective: Objective, world: World, step: int) -> None:
    """Raises UserError, on every rank, where weights are not finite: a checkpoint of them is worth nothing.

    The flag of a step tells of its loss and gradients; what the last update made of the weights shows here.
    """
    parameters = local_tensors(objective.parameters())
    bad = torch.stack([(~torch.isfinite(parameter)).any() for parameter in parameters]).sum()
    if float(world.sum_(bad.float())) > 0:
        raise UserError(
            f"after step {step} there are weights that are not finite; no checkpoint is written of it. Go on "
            f"from the last one with a lower --optim.lr in another --out (--resume RUN/checkpoints/step-N)."
        )


class FiniteGuard:
    """Looks at each step's `bad` flag, on a GPU one step late so that the host stays ahead of the device.

    A bad step is written to RUN/nan-step-N.json: its loss, gradient norm and the requests of its clips.
    """

    def __init__(self, run: RunFolder, world: World, paths: list[str], max_bad_steps: int) -> None:
        self._run = run
        self._world = world
        self._paths = paths
        self._allowed = max_bad_steps
        self._pending: deque[tuple[StepResult, torch.Tensor, torch.cuda.Event | None]] = deque()
        self.count = 0

    def add(self, result: StepResult) -> None:
        """Take in a step; judge those whose flag has had time to arrive. Raises BadStepError."""
        if self._world.device.type == "cuda":
            flag = torch.empty((), dtype=torch.bool, pin_memory=True)
            flag.copy_(result.bad, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending.append((result, flag, event))
            self._judge(keep=1)
        else:
            self._pending.append((result, result.bad, None))
            self._judge(keep=0)

    def settle(self) -> None:
        """Judge all steps taken in, waiting for the device. Raises BadStepError."""
        self._judge(keep=0)

    def _judge(self, keep: int) -> None:
        while len(self._pending) > keep:
            result, flag, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            if bool(flag):
                self._report(result)

    def _report(self, result: StepResult) -> None:
        self.count += 1
        local = {
            "rank": self._world.rank,
            "clips": [self._describe(request) for request in result.requests],
        }
        ranks = self._world.gather(local)
        file = self._run.bad_step(result.step)
        loss, norm = float(result.loss), float(result.gradient_norm)
        if self._world.first:
            values = {
                "step": result.step,
                # JSON has no NaN.
                "loss": loss if math.isfinite(loss) else str(loss),
                "gradient_norm": norm if math.isfinite(norm) else str(norm),
                "lr": result.hyperparameters.lr,
                "ranks": ranks,
            }
            write_atomically(file, json.dumps(values, indent=1) + "\n")
        if self.count > self._allowed:
            skipped = f" after {self.count - 1} skipped ones" if self.count > 1 else ""
            raise BadStepError(
                f"step {result.step}{skipped}: loss {loss:g}, gradient norm {norm:g}. Nothing was updated; "
                f"its clips are in {file}. Start again with a lower --optim.lr in another --out, "
                f"or allow some such steps with --max-bad-steps."
            )

    def _describe(self, request: Any) -> dict[str, Any]:
        values = dataclasses.asdict(request)
        return values | {"path": self._paths[request.video], "frames": list(values["frames"])}
