"""One interface for networks of clips, whoever trained them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgrec.weights.coverage import Coverage
from surgrec.weights.layout import ClipForm, Encoder


class VideoModel(nn.Module):
    """A network of clips with what it wants to see, whoever trained it.

    mean, std: of the colour channels, of values in 0..1; they are applied here. size, frames: of its clips.
    rate: {"stride": n} or {"fps": f} between the frames; {} where they are spread evenly over a span. width:
    of a token. identity: plain text that differs where features would, weights included, wherever these lie.
    coverage: what became of each key of its file; None for a model of this project.
    """

    def __init__(self, encoder: Encoder, clip: ClipForm, identity: str, coverage: Coverage | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.clip = clip
        self.identity = identity
        self.coverage = coverage

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.clip.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return self.clip.std

    @property
    def size(self) -> int:
        return self.clip.size

    @property
    def frames(self) -> int:
        return self.clip.frames

    @property
    def rate(self) -> dict[str, float]:
        return rate_of(self.clip)

    @property
    def width(self) -> int:
        return self.clip.width

    def forward_features(self, clip: Tensor) -> Tensor:
        """Tokens [B, N, D] of clips uint8, or floating-point in 0..1, [B, frames, size, size, 3].

        Raises ValueError for clips of another shape.
        """
        self._check(clip)
        tokens: Tensor = self.encoder(clip)
        return tokens

    def _check(self, clip: Tensor) -> None:
        wanted = (self.frames, self.size, self.size, 3)
        if clip.ndim != 5 or tuple(clip.shape[1:]) != wanted:
            raise ValueError(
                f"clips are {list(clip.shape)}; this model wants [B, {', '.join(map(str, wanted))}]"
            )
        if clip.dtype != torch.uint8 and not clip.is_floating_point():
            raise ValueError(f"clips are of {clip.dtype}; uint8, or floating-point in 0..1, is needed")

    def forward(self, clip: Tensor) -> Tensor:
        """As forward_features."""
        return self.forward_features(clip)

    def encode(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """What is pooled of clips, float32 [B, D'], as the model itself does it, else the mean of the tokens;
        and the tokens. clip, errors: as of forward_features."""
        self._check(clip)
        return self.encoder.encode(clip)


def rate_of(clip: ClipForm) -> dict[str, float]:
    """Between the frames of a clip, as JSON has it."""
    if clip.fps is not None:
        return {"fps": clip.fps}
    return {} if clip.stride is None else {"stride": clip.stride}
