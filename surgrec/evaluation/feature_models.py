"""Frozen networks by name: weights of any layout, an image model of timm, or first weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgrec.configs.presets import PRESETS
from surgrec.curation.embedders import half_precision
from surgrec.evaluation.clip_cut import clip_geometry, cut_of
from surgrec.evaluation.features import FeatureError
from surgrec.loaders.packet_index import PacketIndex
from surgrec.weights.layout import ReadOptions
from surgrec.weights.load import OpenedModel, open_model
from surgrec.weights.video_model import rate_of

Choose = Callable[[PacketIndex, int, int, int, int, int], tuple[int, ...]]
"""(index, video, start, end, clip, clips) -> display positions of the frames of one of the clips of a
span."""
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""uint8 [b, T, S, S, 3] -> pooled float32 [b, D] and tokens [b, N, D'], on the frames' device."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that is ready to compute. size: of its frames, in pixels, S."""

    size: int
    encode: Encode


@dataclass(frozen=True)
class FeatureModel:
    """identity: plain text that differs where features would, weights included, wherever these lie.
    geometry: of a clip, as JSON."""

    identity: str
    geometry: dict[str, Any]
    choose: Choose
    load: Callable[[torch.device], FeatureNetwork]

    def shapes(self, device: torch.device) -> tuple[int, tuple[int, int]]:
        """D and (N, D') of a clip: what the network gives of a black one. Raises as feature_model, for
        weights that must be fetched first."""
        network = self.load(device)
        frames = self.geometry["frames" if "frames" in self.geometry else "pictures"]
        clip = torch.zeros(1, frames, network.size, network.size, 3, dtype=torch.uint8, device=device)
        pooled, tokens = network.encode(clip)
        return pooled.shape[1], (tokens.shape[1], tokens.shape[2])


def is_image_model(name: str) -> bool:
    """Whether a model, as it is given, is one of timm that sees single pictures."""
    return name.removeprefix("random:").startswith("timm:") and "inflate=" not in name.partition("#")[2]


def feature_model(asked: str, pictures: int | None, seed: int) -> FeatureModel:
    """What `asked` names, as --model has it. A file or checkpoint is read once, to know what it holds.

    pictures: of a clip, for image models; None takes those of its name, else 8. seed: of random weights.
    Raises FeatureError for a name that does not exist, WeightsError where weights are not there, damaged, or
    do not fit their layout, also from `load`; all with the remedy.
    """
    opened = open_model(asked, seed=seed)
    if opened is None:
        raise FeatureError(
            f"there is no model {asked!r}: give ckpt:PATH, file:PATH, hf:FOLDER, timm:MODEL,"
            f" timm:MODEL@FILE, random:timm:MODEL, random:RUN or random:PRESET, of {', '.join(PRESETS)}"
        )
    if pictures is not None:
        if rate_of(opened.clip):
            raise FeatureError(
                f"--pictures is of image models; {asked} sees the frames of its pretraining: leave it out"
            )
        if pictures < 1:
            raise FeatureError(f"--pictures is {pictures}; a clip has at least 1")
        opened = open_model(asked, ReadOptions(frames=pictures), seed=seed)
        assert opened is not None
    return _opened(opened)


def _opened(opened: OpenedModel) -> FeatureModel:
    def load(device: torch.device) -> FeatureNetwork:
        model = opened.load(device)

        @torch.no_grad()
        def encode(frames: Tensor) -> tuple[Tensor, Tensor]:
            with half_precision(device):
                return model.encode(frames)

        return FeatureNetwork(opened.clip.size, encode)

    return FeatureModel(opened.identity, clip_geometry(opened.clip), cut_of(opened.clip).choose, load)
