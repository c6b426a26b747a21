"""What an importer is: a name, whether it knows a file, and how it reads one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from surgrec.configs.data import DataConfig
from surgrec.models.encoder_form import EncoderForm
from surgrec.models.frame_encoder import FrameEncoder, FramePooling
from surgrec.models.network_form import NetworkForm
from surgrec.models.timesformer import TimeSformer
from surgrec.models.video_encoder import VideoEncoder
from surgrec.weights.coverage import Coverage
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content

Part = Literal["encoder", "target_encoder"]


@dataclass(frozen=True)
class ReadOptions:
    """What the person asks for; None takes what the file or its layout says.

    part: of files with two encoders, for which it must be given. size: of the frames, in pixels. frames:
    of a clip. stride, fps: between them. heads: of attention, where neither keys nor layout tell. inflate:
    frames that an image model's patch embedding becomes a tubelet of. pooling: of an image model, over its
    tokens.
    """

    part: Part | None = None
    size: int | None = None
    frames: int | None = None
    stride: int | None = None
    fps: float | None = None
    heads: int | None = None
    inflate: int | None = None
    pooling: str | None = None


@dataclass(frozen=True)
class ClipForm:
    """What a model wants to see: clips uint8 or in 0..1, [B, frames, size, size, 3].

    stride, fps: one of them, or neither: then frames are spread evenly over a span. mean, std: of values in
    0..1. patch: pixels; None where that is not told. width: of a token, D. pooling: of a model that leaves a
    choice; None of others.
    """

    frames: int
    size: int
    stride: int | None
    fps: float | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tubelet: int
    patch: int | None
    width: int
    pooling: FramePooling | None = None

    def data(self) -> DataConfig:
        """As the loaders are told of clips."""
        return DataConfig(frames=self.frames, stride=self.stride or 1, fps=self.fps, size=self.size)


Encoder = VideoEncoder | FrameEncoder | TimeSformer
"""Called on clips uint8 or float in 0..1, [B, T, S, S, 3], it gives tokens [B, N, D]; `encode` gives what is
pooled of them, float32 [B, pooled_width], as the model itself does it, else their mean, and the tokens."""


@dataclass(frozen=True)
class Imported:
    """encoder: with its weights. form: what builds it again. pretraining: whether a decoder or predictor
    was in the file."""

    encoder: Encoder
    form: EncoderForm | NetworkForm
    coverage: Coverage
    clip: ClipForm
    pretraining: bool


@dataclass(frozen=True)
class Layout:
    """about: one line for people. fits: whether keys and configuration are of this layout. read: raises
    WeightsError."""

    name: str
    about: str
    fits: Callable[[Content], bool]
    read: Callable[[Content, ReadOptions], Imported]


def refuse(content: Content, layout: str, **asked: object) -> None:
    """Raises WeightsError for options that a layout has no use for."""
    for name, value in asked.items():
        if value is not None:
            raise WeightsError(
                f"{content.path}: {name}={value} does not apply to a file of the layout {layout}; leave it"
                " out"
            )
