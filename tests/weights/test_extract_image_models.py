"""Extraction with image models and TimeSformer: their own frames of real video, spread over a row's time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from surgrec.configs.data import DataConfig
from surgrec.configs.extract import ExtractConfig
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.packet_index import PacketIndex
from torch import Tensor

from surgrec.evaluation.extraction import extract
from surgrec.evaluation.features import open_features
from surgrec.weights.load import load_model

NAME = "vit_tiny_patch16_224"


def features_of(root: Path, model: str) -> tuple[Tensor, Tensor, dict[str, object]]:
    """Pooled [2, D] and tokens [2, N, D] of the two rows, and the geometry of their clips."""
    out = root / "features.h5"
    given = ExtractConfig(root / "split.json", root, model, out, tokens=True, device="cpu", batch=2)
    extract(given, 1)
    found = open_features(out)
    at = np.arange(2), np.zeros(2, dtype=int)
    pooled, tokens = found.pooled(*at), found.tokens(*at)
    return torch.tensor(pooled).float(), torch.tensor(tokens).float(), found.about.geometry


def clips_of(
    root: Path, build: Callable[..., PacketIndex], frames: list[tuple[int, ...]], size: int = 32
) -> Tensor:
    index = build([root / "video.mp4"], root / "index.h5")
    with ClipStream(index, DataConfig(size=size), "cpu", 1) as stream:
        return next(stream.read([[ClipRequest(0, 0, row) for row in frames]])).frames


EVEN = [(9, 28, 46, 65), (28, 34, 40, 46)]
"""The middles of four equal pieces of frames 0 to 75, and of 25 to 50."""


@pytest.mark.parametrize(("pooling", "tokens"), [("all", 16), ("mean", 4), ("class", 4)])
def test_an_image_model_sees_frames_spread_over_a_row(
    root: Path, build_index_of: Callable[..., PacketIndex], pooling: str, tokens: int
) -> None:
    name = f"timm:{NAME}@{root / 'vit.safetensors'}#size=32,frames=4,pooling={pooling}"
    pooled, stored, geometry = features_of(root, name)
    assert geometry == {"pictures": 4, "spread": "even", "pooling": pooling}
    model = load_model(name)
    with torch.no_grad():
        wanted = model.forward_features(clips_of(root, build_index_of, EVEN))
    assert wanted.shape[1] == tokens
    torch.testing.assert_close(stored, wanted, atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(pooled, wanted.mean(1), atol=4e-3, rtol=4e-3)


def test_an_inflated_model_sees_clips(root: Path, build_index_of: Callable[..., PacketIndex]) -> None:
    name = f"timm:{NAME}@{root / 'vit.safetensors'}#size=32,frames=4,inflate=2,stride=3"
    _, stored, geometry = features_of(root, name)
    assert geometry == {"frames": 4, "stride": 3, "size": 32}
    model = load_model(name)
    # A clip of 10 frames begins in the middle of where it may: 0 to 65, and 25 to 40.
    clips = clips_of(root, build_index_of, [(33, 36, 39, 42), (33, 36, 39, 42)])
    with torch.no_grad():
        wanted = model.forward_features(clips)
    assert wanted.shape[1] == 8
    torch.testing.assert_close(stored[1], wanted[1], atol=4e-3, rtol=4e-3)


def test_timesformer_sees_its_own_number_of_frames(
    root: Path, image_files: ModuleType, build_index_of: Callable[..., PacketIndex]
) -> None:
    path = root / "endofm.pth"
    torch.save(
        {"teacher": {f"backbone.{key}": value for key, value in image_files.random_endofm().items()}}, path
    )
    pooled, stored, geometry = features_of(root, f"file:{path}")
    assert geometry == {"pictures": 4, "spread": "even", "pooling": "own"}
    with torch.no_grad():
        whole, wanted = load_model(path).encode(clips_of(root, build_index_of, EVEN))
    torch.testing.assert_close(stored, wanted, atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(pooled, whole, atol=4e-3, rtol=4e-3)
