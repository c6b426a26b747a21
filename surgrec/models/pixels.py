"""What networks that look at frames one by one start from: normalised pixels, channels first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Clips to normalised frames, with the mean and standard deviation of each colour channel in 0..1."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        """float32 [B * T, 3, H, W] of clips [B, T, H, W, 3], uint8 or of a floating type in 0..1.

        Raises:
            ValueError: clips of another shape.
        """
        if clips.ndim != 5 or clips.shape[-1] != 3:
            raise ValueError(f"clips are [B, T, H, W, 3]; these have shape {tuple(clips.shape)}")
        pixels = clips.flatten(0, 1).permute(0, 3, 1, 2)
        values = pixels.float() / 255 if clips.dtype == torch.uint8 else pixels.float()
        normalised: Tensor = (values - self.mean) / self.std
        return normalised
