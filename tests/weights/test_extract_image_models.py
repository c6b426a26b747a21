"""Extraction with image models and TimeSformer: their own frames of real video, spread over a row's time."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from surgrec.configs.data import DataConfig
from surgrec.configs.extract import ExtractConfig
from surgrec.configs.finetune import FinetuneConfig
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.packet_index import PacketIndex
from torch import Tensor

from surgrec import predict as predict_command
from surgrec.evaluation.clip_classifier import open_classifier
from surgrec.evaluation.clip_cut import ClipCut
from surgrec.evaluation.described_tensors import digest_of
from surgrec.evaluation.extraction import extract
from surgrec.evaluation.feature_models import feature_model
from surgrec.evaluation.features import open_features
from surgrec.evaluation.manifest import Row, SplitManifest, write_manifest
from surgrec.finetuning import session
from surgrec.finetuning.network_file import NetworkAbout, NetworkFileError, read_network
from surgrec.finetuning.run_state import save_epoch
from surgrec.finetuning.session import Progress, finetune
from surgrec.models.timesformer import TimeSformer
from surgrec.weights.load import load_model

NAME = "vit_tiny_patch16_224"


@pytest.fixture
def root(streams: ModuleType, tmp_path: Path) -> Path:
    """A video of three seconds, 25 frames a second, a split of it, and weights of an image model."""
    return made(streams, tmp_path)


def made(streams: ModuleType, tmp_path: Path) -> Path:
    """What `root` is."""
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


IMAGE = f"timm:{NAME}@{{root}}/vit.safetensors#size=32,frames=3"
TIMESFORMER = "file:{root}/endofm.pth"
DINOV3 = "file:{root}/dinov3.pth#size=32,frames=2,stride=5"
CONVOLUTIONS = "random:timm:test_resnet#frames=2"


def tuning(root: Path, model: str, **options: Any) -> FinetuneConfig:
    """Of a network in three steps, on rows of one video."""
    rows = [Row("video.mp4", half, part, part) for part in ("train", "val", "test") for half in (0, 1)]
    times = [replace(row, start=1.5 * row.label, end=1.5 * row.label + 1.5) for row in rows]
    write_manifest(root / "split.json", SplitManifest("films", ("one", "two"), tuple(times)))
    torch.save(random_endofm(), root / "endofm.pth")
    torch.save(random_dinov3(), root / "dinov3.pth")
    given = FinetuneConfig(root / "split.json", root, model.format(root=root), out=root / "run")
    plain = {"epochs": 3, "batch": 2, "mixup": 0.0, "cutmix": 0.0, "lr": 1e-2, "ema": 0.0, "device": "cpu"}
    return replace(given, results=root / "results.jsonl", **plain | options)


@pytest.mark.parametrize(
    ("model", "mode", "head"),
    [
        (IMAGE, "full", "linear"),
        (IMAGE, "full", "attentive"),
        (IMAGE, "head", "linear"),
        (IMAGE, "lora", "attentive"),
        (f"{IMAGE},pooling=all", "full", "linear"),
        (TIMESFORMER, "full", "linear"),
        (TIMESFORMER, "lora", "linear"),
        (DINOV3, "full", "linear"),
        (DINOV3, "lora", "linear"),
        (CONVOLUTIONS, "full", "linear"),
        (CONVOLUTIONS, "head", "attentive"),
    ],
)
def test_image_models_are_fine_tuned_frame_by_frame(root: Path, model: str, mode: Any, head: Any) -> None:
    config = tuning(root, model, mode=mode, head=head)
    before = load_model(config.model).encoder.state_dict()
    finished = finetune(config, 1, Progress())
    result = finished.result
    assert result["mode"] == f"finetune-{mode}"
    for file in ("vit.safetensors", "endofm.pth", "dinov3.pth"):
        (root / file).unlink()
    loaded = read_network(finished.run.network, torch.device("cpu"))
    encoder = loaded.classifier.encoder
    after = encoder.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    if mode == "head":
        assert changed == set()
    elif mode == "lora":
        matrices = {name for name, part in encoder.named_modules() if isinstance(part, torch.nn.Linear)}
        assert changed == {f"{name}.weight" for name in matrices if "blocks." in name}
    else:
        # Statistics of batch norms are those of pretraining.
        assert changed == {name for name, _ in encoder.named_parameters()}
    assert result["geometry"]["pooling"] == ("all" if "pooling=all" in model else "own")
    # As the command of prediction asks it, and as a head behind the features of its encoder.
    classifier = open_classifier(finished.run.network, None, 0)
    size, ask = classifier.load(torch.device("cpu"))
    frames = torch.randint(0, 256, (2, loaded.cut.data.frames, size, size, 3), dtype=torch.uint8)
    shares = ask(frames)
    with torch.no_grad():
        pooled, tokens = encoder.encode(frames)
        features = tokens if head == "attentive" else pooled
        logits = loaded.classifier.heads.logits(loaded.classifier.head_weights(), features)
    torch.testing.assert_close(shares, logits[0].softmax(1))


def test_a_timeline_of_a_fine_tuned_image_model(root: Path, tmp_path: Path) -> None:
    network = finetune(tuning(root, IMAGE), 1, Progress()).run.network
    shown = [str(root / "video.mp4"), "--head", str(network), "--out", str(tmp_path / "out")]
    shown += ["--device", "cpu"]
    assert predict_command.main(shown) == 1, "pictures are spread over any length: it must be said"
    assert predict_command.main([*shown, "--window", "1"]) == 0
    document = json.loads((tmp_path / "out" / "video.json").read_text())
    assert document["geometry"] == {"pictures": 3, "spread": "even", "pooling": "own"}
    assert document["windows"][0]["frames"] == [4, 12, 20]


def test_clips_of_a_row_are_those_of_extraction(root: Path) -> None:
    """Test clips of fine-tuning lie where extraction puts them; those of training anywhere in equal
    pieces."""
    index = PacketIndex.open(finetune(tuning(root, IMAGE), 1, Progress()).run.path / "videos.h5")
    model = feature_model(IMAGE.format(root=root), None, 0)
    cut = ClipCut(DataConfig(frames=3, size=32), spread=True)
    for clip in (0, 1):
        assert cut.choose(index, 0, 0, 75, clip, 2) == model.choose(index, 0, 0, 75, clip, 2)
    assert cut.choose(index, 0, 0, 75, 0, 1) == cut.at(index, 0, 0, 75, 0.5) == (12, 37, 62)
    assert cut.at(index, 0, 0, 75, 0.0) == (0, 25, 50)
    assert cut.at(index, 0, 0, 75, 0.999) == (24, 49, 74)


def test_a_stopped_run_of_an_image_model_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tuning(root, IMAGE, drop_path=0.3)
    whole = finetune(replace(config, out=root / "whole"), 1, Progress())
    calls: list[int] = []

    def stop_at_two(*given: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save_epoch(*given)

    monkeypatch.setattr(session, "save_epoch", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, 1, Progress())
    monkeypatch.undo()
    again = finetune(config, 1, Progress())
    assert again.result["network_digest"] == whole.result["network_digest"]


def test_what_cannot_be_fine_tuned(root: Path) -> None:
    for model, options, cause in (
        (CONVOLUTIONS, {"mode": "lora"}, "no linear layers .* give --mode full or head"),
        ("random:timm:test_vit#frames=2,pooling=mean", {"mode": "lora", "rank": 65}, "--rank is 65"),
        (f"timm:{NAME}@{root / 'gone.pth'}", {}, "gone.pth"),
    ):
        with pytest.raises(ValueError, match=cause):
            finetune(tuning(root, model, **options), 1, Progress())


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"builder": "keras"}, "`builder` of a network's form is 'keras'"),
        ({"arguments": {"name": "hf-hub:someone/model"}}, "has no model 'hf-hub:someone/model'"),
        ({"arguments": {"name": NAME, "pretrained": True}}, "pretrained is no keyword of an architecture"),
        ({"arguments": {"name": NAME, "checkpoint_path": "x.pth"}}, "checkpoint_path is no keyword"),
        ({"arguments": {"name": NAME, "depth": "many"}}, "timm cannot make"),
        ({"arguments": {"name": NAME, "img_size": 64}}, "pos_embed"),
        ({"frames": 0}, "`frames` of a network's form is 0"),
        ({"mean": [0.5, float("nan"), 0.5]}, "`mean` of a network's form"),
        ({"more": 1}, "a network's form has builder"),
        ({"frames": 4}, "the encoder sees 4 frames"),
        ({"pooling": "max"}, "`pooling` of a network's form is 'max'"),
    ],
)
def test_networks_whose_header_lies(network: Path, change: dict[str, Any], cause: str) -> None:
    """Nothing is fetched or read from elsewhere for a file that says so."""
    with safe_open(network, "pt") as file:
        document = json.loads(file.metadata()["surgrec"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    document["encoder"] |= change
    about = NetworkAbout(**{field.name: document[field.name] for field in fields(NetworkAbout)})
    document["digest"] = digest_of(about, tensors)
    save_file(tensors, network, {"surgrec": json.dumps(document)})
    with pytest.raises(NetworkFileError, match=rf"(?s)network\.safetensors: damaged .*{re.escape(cause)}"):
        read_network(network, torch.device("cpu"))


@pytest.fixture(scope="module")
def tuned(streams: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned image model's file."""
    folder = tmp_path_factory.mktemp("tuned")
    return finetune(tuning(made(streams, folder), IMAGE), 1, Progress()).run.network


@pytest.fixture
def network(tuned: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(tuned, tmp_path / "network.safetensors"))


def test_timesformer_sees_its_own_number_of_frames(
    root: Path, build_index_of: Callable[..., PacketIndex]
) -> None:
    path = root / "endofm.pth"
    torch.save({"teacher": {f"backbone.{key}": value for key, value in random_endofm().items()}}, path)
    pooled, stored, geometry = features_of(root, f"file:{path}")
    assert geometry == {"pictures": 4, "spread": "even", "pooling": "own"}
    with torch.no_grad():
        whole, wanted = load_model(path).encode(clips_of(root, build_index_of, EVEN))
    torch.testing.assert_close(stored, wanted, atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(pooled, whole, atol=4e-3, rtol=4e-3)


def random_dinov3() -> dict[str, Tensor]:
    """By the names of its own files: two blocks, two heads of 32."""
    width, generator = 64, torch.Generator().manual_seed(14)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "storage_tokens": (1, 4, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for number in range(2):
        block = f"blocks.{number}."
        for name, shape in (
            ("norm1", (width,)),
            ("norm2", (width,)),
            ("attn.proj", (width, width)),
            ("mlp.fc1", (96, width)),
            ("mlp.fc2", (width, 96)),
            ("attn.qkv", (3 * width, width)),
        ):
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        shapes |= {f"{block}ls{k}.gamma": (width,) for k in (1, 2)}
    found = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    for number in range(2):
        mask = torch.ones(3 * width)
        mask[width : 2 * width] = 0
        found[f"blocks.{number}.attn.qkv.bias_mask"] = mask
    return found | {"rope_embed.periods": 100 ** (torch.arange(8) / 8)}


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
