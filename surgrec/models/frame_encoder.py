"""An image model on every frame of a clip by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from surgrec.models.pixels import Normalise

FramePooling = Literal["own", "all", "mean", "class"]
"""What stands for a clip, and its tokens. own: the mean over the frames of what the model itself pools of
each (class token, mean, attention); tokens are the patches of all frames. all: the same tokens, and their
mean. mean: each patch averaged over the frames. class: the class token of each frame. Of these two, too, the
mean is pooled."""


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
        pooling: FramePooling = "own",
    ) -> None:
        """model: its forward_features gives tokens [n, prefix + patches, D] of [n, 3, size, size], or a map
        [n, D, h, w] or [n, h, w, D]; its classifier is not asked.

        Raises:
            ValueError: class tokens of a model that has none.
        """
        super().__init__()
        if pooling == "class" and getattr(model, "cls_token", None) is None:
            raise ValueError("the model has no class token; choose the pooling own, all or mean")
        self.model = model
        self.size, self.pooling = size, pooling
        self.normalise = Normalise(mean, std)

    @property
    def width(self) -> int:
        """Of a token, D."""
        return int(self.model.num_features)

    @property
    def pooled_width(self) -> int:
        """Of what is pooled; wider than a token where the model pools through layers of its own."""
        return int(self.model.head_hidden_size) if self.pooling == "own" else self.width

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [B, T, S, S, 3], uint8 or floating in 0..1, to [B, T * n, D], frame after frame; to [B, n, D]
        where patches are averaged, to [B, T, D] where they are class tokens.

        Raises:
            ValueError: frames of another size than the model's; features that are neither tokens nor a map.
        """
        return self._tokens(self._features(clips), len(clips))

    def encode(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled, float32 [B, pooled_width], and tokens, as forward. Raises as forward."""
        features = self._features(clips)
        tokens = self._tokens(features, len(clips))
        if self.pooling != "own":
            return tokens.float().mean(1), tokens
        pooled: Tensor = self.model.forward_head(features, pre_logits=True)
        if pooled.ndim != 2:
            raise ValueError(f"the model pools no features: they are {tuple(pooled.shape)} of a batch")
        return pooled.float().unflatten(0, (len(clips), -1)).mean(1), tokens

    def _features(self, clips: Tensor) -> Tensor:
        if clips.shape[2:4] != (self.size, self.size):
            raise ValueError(
                f"the model sees frames of {self.size} x {self.size} pixels; these have shape"
                f" {tuple(clips.shape)}"
            )
        features: Tensor = self.model.forward_features(self.normalise(clips))
        return features

    def _tokens(self, features: Tensor, clips: int) -> Tensor:
        if self.pooling == "class":
            return features[:, 0].unflatten(0, (clips, -1))
        patches = self._patches(features).unflatten(0, (clips, -1))
        return patches.mean(1) if self.pooling == "mean" else patches.flatten(1, 2)

    def _patches(self, features: Tensor) -> Tensor:
        """[n, N, D], without class and register tokens."""
        shape = tuple(getattr(features, "shape", ()))
        if len(shape) == 3:
            return features[:, int(getattr(self.model, "num_prefix_tokens", 0)) :]
        if len(shape) == 4 and shape[1] == self.width:
            return features.flatten(2).transpose(1, 2)
        if len(shape) == 4 and shape[3] == self.width:
            return features.flatten(1, 2)
        raise ValueError(f"the model gives features {shape} of a batch; tokens or a map are needed")
