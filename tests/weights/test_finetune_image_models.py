"""Image models and TimeSformers are fine-tuned, shown over time, and read again from their own file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from surgrec.configs.data import DataConfig
from surgrec.configs.finetune import FinetuneConfig
from surgrec.loaders.packet_index import PacketIndex

from surgrec import predict as predict_command
from surgrec.evaluation.clip_classifier import open_classifier
from surgrec.evaluation.clip_cut import ClipCut
from surgrec.evaluation.described_tensors import digest_of
from surgrec.evaluation.feature_models import feature_model
from surgrec.evaluation.manifest import Row, SplitManifest, write_manifest
from surgrec.finetuning import session
from surgrec.finetuning.network_file import NetworkAbout, NetworkFileError, read_network
from surgrec.finetuning.run_state import save_epoch
from surgrec.finetuning.session import Progress, finetune
from surgrec.weights.load import load_model

NAME = "vit_tiny_patch16_224"
Tuning = Callable[..., FinetuneConfig]
IMAGE = f"timm:{NAME}@{{root}}/vit.safetensors#size=32,frames=3"
TIMESFORMER = "file:{root}/endofm.pth"
DINOV3 = "file:{root}/dinov3.pth#size=32,frames=2,stride=5"
CONVOLUTIONS = "random:timm:test_resnet#frames=2"


@pytest.fixture(scope="session")
def tuning(image_files: ModuleType) -> Callable[..., FinetuneConfig]:
    """tuning(root, model, **options): of a network in three steps, on rows of one video."""
    return partial(_tuning, image_files)


def _tuning(image_files: ModuleType, root: Path, model: str, **options: Any) -> FinetuneConfig:
    rows = [Row("video.mp4", half, part, part) for part in ("train", "val", "test") for half in (0, 1)]
    times = [replace(row, start=1.5 * row.label, end=1.5 * row.label + 1.5) for row in rows]
    write_manifest(root / "split.json", SplitManifest("films", ("one", "two"), tuple(times)))
    torch.save(image_files.random_endofm(), root / "endofm.pth")
    torch.save(image_files.random_dinov3(), root / "dinov3.pth")
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
def test_image_models_are_fine_tuned_frame_by_frame(
    root: Path, tuning: Tuning, model: str, mode: Any, head: Any
) -> None:
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


def test_a_timeline_of_a_fine_tuned_image_model(root: Path, tuning: Tuning, tmp_path: Path) -> None:
    network = finetune(tuning(root, IMAGE), 1, Progress()).run.network
    shown = [str(root / "video.mp4"), "--head", str(network), "--out", str(tmp_path / "out")]
    shown += ["--device", "cpu"]
    assert predict_command.main(shown) == 1, "pictures are spread over any length: it must be said"
    assert predict_command.main([*shown, "--window", "1"]) == 0
    document = json.loads((tmp_path / "out" / "video.json").read_text())
    assert document["geometry"] == {"pictures": 3, "spread": "even", "pooling": "own"}
    assert document["windows"][0]["frames"] == [4, 12, 20]


def test_clips_of_a_row_are_those_of_extraction(root: Path, tuning: Tuning) -> None:
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


def test_a_stopped_run_of_an_image_model_goes_on(
    root: Path, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_what_cannot_be_fine_tuned(root: Path, tuning: Tuning) -> None:
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
def tuned(
    streams: ModuleType, image_files: ModuleType, tuning: Tuning, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A fine-tuned image model's file."""
    folder = tmp_path_factory.mktemp("tuned")
    return finetune(tuning(image_files.made(streams, folder), IMAGE), 1, Progress()).run.network


@pytest.fixture
def network(tuned: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(tuned, tmp_path / "network.safetensors"))


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
