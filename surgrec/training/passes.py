"""Forward and backward of one micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgrec.models.objective import ObjectiveOutput


def forward_backward(
    model: nn.Module,
    frames: Tensor,
    samples: Tensor,
    step: int,
    monitor: bool,
    precision: torch.dtype,
    count: int,
) -> ObjectiveOutput:
    """Adds a micro-batch's share of the gradients to the parameters' `grad`, or makes it where that is None.

    Args:
        model: an objective, or what wraps it.
        frames, samples, step, monitor: of `Objective.forward`.
        precision: bfloat16 for autocast, else float32.
        count: micro-batches of a step.

    Returns:
        The objective's output with loss / count in the loss's place, float32 [], detached.
    """
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        output = model(frames, samples, step, monitor)
    (output.loss / count).backward()
    return ObjectiveOutput(output.loss.detach().float() / count, output.monitors)
