"""A head slid over whole videos: digits that move in known ways for known times, damage, kills, bad input.

An untrained network sees little of motion, so that each motion has a light of its own: what is tested is that
what the head knows is shown at the right time.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from surgrec.configs.data import DataConfig
from surgrec.configs.predict import PredictConfig
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.packet_index import PacketIndex

from surgrec.corpus.build import build_index
from surgrec.corpus.discovery import Entry
from surgrec.demo_data.encode import write_h264
from surgrec.demo_data.handwriting import sklearn_digits
from surgrec.demo_data.moving_digit import FPS, frames
from surgrec.demo_data.texture import Picture
from surgrec.evaluation import prediction
from surgrec.evaluation.clip_classifier import open_classifier
from surgrec.evaluation.features import FeatureError, open_features
from surgrec.evaluation.manifest import Row, SplitManifest, read_manifest, write_manifest
from surgrec.evaluation.probe_data import parts_of
from surgrec.evaluation.saved_head import HeadError, read_head
from surgrec.extract import main as extract
from surgrec.finetune import main as finetune
from surgrec.finetuning.network_file import read_network
from surgrec.predict import main
from surgrec.probe import main as probe

PHASES = (("left", 1, (1.0, 1.0, 1.0)), ("clockwise", 0, (1.0, 0.4, 0.4)), ("growing", 7, (0.4, 0.7, 1.0)))
"""Motion, digit, and light."""
CLASSES = tuple(motion for motion, _, _ in PHASES)
SECONDS = 2
STRETCHES = 6


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write_operation(path: Path, number: int) -> list[int]:
    """A video of STRETCHES stretches of SECONDS, one key frame at its start and each 10 s; the class of each
    stretch."""
    material, rng = sklearn_digits(), np.random.default_rng(number)
    order = rng.permutation(np.repeat(np.arange(len(PHASES)), STRETCHES // len(PHASES))).tolist()

    def pictures() -> Iterator[Picture]:
        for label in order:
            motion, digit, light = PHASES[label]
            sample = rng.choice(np.flatnonzero(material.labels == digit))
            for picture in frames(material.images[sample], motion, int(rng.integers(1 << 40)), SECONDS * FPS):
                yield np.round(picture * np.array(light)).astype(np.uint8)

    write_h264(path, pictures(), FPS)
    return order


@dataclass(frozen=True)
class Case:
    """Operations with the classes of their stretches, and heads that were trained on the first ones."""

    folder: Path
    manifest: Path
    truth: list[int]

    @property
    def video(self) -> Path:
        """The operation of test."""
        return self.folder / "op4.mp4"

    def head(self, kind: str) -> Path:
        return self.folder / f"{kind}.safetensors"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("predict")
    rows, truth = [], []
    splits: Any = ("train", "train", "train", "val", "test")
    for number, split in enumerate(splits):
        truth = write_operation(folder / f"op{number}.mp4", number)
        for at, label in enumerate(truth):
            for start in (at * SECONDS, (at + 0.5) * SECONDS):
                rows.append(Row(f"op{number}.mp4", label, split, f"op{number}", start, start + SECONDS / 2))
    manifest = folder / "split.json"
    write_manifest(manifest, SplitManifest("operations", CLASSES, tuple(rows)))
    features = folder / "features.h5"
    given = ["--manifest", str(manifest)]
    made = ["--data-root", str(folder), "--model", "random:demo", "--tokens", "--out", str(features)]
    assert extract([*given, *made, "--device", "cpu"]) == 0
    found = Case(folder, manifest, truth)
    for kind in ("linear", "attentive"):
        options = ["--kind", kind, "--save", str(found.head(kind)), "--out", str(folder / "results.jsonl")]
        options += ["--steps", "60", "--seeds", "0", "--resamples", "10", "--device", "cpu"]
        assert probe([str(features), *given, *options]) == 0
    return found


def run(case: Case, out: Path, *more: object, videos: tuple[Path, ...] = (), kind: str = "attentive") -> int:
    shown = [str(video) for video in videos or (case.video,)]
    given = ["--head", str(case.head(kind)), "--out", str(out), "--device", "cpu", "--every", "0.2"]
    return main([*shown, *given, *map(str, more)])


def document(out: Path, name: str = "op4") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return found


def agreement(timeline: list[dict[str, Any]], truth: list[int]) -> float:
    """Share of the time at which the class that is shown is the true one."""
    times = np.arange(0.02, len(truth) * SECONDS, 0.04)
    right = 0
    for time in times:
        shown = [each["class"] for each in timeline if each["start"] <= time < each["end"]]
        assert len(shown) <= 1
        right += shown == [CLASSES[truth[int(time // SECONDS)]]]
    return right / len(times)


@pytest.fixture(scope="module")
def shown(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shown")
    assert run(case, out) == 0
    return out


def test_the_saved_head_says_what_the_result_says(case: Case) -> None:
    """Of the test rows of the features that it was trained beside."""
    manifest = read_manifest(case.manifest)
    features = open_features(case.folder / "features.h5", manifest)
    rows = parts_of(features, manifest)["test"].rows
    lines = [json.loads(line) for line in (case.folder / "results.jsonl").read_text().splitlines()]
    for kind, line in zip(("linear", "attentive"), lines, strict=True):
        head = read_head(case.head(kind))
        assert line["head_digest"] == head.digest
        assert head.about.chosen == line["chosen"]
        assert (head.about.identity, head.about.classes) == (line["model_identity"], CLASSES)
        zeros = np.zeros_like(rows)
        values = [torch.from_numpy(take(rows, zeros)) for take in (features.pooled, features.tokens)]
        said = head.on(torch.device("cpu"))(*values).argmax(1)
        assert [[int(row), int(label)] for row, label in zip(rows, said, strict=True)] == line["predictions"]


def test_the_timeline_agrees_with_what_was_filmed(case: Case, shown: Path) -> None:
    found = document(shown)
    assert agreement(found["timeline"], case.truth) > 0.9  # a third by chance
    assert found["read"] == {"windows": 56, "of": 56}
    assert found["unreadable"] == []
    assert found["seconds"] == 12.0
    assert (found["timeline"][0]["start"], found["timeline"][-1]["end"]) == (0.0, 12.0)
    for window in found["windows"]:
        assert sum(window["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert window["frames"][-1] - window["frames"][0] == 28
    head = read_head(case.head("attentive"))
    assert (found["head_digest"], found["model_identity"]) == (head.digest, head.about.identity)
    assert found["head"]["manifest_digest"] == read_manifest(case.manifest).digest
    assert not list(shown.glob("*.work"))


def test_the_three_files_say_the_same(shown: Path) -> None:
    with (shown / "op4.csv").open() as file:
        lines = list(csv.DictReader(file))
    timeline = document(shown)["timeline"]
    assert [(float(line["start"]), float(line["end"]), line["class"]) for line in lines] == [
        (round(each["start"], 3), round(each["end"], 3), each["class"]) for each in timeline
    ]
    assert [float(line["probability"]) for line in lines] == pytest.approx(
        [each["probability"] for each in timeline], abs=1e-6
    )
    with Image.open(shown / "op4.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] == 1800
    # The ribbon's colours change where the timeline does.
    middle = pixels[160, 110:1760]
    changes = np.flatnonzero((np.diff(middle.astype(int), axis=0) != 0).any(1)) / 1650 * 12
    assert len(changes) >= len(timeline) - 1
    for each in timeline[:-1]:
        assert np.abs(changes - each["end"]).min() < 0.02


def test_probabilities_are_those_of_extracted_features(case: Case, shown: Path, tmp_path: Path) -> None:
    """Of a window that a row of a manifest spans: the network and its clip are the same."""
    windows = [each for each in document(shown)["windows"] if each["start"] in (2.0, 4.0, 8.0)]
    rows = [Row("op4.mp4", 0, "test", "op4", each["start"], each["end"]) for each in windows]
    write_manifest(tmp_path / "split.json", SplitManifest("operations", CLASSES, tuple(rows)))
    given = ["--manifest", str(tmp_path / "split.json"), "--data-root", str(case.folder), "--tokens"]
    made = ["--model", "random:demo", "--out", str(tmp_path / "f.h5"), "--device", "cpu"]
    assert extract([*given, *made]) == 0
    features = open_features(tmp_path / "f.h5")
    at = np.arange(len(rows)), np.zeros(len(rows), np.int64)
    values = [torch.from_numpy(take(*at)) for take in (features.pooled, features.tokens)]
    said = read_head(case.head("attentive")).on(torch.device("cpu"))(*values)
    np.testing.assert_allclose(said, [each["probabilities"] for each in windows], atol=1e-3)


def damaged(case: Case, path: Path) -> Path:
    """A tenth of the bytes in the middle of the file are others."""
    content = bytearray(case.video.read_bytes())
    first, end = int(len(content) * 0.4), int(len(content) * 0.5)
    content[first:end:97] = bytes(value ^ 0x10 for value in content[first:end:97])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("verify", [False, True])
def test_damage_is_a_gap_and_nothing_else_changes(
    case: Case, shown: Path, tmp_path: Path, verify: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    video = damaged(case, tmp_path / "op4.mp4")
    assert run(case, tmp_path / "out", *(["--verify"] if verify else []), videos=(video,)) == 0
    found, sound = document(tmp_path / "out"), document(shown)
    (gap,) = found["unreadable"]
    assert 3 < gap["start"] < 6 < gap["end"] < 11
    assert "damaged" in gap["reason"]
    assert "cannot be read" in capsys.readouterr().err
    lost = [number for number, each in enumerate(found["windows"]) if "reason" in each]
    assert found["read"] == {"windows": 56 - len(lost), "of": 56}
    assert 5 < len(lost) < 40
    assert lost == list(range(lost[0], lost[-1] + 1))
    for number, (each, other) in enumerate(zip(found["windows"], sound["windows"], strict=True)):
        if number not in lost:
            # Batches differ, and with them rounding; a frame that is lost is not counted.
            np.testing.assert_allclose(each.pop("probabilities"), other.pop("probabilities"), atol=1e-5)
            assert each | {"frames": 0} == other | {"frames": 0}
    for each in found["timeline"]:
        assert each["end"] <= gap["start"] or each["start"] >= gap["end"]
    with (tmp_path / "out" / "op4.csv").open() as file:
        (line,) = [line for line in csv.DictReader(file) if not line["class"]]
    assert (line["probability"], line["unreadable"]) == ("", gap["reason"])


def test_one_bad_video_does_not_stop_the_others(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, gone = tmp_path / "text.mp4", tmp_path / "gone.mp4"
    text.write_text("no video")
    out = tmp_path / "out"
    assert run(case, out, videos=(text, case.video, gone)) == 0
    printed = capsys.readouterr()
    assert "1 of 3 videos" in printed.out
    assert f"surgrec.predict: {gone}: no such file" in printed.err
    assert f"surgrec.predict: {text}: " in printed.err
    assert sorted(path.name for path in out.iterdir()) == ["op4.csv", "op4.json", "op4.png"]
    assert run(case, tmp_path / "none", videos=(text, gone)) == 1


def test_a_video_of_which_nothing_can_be_read(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file changes between indexing and reading."""
    video = tmp_path / "op4.mp4"
    shutil.copy(case.video, video)
    build = prediction.build_index

    def build_and_cut(*given: Any, **more: Any) -> Any:
        report = build(*given, **more)
        with video.open("r+b") as file:
            file.truncate(9000)
        return report

    monkeypatch.setattr(prediction, "build_index", build_and_cut)
    assert run(case, tmp_path / "out", videos=(video,)) == 1
    assert "none of its 56 windows could be read" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_that_was_stopped_goes_on(
    case: Case,
    shown: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prediction, "BLOCK", 8)
    take, taken = prediction._take, []

    def stop_after_four(*given: Any) -> int:
        if len(taken) == 4:
            raise KeyboardInterrupt
        taken.append(given)
        return take(*given)

    monkeypatch.setattr(prediction, "_take", stop_after_four)
    assert run(case, tmp_path, "--batch", "4") == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["op4.work"]

    def count(*given: Any) -> int:
        taken.append(given)
        return take(*given)

    # Refused in between, which loses nothing.
    (tmp_path / "op4.csv").write_text("mine")
    assert run(case, tmp_path, "--batch", "4") == 1
    (tmp_path / "op4.csv").unlink()
    taken.clear()
    monkeypatch.setattr(prediction, "_take", count)
    assert run(case, tmp_path, "--batch", "4") == 0
    assert sum(len(batch.numbers) for _, _, _, batch, _ in taken) == 40  # of 56; two blocks were whole
    for one, other in zip(document(tmp_path)["windows"], document(shown)["windows"], strict=True):
        np.testing.assert_allclose(one.pop("probabilities"), other.pop("probabilities"), atol=1e-5)
        assert one == other


def test_a_video_that_is_done_is_smoothed_anew_and_not_computed(
    case: Case,
    shown: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(shown, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(prediction, "_compute", lambda *given: pytest.fail("computed again"))
    assert run(case, tmp_path, "--smooth", "1.5") == 0
    assert "median over 1.5 s; probabilities of an earlier run" in capsys.readouterr().out
    found, before = document(tmp_path), document(shown)
    assert found["smoothing"] == {"kind": "median", "seconds": 1.5}
    assert [each["probabilities"] for each in found["windows"]] == [
        each["probabilities"] for each in before["windows"]
    ]
    assert len(found["timeline"]) <= len(before["timeline"])
    assert found["windows"][20]["smoothed"] != found["windows"][20]["probabilities"]
    assert run(case, tmp_path, "--smooth", "1.5", "--smoothing", "mean") == 0
    assert document(tmp_path)["smoothing"]["kind"] == "mean"


def test_what_lies_there_is_not_overwritten(
    case: Case, shown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shown, tmp_path / "other")
    before = (tmp_path / "other" / "op4.json").read_bytes()
    assert run(case, tmp_path / "other", kind="linear") == 1
    assert "holds another prediction, by random:demo with head" in capsys.readouterr().err
    assert (tmp_path / "other" / "op4.json").read_bytes() == before
    for name, text in (("op4.json", "no prediction, or a damaged one"), ("op4.csv", "not of this command")):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("mine")
        assert run(case, folder) == 1
        assert text in capsys.readouterr().err
        assert (folder / name).read_text() == "mine"


def test_another_network_is_refused(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (("--model", "random:demo-jepa"), ("--seed", "1")):
        assert run(case, tmp_path, *more) == 1
        assert "another network" in capsys.readouterr().err
    with pytest.raises(HeadError, match="no such file"):
        open_classifier(tmp_path / "none", None, 0)
    with pytest.raises(FeatureError, match="there is no model 'nothing:1'"):
        open_classifier(case.head("linear"), "nothing:1", 0)


def test_a_fine_tuned_network(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its timeline is what it says of each window, and it needs no other network beside it."""
    run_folder = tmp_path / "run"
    given = ["--manifest", str(case.manifest), "--data-root", str(case.folder), "--model", "random:demo"]
    options = [
        "--epochs",
        "1",
        "--batch",
        "8",
        "--device",
        "cpu",
        "--resamples",
        "10",
        "--out",
        str(run_folder),
    ]
    assert finetune([*given, *options, "--results", str(tmp_path / "results.jsonl")]) == 0
    (path,) = run_folder.rglob("network.safetensors")
    shown = [str(case.video), "--head", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(shown) == 0
    found, network = document(tmp_path / "out"), read_network(path, torch.device("cpu"))
    assert (found["head_digest"], found["head"]["kind"]) == (network.digest, "finetune-full")
    window = found["windows"][3]
    entries = [Entry(str(case.video), "films")]
    build_index(entries, tmp_path / "video.h5", 1)
    data = DataConfig(size=network.cut.data.size)
    with ClipStream(PacketIndex.open(tmp_path / "video.h5"), data, "cpu", 1) as stream:
        (group,) = stream.read([[ClipRequest(0, 0, tuple(window["frames"]))]])
    np.testing.assert_allclose(network(group.frames)[0], window["probabilities"], atol=1e-5)
    assert main([*shown, "--model", "random:demo"]) == 1
    assert "holds all its weights; leave --model out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--every", "0"), "--every is 0.0"),
        (("--every", "nan"), "--every is nan"),
        (("--window", "-1"), "--window is -1.0"),
        (("--smooth", "-1"), "--smooth is -1.0"),
        (("--smooth", "inf"), "--smooth is inf"),
        (("--batch", "0"), "--batch is 0"),
        (("--memory-mib", "0"), "--memory-mib is 0"),
    ],
)
def test_options_that_make_no_sense(
    case: Case, tmp_path: Path, more: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(case.video), "--head", str(case.head("linear")), "--out", str(tmp_path)]
    assert main([*given, *more]) == 1
    assert text in capsys.readouterr().err


def test_videos_of_one_name(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(case, tmp_path, videos=(Path("a/x.mp4"), Path("b/x.avi"))) == 1
    assert "a/x.mp4 and b/x.avi: their timelines would have one name" in capsys.readouterr().err


def test_no_room_for_the_files(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was computed stays, and the next run only writes it."""
    from surgrec.evaluation import timeline_plot

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device", "op4.png")

    monkeypatch.setattr(timeline_plot, "write_plot", full)
    assert run(case, tmp_path) == 1
    assert "No space left on device; what is computed is kept" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(prediction, "_compute", lambda *given: pytest.fail("computed again"))
    assert run(case, tmp_path) == 0
    assert (tmp_path / "op4.png").exists()


def test_weights_that_are_no_good(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = open_classifier(case.head("linear"), None, 0)
    size, _ = classifier.load(torch.device("cpu"))

    def load(device: torch.device) -> tuple[int, Callable[[torch.Tensor], torch.Tensor]]:
        return size, lambda given: torch.full((len(given), 3), float("nan"))

    network = prediction.Network(type(classifier)(**{**vars(classifier), "load": load}), torch.device("cpu"))
    config = PredictConfig((case.video,), case.head("linear"))
    with pytest.raises(FeatureError, match="values that are not finite for frames 0 to 28"):
        prediction.predict(
            config, network, case.video, tmp_path / "work", 1, lambda key: None, lambda found: None
        )
