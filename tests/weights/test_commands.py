"""Extraction, fine-tuning and prediction take files of other projects as they take our checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from surgrec.configs.data import DataConfig
from surgrec.configs.extract import ExtractConfig
from surgrec.configs.finetune import FinetuneConfig
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.packet_index import PacketIndex

import surgrec
from surgrec import extract as extract_command
from surgrec import finetune as finetune_command
from surgrec.evaluation.clip_classifier import open_classifier
from surgrec.evaluation.extraction import extract
from surgrec.evaluation.features import FeatureError, open_features
from surgrec.evaluation.manifest import Row, SplitManifest, read_manifest, write_manifest
from surgrec.finetuning.network_file import read_network
from surgrec.finetuning.session import Progress, finetune
from surgrec.weights.errors import WeightsError
from surgrec.weights.load import open_model

CPU = torch.device("cpu")
CLASSES = ("one", "two")


@dataclass(frozen=True)
class Films:
    """Three videos of 75 frames, a split of them, and files of two other projects."""

    folder: Path
    manifest: Path
    vjepa: Path
    videomae: Path


@pytest.fixture(scope="module")
def films(streams: ModuleType, restated: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Films:
    folder = tmp_path_factory.mktemp("films")
    rows = []
    for number, split in enumerate(("train", "val", "test")):
        made = streams.make_stream("h264_default", folder / f"made-{split}", frames=75, first=90 * number)
        shutil.copy(made, folder / f"{split}.mp4")
        for half in (0, 1):
            rows.append(Row(f"{split}.mp4", half, split, split, 1.5 * half, 1.5 * (half + 1)))
    write_manifest(folder / "split.json", SplitManifest("films", CLASSES, tuple(rows)))
    student, teacher = (restated.randomise(restated.Encoder(split_bias=False), seed) for seed in (1, 2))
    positions = torch.randn(1, 32, 192, generator=torch.Generator().manual_seed(4))
    states = [
        {f"module.backbone.{name}": value for name, value in encoder.state_dict().items()}
        | {"module.backbone.pos_embed": positions}
        for encoder in (student, teacher)
    ]
    predictor = {f"module.backbone.mask_tokens.{number}": torch.zeros(1, 1, 96) for number in (0, 1)}
    torch.save(
        {"encoder": states[0], "target_encoder": states[1], "predictor": predictor}, folder / "vjepa.pth"
    )
    tuned = restated.randomise(restated.Encoder(end="fc_norm"), 3)
    torch.save({"model": tuned.state_dict()}, folder / "videomae.pth")
    return Films(folder, folder / "split.json", folder / "vjepa.pth", folder / "videomae.pth")


@torch.no_grad()
def test_extraction(films: Films, build_index_of: Callable[..., PacketIndex], tmp_path: Path) -> None:
    name = f"file:{films.vjepa}#target_encoder,stride=2"
    config = ExtractConfig(
        films.manifest, films.folder, name, tmp_path / "f.h5", tokens=True, batch=2, device="cpu"
    )
    report = extract(config, 1)
    assert report.missing == []
    found = open_features(config.out, read_manifest(films.manifest))
    assert found.about.geometry == {"frames": 16, "stride": 2, "size": 32}
    assert (found.width, found.token_shape) == (192, (32, 192))
    # A row of 38 frames: a clip of 31 starts at one of 0 to 7, of which 4 is the middle.
    index = build_index_of([films.folder / "test.mp4"], tmp_path / "index.h5")
    with ClipStream(index, DataConfig(size=32), "cpu", 1) as stream:
        frames = next(stream.read([[ClipRequest(0, 0, tuple(range(4, 36, 2)))]])).frames
    model = surgrec.load_model(films.vjepa, part="target_encoder")
    expected = model.forward_features(frames)[0].numpy()
    at = np.array([4]), np.array([0])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found.tokens(*at)[0], expected, atol=4e-3 * scale)
    np.testing.assert_allclose(found.pooled(*at)[0], expected.mean(0), atol=4e-3 * scale)
    student = surgrec.load_model(films.vjepa, part="encoder").forward_features(frames)[0].numpy()
    assert np.abs(found.tokens(*at)[0] - student).max() > 0.05 * scale
    # The same weights elsewhere give the same features; others do not.
    copy = tmp_path / "copy.pth"
    shutil.copy(films.vjepa, copy)
    again = ExtractConfig(
        films.manifest,
        films.folder,
        name.replace(str(films.vjepa), str(copy)),
        config.out,
        True,
        device="cpu",
    )
    assert extract(again, 1).reused
    other = ExtractConfig(
        films.manifest, films.folder, f"file:{copy}#encoder,stride=2", config.out, True, device="cpu"
    )
    with pytest.raises(FeatureError, match="identity differ"):
        extract(other, 1)


@pytest.mark.parametrize("which", ["vjepa.pth#target_encoder,stride=2", "videomae.pth#size=32,stride=2"])
@pytest.mark.parametrize("mode", ["full", "head", "lora"])
def test_fine_tuning_gives_a_network_that_needs_no_other_file(
    films: Films, tmp_path: Path, which: str, mode: str
) -> None:
    """One with positions of its own, one whose positions are interpolated and that normalises its mean."""
    weights = tmp_path / which.partition("#")[0]
    shutil.copy(films.folder / weights.name, weights)
    config = FinetuneConfig(
        films.manifest,
        films.folder,
        f"file:{tmp_path / which}",
        out=tmp_path / "run",
        results=tmp_path / "results.jsonl",
        mode=mode,  # type: ignore[arg-type]
        epochs=1,
        batch=2,
        mixup=0.0,
        cutmix=0.0,
        device="cpu",
    )
    finished = finetune(config, 1, Progress())
    assert finished.result["geometry"] == {"frames": 16, "stride": 2, "size": 32}
    before = surgrec.load_model(weights, part="target_encoder") if "vjepa" in which else None
    weights.unlink()
    loaded = read_network(finished.run.network, CPU)
    encoder = loaded.classifier.encoder
    assert encoder.form.position == "stored"
    assert encoder.form.pool_norm == ("none" if "vjepa" in which else "layer_norm")
    if before is not None and mode == "head":
        state = before.encoder.state_dict()
        assert all(torch.equal(state[name], value) for name, value in encoder.state_dict().items())
    classifier = open_classifier(finished.run.network, None, 0)
    size, ask = classifier.load(CPU)
    frames = torch.randint(0, 256, (2, 16, size, size, 3), dtype=torch.uint8)
    assert torch.equal(ask(frames), loaded(frames))
    assert ask(frames).shape == (2, 2)


def test_what_is_wrong_is_said_once_and_nothing_is_done(
    films: Films, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--manifest", str(films.manifest), "--data-root", str(films.folder), "--device", "cpu"]
    for model, text in (
        (f"file:{tmp_path / 'gone.pth'}", "gone.pth: cannot be read"),
        (f"file:{films.vjepa}", "choose one"),
        (f"hf:{films.folder}", "a folder without config.json"),
        (f"file:{films.vjepa}#teacher", "there is no option 'teacher'"),
    ):
        arguments = [*given, "--model", model, "--out"]
        for command in (extract_command, finetune_command):
            assert command.main([*arguments, str(tmp_path / "out")]) == 1
            said = capsys.readouterr().err
            assert text in said
            assert "Traceback" not in said
        assert not (tmp_path / "out" / "result.json").exists()


def test_a_model_that_is_loaded_twice_is_two_networks(films: Films) -> None:
    opened = open_model(f"file:{films.vjepa}#encoder")
    assert opened is not None
    first, second = opened.load(CPU), opened.load(CPU)
    before = second.encoder.transformer.norm.weight.clone()
    with torch.no_grad():
        first.encoder.transformer.norm.weight.add_(1)
    assert torch.equal(second.encoder.transformer.norm.weight, before)
    again = surgrec.load_model(films.vjepa, part="encoder")
    assert torch.equal(again.encoder.transformer.norm.weight, before), "the file is never written to"


def test_a_file_that_is_replaced_meanwhile_is_refused(films: Films, tmp_path: Path) -> None:
    shutil.copy(films.vjepa, tmp_path / "vjepa.pth")
    opened = open_model(f"file:{tmp_path / 'vjepa.pth'}#encoder")
    assert opened is not None
    shutil.copy(films.vjepa, tmp_path / "other.pth")
    (tmp_path / "other.pth").replace(tmp_path / "vjepa.pth")
    with pytest.raises(WeightsError, match="has changed since it was opened"):
        opened.load(CPU)


def test_options_of_our_own_models_are_refused(films: Films) -> None:
    with pytest.raises(WeightsError, match="taken as it was trained"):
        surgrec.load_model("random:demo", size=64)
    model = surgrec.load_model("random:demo")
    assert model.coverage is None
    clips = torch.zeros(1, model.frames, model.size, model.size, 3, dtype=torch.uint8)
    with torch.no_grad():
        tokens = model.forward_features(clips)
    assert tokens.shape[2] == model.width
    with pytest.raises(ValueError, match=r"clips are of torch\.int64"):
        model.forward_features(clips.long())
    with pytest.raises(WeightsError, match="there is no model 'nothing:x'"):
        surgrec.load_model("nothing:x")
    with pytest.raises(AttributeError, match="no attribute 'load_models'"):
        surgrec.load_models  # noqa: B018
