"""What the training loop knows of an objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from surgrec.kernels.masking import Grid
from surgrec.kernels.patchify import token_grid


@dataclass(frozen=True)
class ObjectiveOutput:
    """Result of one forward pass: the loss, float32 [], and detached scalars for the log."""

    loss: Tensor
    monitors: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """A model with its loss: forward(frames, samples, step, monitor) -> ObjectiveOutput.

    Frames are uint8 [B, T, H, W, 3]; samples int64 [B] are the clips' sample numbers, from which masks are
    drawn, on the CPU or on the frames' device (the CPU spares a wait).
    """

    fixed_shapes: ClassVar[bool] = False
    """Whether forward and backward do the same to tensors of the same shapes whatever samples and step are,
    give no monitors and never wait for the device: then a CUDA graph of them can be replayed."""

    def forward(
        self, frames: Tensor, samples: Tensor, step: int = 0, monitor: bool = False
    ) -> ObjectiveOutput:
        """`monitor` asks for the scalars that are worth computing now and then only."""
        raise NotImplementedError

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after the optimizer's step, with its number from 0 and the length of the schedules."""

    def no_weight_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether the optimizer leaves this parameter without weight decay: biases and norms."""
        return parameter.ndim <= 1 or name.endswith("bias")

    def features(self, frames: Tensor) -> Tensor:
        """The encoder's output for every token of the clips: [B, N, width]."""
        raise NotImplementedError

    def flops_per_clip(self) -> float:
        """Floating-point operations of the matrix products of one clip, forward and backward.

        The backward pass counts twice the forward. Recomputed activations do not count (they are not
        the model's, but the run's), so that model FLOP utilisation compares across runs.
        """
        raise NotImplementedError

    @property
    def parameter_count(self) -> int:
        """Parameters that are trained (a teacher's are not)."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def check_clips(shape: Sequence[int], grid: Grid, tubelet: int, patch: int) -> None:
    """Raises ValueError for clips [B, T, H, W, 3] of another grid of tokens than a model was built for."""
    if token_grid(shape, tubelet, patch) != grid:
        steps, rows, columns = grid
        raise ValueError(
            f"the model was built for clips of {steps * tubelet} frames "
            f"of {rows * patch} x {columns * patch} pixels; these have shape {tuple(shape)}"
        )
