"""Frozen networks by name: weights of any layout, an image model of timm, or first weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from surgrec.configs.data import DataConfig
from surgrec.configs.presets import PRESETS
from surgrec.curation.checkpoint_embedder import clip_within
from surgrec.curation.embedders import half_precision
from surgrec.curation.timm_embedder import check_name, image_network, timm_identity, timm_model
from surgrec.evaluation.features import FeatureError
from surgrec.kernels.counter_rng import stream_key
from surgrec.loaders.packet_index import PacketIndex
from surgrec.weights.layout import ClipForm, ReadOptions
from surgrec.weights.load import OpenedModel, open_model
from surgrec.weights.video_model import rate_of

PICTURES: Final = 8

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
    """Whether a model, as it is given, is one of timm, which sees single pictures."""
    return name.removeprefix("random:").startswith("timm:")


def clip_geometry(clip: ClipForm) -> dict[str, Any]:
    """Frames, stride or frames per second, and size of a clip, as JSON; of frames that are spread evenly over
    a span, their number."""
    rate = rate_of(clip)
    if not rate:
        return {"pictures": clip.frames, "spread": "even"}
    return {"frames": clip.frames, **rate, "size": clip.size}


def choose_within(data: DataConfig) -> Choose:
    """Clips of a run's shape, in the middles of equal shares of a span."""
    return lambda index, video, start, end, clip, clips: clip_within(
        index, video, start, end, (clip + 0.5) / clips, data
    )


def choose_spread(count: int) -> Choose:
    """The middles of `count` equal pieces of a clip's share of the span."""

    def choose(
        index: PacketIndex, video: int, start: int, end: int, clip: int, clips: int
    ) -> tuple[int, ...]:
        middles = (clip + (np.arange(count) + 0.5) / count) / clips
        return tuple((start + np.floor(middles * (end - start)).astype(int)).tolist())

    return choose


def feature_model(asked: str, pictures: int | None, seed: int) -> FeatureModel:
    """What `asked` names, as --model has it. A file or checkpoint is read once, to know what it holds.

    pictures: of a clip, for image models; None takes PICTURES. seed: of random weights. Raises FeatureError
    for a name that does not exist, WeightsError where weights are not there, damaged, or do not fit their
    layout, and CurationError for those of timm; all with the remedy.
    """
    kind, _, name = asked.partition(":")
    if kind == "timm" and name and "#" not in name:
        model, at, file = name.partition("@")
        path = Path(file) if at else None
        return _image(model, pictures, timm_identity(model, path), lambda: timm_model(model, path))
    if kind == "random" and name.startswith("timm:"):
        model = name.removeprefix("timm:")
        check_name(model)
        return _image(model, pictures, f"{asked}/{seed}", lambda: _random(model, seed))
    opened = open_model(asked, seed=seed)
    if opened is None:
        raise FeatureError(
            f"there is no model {asked!r}: give ckpt:PATH, file:PATH, hf:FOLDER, timm:MODEL,"
            f" timm:MODEL@FILE, random:timm:MODEL or random:PRESET, of {', '.join(PRESETS)}"
        )
    if pictures is not None:
        if rate_of(opened.clip):
            raise FeatureError(
                f"--pictures is of image models; {asked} sees the frames of its pretraining: leave it out"
            )
        _check_pictures(pictures)
        opened = open_model(asked, ReadOptions(frames=pictures), seed=seed)
        assert opened is not None
    return _opened(opened)


def _opened(opened: OpenedModel) -> FeatureModel:
    """A model on all frames of a clip."""
    clip = opened.clip

    def load(device: torch.device) -> FeatureNetwork:
        model = opened.load(device)

        @torch.no_grad()
        def encode(frames: Tensor) -> tuple[Tensor, Tensor]:
            with half_precision(device):
                tokens = model.forward_features(frames)
            return model.pool(tokens), tokens

        return FeatureNetwork(clip.size, encode)

    choose = choose_within(clip.data()) if rate_of(clip) else choose_spread(clip.frames)
    return FeatureModel(opened.identity, clip_geometry(clip), choose, load)


def _check_pictures(count: int) -> None:
    if count < 1:
        raise FeatureError(f"--pictures is {count}; a clip has at least 1")


def _image(name: str, pictures: int | None, identity: str, make: Callable[[], Any]) -> FeatureModel:
    """Pictures spread over a span; pooled is the mean of what timm pools of each, tokens are those of all."""
    count = PICTURES if pictures is None else pictures
    _check_pictures(count)

    def load(device: torch.device) -> FeatureNetwork:
        network = image_network(name, make(), device)

        @torch.no_grad()
        def encode(frames: Tensor) -> tuple[Tensor, Tensor]:
            with half_precision(device):
                maps = network.model.forward_features(network.values(frames.flatten(0, 1)))
                pooled = network.model.forward_head(maps, pre_logits=True)
            if pooled.ndim != 2:
                raise FeatureError(
                    f"timm:{name} pools no features: they are {tuple(pooled.shape)} of a batch"
                )
            tokens = _tokens(network.model, name, maps)
            clips = len(frames)
            return pooled.float().unflatten(0, (clips, -1)).mean(1), tokens.unflatten(0, (clips, -1)).flatten(
                1, 2
            )

        return FeatureNetwork(network.size, encode)

    return FeatureModel(identity, {"pictures": count, "spread": "even"}, choose_spread(count), load)


def _tokens(model: Any, name: str, maps: Tensor) -> Tensor:
    """[n, N, D'] of what timm's forward_features gives: tokens without class and register tokens, or a map,
    with channels first or last."""
    if maps.ndim == 3:
        return maps[:, int(getattr(model, "num_prefix_tokens", 0)) :]
    width = int(model.num_features)
    if maps.ndim == 4 and maps.shape[1] == width:
        return maps.flatten(2).transpose(1, 2)
    if maps.ndim == 4 and maps.shape[3] == width:
        return maps.flatten(1, 2)
    raise FeatureError(
        f"timm:{name} gives features {tuple(maps.shape)} of a batch; tokens or a map are needed"
    )


def _random(name: str, seed: int) -> Any:
    import timm

    # The global generator is put back, so that building a model changes no other draw.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_key(seed, "model/first weights"))
        return timm.create_model(name, num_classes=0)
