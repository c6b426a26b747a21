"""Extraction with image models and TimeSformer: their own frames of real video, spread over a row's time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from surgrec.configs.data import DataConfig
from surgrec.configs.extract import ExtractConfig
from surgrec.configs.finetune import FinetuneConfig
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.packet_index import PacketIndex
from torch import Tensor

from surgrec.evaluation.extraction import extract
from surgrec.evaluation.features import open_features
from surgrec.evaluation.manifest import Row, SplitManifest, write_manifest
from surgrec.finetuning.network_file import read_network
from surgrec.finetuning.session import Progress, finetune
from surgrec.models.timesformer import TimeSformer
from surgrec.weights.load import load_model

NAME = "vit_tiny_patch16_224"


@pytest.fixture
def root(streams: ModuleType, tmp_path: Path) -> Path:
    """A video of three seconds, 25 frames a second, a split of it, and weights of an image model."""
    shutil.copy(streams.make_stream("h264_default", tmp_path / "made", frames=75), tmp_path / "video.mp4")
    rows = (Row("video.mp4", 0, "train", "a"), Row("video.mp4", 1, "test", "b", 1.0, 2.0))
    write_manifest(tmp_path / "split.json", SplitManifest("films", ("one", "two"), rows))
    generator = torch.Generator().manual_seed(11)
    state = timm.create_model(NAME, num_classes=0, img_size=32).state_dict()
    tensors = {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in state.items()}
    save_file(tensors, tmp_path / "vit.safetensors")
    return tmp_path


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
    assert geometry == {"pictures": 4, "spread": "even"}
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


def test_an_inflated_model_is_fine_tuned(root: Path) -> None:
    rows = [Row("video.mp4", half, part, part) for part in ("train", "val", "test") for half in (0, 1)]
    times = [replace(row, start=1.5 * row.label, end=1.5 * row.label + 1.5) for row in rows]
    write_manifest(root / "split.json", SplitManifest("films", ("one", "two"), tuple(times)))
    config = FinetuneConfig(
        root / "split.json",
        root,
        f"timm:{NAME}@{root / 'vit.safetensors'}#size=32,frames=4,inflate=2",
        out=root / "run",
        results=root / "results.jsonl",
        epochs=1,
        batch=2,
        mixup=0.0,
        cutmix=0.0,
        device="cpu",
    )
    finished = finetune(config, 1, Progress())
    assert finished.result["geometry"] == {"frames": 4, "stride": 4, "size": 32}
    (root / "vit.safetensors").unlink()
    loaded = read_network(finished.run.network, torch.device("cpu"))
    assert loaded.classifier.encoder.form.position == "stored"
    assert loaded(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)).shape == (1, 2)


@pytest.mark.parametrize("model", [f"timm:{NAME}@{{file}}#size=32", "file:{endofm}"])
def test_what_cannot_be_fine_tuned(root: Path, model: str) -> None:
    torch.save(random_endofm(), root / "endofm.pth")
    name = model.format(file=root / "vit.safetensors", endofm=root / "endofm.pth")
    config = FinetuneConfig(root / "split.json", root, name, out=root / "run", device="cpu")
    with pytest.raises(ValueError, match=r"cannot be fine-tuned: .* timm:MODEL#inflate=2 of an image model"):
        finetune(config, 1, Progress())


def test_timesformer_sees_its_own_number_of_frames(
    root: Path, build_index_of: Callable[..., PacketIndex]
) -> None:
    path = root / "endofm.pth"
    torch.save({"teacher": {f"backbone.{key}": value for key, value in random_endofm().items()}}, path)
    _, stored, geometry = features_of(root, f"file:{path}")
    assert geometry == {"pictures": 4, "spread": "even"}
    with torch.no_grad():
        wanted = load_model(path).forward_features(clips_of(root, build_index_of, EVEN))
    torch.testing.assert_close(stored, wanted, atol=4e-3, rtol=4e-3)


def random_endofm() -> dict[str, Tensor]:
    """Four frames of 32 x 32 pixels."""
    model = TimeSformer(1, 64, 1, 96, 4, 32, 16, (0.5,) * 3, (0.5,) * 3)
    names = {
        "class_token": "cls_token",
        "place": "pos_embed",
        "time": "time_embed",
        "patch_embedding": "patch_embed.proj",
        "time_norm": "temporal_norm1",
        "time_attention": "temporal_attn",
        "time_linear": "temporal_fc",
        "attention": "attn",
    }
    generator = torch.Generator().manual_seed(12)
    return {
        ".".join(names.get(part, part) for part in key.split(".")): torch.randn(
            value.shape, generator=generator
        )
        * 0.1
        for key, value in model.state_dict().items()
    }
