"""An image model on every frame of a clip by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from surgrec.models.pixels import Normalise

FramePooling = Literal["all", "mean", "class"]
"""The patches of all frames; the mean of each patch over the frames; or the class token of each frame."""


class FrameEncoder(nn.Module):
    """Clips to the tokens of an image model of timm, frame by frame.

    Class and register tokens take part in every layer; they are no patches, and no tokens of the answer
    unless it is asked for class tokens.
    """

    def __init__(
        self,
        model: Any,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        pooling: FramePooling = "all",
    ) -> None:
        """model: gives [n, prefix + patches, D] of [n, 3, size, size]; its head is not asked.

        Raises:
            ValueError: class tokens of a model that has none.
        """
        super().__init__()
        if pooling == "class" and getattr(model, "cls_token", None) is None:
            raise ValueError("the model has no class token; choose the pooling all or mean")
        self.model = model
        self.size, self.pooling = size, pooling
        self.normalise = Normalise(mean, std)

    @property
    def width(self) -> int:
        """Of a token, D."""
        return int(self.model.num_features)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [B, T, S, S, 3], uint8 or floating in 0..1, to [B, T * n, D], frame after frame; to [B, n, D]
        where patches are averaged, to [B, T, D] where they are class tokens.

        Raises:
            ValueError: frames of another size than the model's.
        """
        if clips.shape[2:4] != (self.size, self.size):
            raise ValueError(
                f"the model sees frames of {self.size} x {self.size} pixels; these have shape"
                f" {tuple(clips.shape)}"
            )
        tokens: Tensor = self.model.forward_features(self.normalise(clips)).unflatten(0, (len(clips), -1))
        if self.pooling == "class":
            return tokens[:, :, 0]
        patches = tokens[:, :, self.model.num_prefix_tokens :]
        return patches.mean(1) if self.pooling == "mean" else patches.flatten(1, 2)

    def pool(self, tokens: Tensor) -> Tensor:
        """float32 [B, D] of tokens [B, N, D]: their mean."""
        return tokens.float().mean(1)
