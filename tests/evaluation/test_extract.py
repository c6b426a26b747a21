"""Extraction: features are those of the network on the frames of the row's time; what cannot be read is
named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from surgrec.configs.data import DataConfig
from surgrec.configs.extract import ExtractConfig
from surgrec.configs.model import MaeConfig
from surgrec.configs.pretrain import MaePretrain, to_document
from surgrec.configs.yaml_io import dump_yaml
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.packet_index import PacketIndex

from surgrec.curation.records import CurationError
from surgrec.evaluation import extraction
from surgrec.evaluation.extraction import extract
from surgrec.evaluation.features import FeatureError, open_features
from surgrec.evaluation.manifest import ManifestError, Row, SplitManifest, read_manifest, write_manifest
from surgrec.extract import main
from surgrec.models.build import build_objective
from surgrec.training.checkpoint import Checkpoint, save_checkpoint
from surgrec.weights.errors import WeightsError
from surgrec.weights.load import open_model

MODEL = "test_vit"
"""timm's own model for tests, pictures of 160 x 160."""
MAE = MaePretrain(
    data=DataConfig(frames=4, stride=3, size=32),
    model=MaeConfig(size="tiny", decoder_depth=1, decoder_width=48, decoder_heads=3),
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def root(streams: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of three seconds, 25 frames a second, one file that is no video, and a checkpoint."""
    folder = tmp_path_factory.mktemp("extract")
    for number, kind in enumerate(("h264_default", "hevc_closed", "h264_open_gop")):
        made = streams.make_stream(kind, folder / f"made-{kind}", frames=75, first=90 * number)
        shutil.copy(made, folder / f"video{number}.mp4")
    (folder / "text.mp4").write_text("no video")
    objective = build_objective(MAE.model, 7, 4, 32)
    values = {"config": to_document(MAE), "index_digest": ""}
    save_checkpoint(folder / "run" / "checkpoints", Checkpoint(3, objective.state_dict(), {}, values))
    return folder


ROWS = (
    Row("video0.mp4", 0, "train", "a"),
    Row("video1.mp4", 1, "train", "b", 1.0, 2.0),
    Row("gone.mp4", 1, "train", "b"),
    Row("text.mp4", 0, "val", "c"),
    Row("video2.mp4", 0, "val", "d", 0.5, None),
    Row("video0.mp4", 1, "test", "a", 2.0, 2.08),
    Row("video1.mp4", 1, "test", "a", 30.0, 40.0),
)


def config_for(
    root: Path, folder: Path, model: str, rows: tuple[Row, ...] = ROWS, **more: object
) -> ExtractConfig:
    write_manifest(folder / "split.json", SplitManifest("films", ("one", "two"), rows))
    given = ExtractConfig(folder / "split.json", root, model, folder / "features.h5", device="cpu", batch=4)
    return replace(given, **more)  # type: ignore[arg-type]


def frames_of(
    root: Path, build: Callable[..., PacketIndex], video: int, frames: tuple[int, ...], size: int, to: Path
) -> torch.Tensor:
    index = build([root / f"video{video}.mp4"], to)
    with ClipStream(index, DataConfig(size=size), "cpu", 1) as stream:
        return next(stream.read([[ClipRequest(0, 0, frames)]])).frames


def test_features_are_the_networks_on_the_frames_of_the_row(
    root: Path, build_index_of: Callable[..., PacketIndex], tmp_path: Path
) -> None:
    config = config_for(
        root, tmp_path, f"ckpt:{root / 'run'}", tokens=True, clips=2, views=("centre", "mirror")
    )
    report = extract(config, 1)
    found = open_features(config.out, read_manifest(config.manifest))
    assert found.digest == report.digest
    assert found.about.geometry == {"frames": 4, "stride": 3, "size": 32}
    assert (found.width, found.token_shape) == (192, (8, 192))
    assert found.present.tolist() == [True, True, False, False, True, True, False]
    objective = build_objective(MAE.model, 7, 4, 32)
    # The span of row 1 is frames 25 to 49: a clip of 10 frames starts at 25 to 40, in the middles of halves.
    for sample, (frames, mirror) in enumerate(
        [
            ((29, 32, 35, 38), False),
            ((29, 32, 35, 38), True),
            ((37, 40, 43, 46), False),
            ((37, 40, 43, 46), True),
        ]
    ):
        clip = frames_of(root, build_index_of, 1, frames, 32, tmp_path / f"{sample}.h5")
        with torch.no_grad():
            tokens = objective.features(clip.flip(3) if mirror else clip)[0].numpy()
        at = np.array([1]), np.array([sample])
        np.testing.assert_allclose(found.tokens(*at)[0], tokens, atol=4e-3)
        np.testing.assert_allclose(found.pooled(*at)[0], tokens.mean(0), atol=4e-3)
    every = [found.pooled(np.array([1]), np.array([sample]))[0].astype(float) for sample in range(4)]
    assert min(np.abs(a - b).max() for k, a in enumerate(every) for b in every[:k]) > 0.01


def test_first_weights_of_a_run(root: Path, tmp_path: Path) -> None:
    """What a run learnt is seen beside its own architecture untrained."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_yaml(to_document(MAE)))
    extract(config_for(root, tmp_path, f"random:{run}", tokens=True), 1)
    found = open_features(tmp_path / "features.h5")
    assert found.token_shape == (8, 192)
    assert found.about.geometry == {"frames": 4, "stride": 3, "size": 32}
    elsewhere = shutil.copytree(run, tmp_path / "elsewhere")
    same, other = (open_model(f"random:{elsewhere}", seed=seed) for seed in (0, 1))
    assert same is not None
    assert other is not None
    assert same.identity == found.about.identity != other.identity
    (run / "config.yaml").unlink()
    with pytest.raises(WeightsError, match=r"config\.yaml cannot be read.*needs a run folder"):
        open_model(f"random:{run}")


def test_what_cannot_be_read_is_missing_and_never_replaced(root: Path, tmp_path: Path) -> None:
    report = extract(config_for(root, tmp_path, "random:demo"), 1)
    missing = dict(report.missing)
    assert report.rows == 7
    assert list(missing) == ["gone.mp4", "text.mp4", "video1.mp4"]
    assert missing["gone.mp4"] == "no such file"
    assert "seconds 30 to 40 begin behind the last frame, at 2.96" in missing["video1.mp4"]
    found = open_features(tmp_path / "features.h5")
    for row in (2, 3, 6):
        assert not found.pooled(np.array([row]), np.array([0])).any()
    assert not (tmp_path / "features.h5.work").exists()


def test_a_clip_that_cannot_be_decoded_makes_its_row_missing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changes between indexing and reading."""
    data = tmp_path / "data"
    shutil.copytree(root, data)
    index_videos = extraction.build_index

    def index_and_damage(*given: object) -> object:
        report = index_videos(*given)  # type: ignore[arg-type]
        with (data / "video2.mp4").open("r+b") as file:
            file.truncate(2000)
        return report

    monkeypatch.setattr(extraction, "build_index", index_and_damage)
    report = extract(config_for(data, tmp_path, "random:demo"), 1)
    assert "another version" in dict(report.missing)["video2.mp4"]
    assert len(report.missing) == 4


def test_image_models(root: Path, build_index_of: Callable[..., PacketIndex], tmp_path: Path) -> None:
    import timm

    torch.manual_seed(5)
    model = timm.create_model(MODEL).eval()
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    name = f"timm:{MODEL}@{tmp_path / 'vit.safetensors'}"
    config = config_for(root, tmp_path, name, tokens=True, pictures=2)
    extract(config, 1)
    found = open_features(config.out)
    assert found.about.geometry == {"pictures": 2, "spread": "even", "pooling": "own"}
    clip = frames_of(root, build_index_of, 1, (31, 43), 160, tmp_path / "one.h5")[0]
    pixels = clip.permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        maps = model.forward_features((pixels / 255 - mean) / std)
        pooled = model.forward_head(maps, pre_logits=True).mean(0)
    at = np.array([1]), np.array([0])
    np.testing.assert_allclose(found.pooled(*at)[0], pooled, atol=5e-3)
    np.testing.assert_allclose(
        found.tokens(*at)[0], maps[:, model.num_prefix_tokens :].flatten(0, 1), atol=2e-2
    )
    other = config_for(root, tmp_path, f"random:timm:{MODEL}", out=tmp_path / "random.h5")
    extract(other, 1)
    assert open_features(other.out).about.identity.startswith(f"random:timm:{MODEL}/0/")


def test_a_run_that_was_stopped_goes_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole").mkdir()
    whole = extract(config_for(root, tmp_path / "whole", "random:demo", batch=1), 1)
    config = config_for(root, tmp_path, "random:demo", batch=1)
    store, stored = extraction._store, []

    def stop_after_two(*given: object) -> None:
        if len(stored) == 2:
            raise KeyboardInterrupt
        stored.append(given)
        store(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(extraction, "_store", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        extract(config, 1)
    assert not config.out.exists()
    monkeypatch.setattr(extraction, "_store", lambda *given: (stored.append(given), store(*given)))
    done: list[int] = []
    report = extract(config, 1, lambda at, of: done.append(at))
    assert len(stored) == 4  # of 4 rows that can be read
    assert done[0] >= 2
    assert report.digest == whole.digest
    # Once more: nothing is left to do. The digest does not depend on the batch.
    again = extract(config, 1)
    assert (again.reused, again.digest) == (True, whole.digest)
    (tmp_path / "batched").mkdir()
    batched = extract(config_for(root, tmp_path / "batched", "random:demo", batch=7), 1)
    with h5py.File(tmp_path / "batched" / "features.h5") as one, h5py.File(config.out) as two:
        np.testing.assert_allclose(one["pooled"][:], two["pooled"][:], atol=2e-3)
    assert len(batched.digest) == 32


def test_a_file_of_other_features_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    config = config_for(root, tmp_path, "random:demo")
    extract(config, 1)
    before = config.out.read_bytes()
    for other, text in (
        (replace(config, model=f"ckpt:{root / 'run'}"), "identity, geometry differ"),
        (replace(config, seed=1), "identity differ"),
        (replace(config, clips=3), "clips differ"),
        (replace(config, tokens=True), "tokens differ"),
    ):
        with pytest.raises(FeatureError, match=text):
            extract(other, 1)
    with pytest.raises(FeatureError, match="manifest_digest differ"):
        extract(config_for(root, tmp_path, "random:demo", ROWS[::-1]), 1)
    assert config.out.read_bytes() == before
    config.out.write_bytes(before[:-100])
    with pytest.raises(FeatureError, match=r"truncated.* when it is removed; or choose another --out"):
        extract(config_for(root, tmp_path, "random:demo"), 1)
    assert config.out.read_bytes() == before[:-100]


def test_a_second_run_waits_its_turn(root: Path, tmp_path: Path) -> None:
    config = config_for(root, tmp_path, "random:demo")
    records = extraction.ChunkRecords(tmp_path / "features.h5.work")
    records.open()
    with pytest.raises(CurationError, match="another run is extracting into it"):
        extract(config, 1)
    records.close()


def test_weights_that_give_no_numbers(root: Path, tmp_path: Path) -> None:
    import timm

    state = timm.create_model(MODEL).state_dict()
    # Each is finite, which is all that can be seen of a file.
    state["norm.weight"].fill_(3e38)
    save_file(state, tmp_path / "large.safetensors")
    with pytest.raises(FeatureError, match=r"video\d.mp4: the network gives values that are not finite"):
        extract(config_for(root, tmp_path, f"timm:{MODEL}@{tmp_path / 'large.safetensors'}"), 1)
    assert not (tmp_path / "features.h5").exists()


def test_input_that_makes_no_sense(root: Path, tmp_path: Path) -> None:
    config = config_for(root, tmp_path, "random:demo")
    for given, text in (
        (replace(config, model="clip"), "there is no model 'clip': give ckpt:PATH"),
        (replace(config, model="random:nothing"), "there is no model 'random:nothing'"),
        (replace(config, pictures=3), "--pictures is of image models"),
        (replace(config, model=f"random:timm:{MODEL}", pictures=0), "--pictures is 0"),
        (replace(config, clips=0), "--clips is 0"),
        (replace(config, batch=0), "--batch is 0"),
        (replace(config, views=("mirror", "mirror")), "name each once"),
        (replace(config, data_root=tmp_path / "nowhere"), "nowhere: no such folder"),
    ):
        with pytest.raises(FeatureError, match=text):
            extract(given, 1)
    with pytest.raises(WeightsError, match="has no model 'test_vitt'; did you mean"):
        extract(replace(config, model="random:timm:test_vitt"), 1)
    with pytest.raises(WeightsError, match="there is no such folder"):
        extract(replace(config, model=f"ckpt:{tmp_path / 'nothing'}"), 1)
    (root / "link.mp4").symlink_to("/etc/hostname")
    hostile = config_for(root, tmp_path, "random:demo", (Row("link.mp4", 0, "train", "a"),))
    with pytest.raises(ManifestError, match="outside of"):
        extract(hostile, 1)
    (root / "link.mp4").unlink()
    nothing = config_for(root, tmp_path, "random:demo", (Row("gone.mp4", 0, "train", "a"),))
    with pytest.raises(
        FeatureError, match="none of the 1 rows could be read, the first one because: no such file"
    ):
        extract(nothing, 1)


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_for(root, tmp_path, "random:demo")
    given = ["--manifest", str(config.manifest), "--data-root", str(root), "--model", "random:demo"]
    given += ["--out", str(config.out), "--device", "cpu", "--workers", "1"]
    assert main(given) == 0
    printed = capsys.readouterr()
    assert "features of 4 of 7 rows" in printed.out
    assert "missing: gone.mp4: " in printed.err
    assert main(given) == 0
    assert "holds these features already" in capsys.readouterr().out
    given[5] = "random:demo-jepa"
    assert main(given) == 1
    assert "surgrec.extract: " in capsys.readouterr().err
