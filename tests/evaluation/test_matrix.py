"""The matrix: every cell once, whatever stopped it and however many ranks there are; what fails is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from surgrec.configs.extract import ExtractOptions
from surgrec.configs.matrix import MatrixConfig
from surgrec.configs.probe import ProbeOptions

from surgrec.benchmark import main
from surgrec.evaluation import matrix, matrix_plan
from surgrec.evaluation.extraction import ChunkRecords
from surgrec.evaluation.features import open_features
from surgrec.evaluation.manifest import Row, SplitManifest, write_manifest
from surgrec.evaluation.matrix_plan import Pair, room
from surgrec.evaluation.results import append_result, read_documents

VIT = "random:timm:test_vit"
SMALL = ("--probe.steps", "4", "--probe.lrs", "0.001", "--probe.seeds", "0", "--probe.resamples", "20")
SMALL += ("--probe.weight-decays", "0.01", "--extract.pictures", "2", "--extract.workers", "1")
SMALL += ("--extract.device", "cpu", "--probe.device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def root(streams: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, and two splits of them, the second with a row of a video that is gone."""
    folder = tmp_path_factory.mktemp("matrix")
    for number, kind in enumerate(("h264_default", "hevc_closed")):
        streams.make_stream(kind, folder / f"video{number}", frames=75, first=90 * number)
    rows = tuple(
        Row(f"video{n % 2}.mp4", n % 2, split, f"g{n}", 0.2 * n, 0.2 * n + 1)  # type: ignore[arg-type]
        for n, split in enumerate(("train",) * 4 + ("val",) * 2 + ("test",) * 2)
    )
    write_manifest(folder / "one.json", SplitManifest("one", ("a", "b"), rows))
    more = (*rows, Row("gone.mp4", 0, "test", "g"))
    write_manifest(folder / "two.json", SplitManifest("two", ("a", "b"), more))
    return folder


def arguments(root: Path, out: Path, *more: str, models: tuple[str, ...] = ("random:demo", VIT)) -> list[str]:
    manifests = [str(root / name) for name in ("one.json", "two.json")]
    given = ["run", "--models", *models, "--manifests", *manifests, "--data-root", str(root)]
    return [*given, "--probes", "knn", "linear", "--out", str(out), *SMALL, *more]


Measured = dict[tuple[str, str, str], Any]


def measured(out: Path) -> Measured:
    """What of results does not hang on when and in what order they were made."""
    documents = read_documents(out / "results.jsonl")
    names = ("features_digest", "figures", "val", "chosen", "predictions", "rows", "options")
    found = {(d["model"], d["dataset"], d["mode"]): [d[name] for name in names] for d in documents}
    assert len(found) == len(documents)  # no cell was evaluated twice
    return found


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix that ran through."""
    out = tmp_path_factory.mktemp("whole")
    assert main(arguments(root, out)) == 0
    return out


def test_every_cell_once(root: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(whole)
    cells = {
        (m, d, p) for m in ("random:demo", VIT) for d in ("one", "two") for p in ("probe-knn", "probe-linear")
    }
    assert found.keys() == cells
    read = found[VIT, "two", "probe-knn"][5]["test"]
    assert read == {"read": 2, "of": 3}  # the row that is gone is said, never replaced
    files = sorted((whole / "features").glob("*.h5"))
    assert len(files) == 4
    assert all(open_features(path).token_shape is None for path in files)  # no attentive probe asks for them
    before = (whole / "results.jsonl").read_bytes(), [path.stat().st_mtime_ns for path in files]
    assert main(arguments(root, whole)) == 0
    assert "0 results more, 8 were there, 0 cells failed" in capsys.readouterr().out
    assert before == ((whole / "results.jsonl").read_bytes(), [path.stat().st_mtime_ns for path in files])


def test_config_of_a_run_repeats_it(
    root: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--config", str(whole / "config.yaml")]
    assert main([*command, "--print-only"]) == 0
    assert "8 cells, 0 to do" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "new"), "--print-only"]) == 0
    assert "8 cells, 8 to do" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    (tmp_path / "bad.yaml").write_text("models: [random:demo]\nprobs: [knn]\n")
    assert main(["run", "--config", str(tmp_path / "bad.yaml")]) == 1
    assert "bad.yaml: config has no entry probs" in capsys.readouterr().err


def test_print_only_says_what_would_be_done(
    root: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(root, whole, "--print-only", models=("random:demo", "random:nothing"))
    given[given.index("linear")] = "attentive"
    assert main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    # Tokens of 8 rows: 4 x 4 x 4 of width 192, and the mean.
    assert lines[0].endswith(
        f"8 rows: extract {8 * 65 * 192 * 2 / 1e9:.3f} GB; to do: attentive; with a result: knn"
    )
    assert (
        "random:nothing on one: knn, attentive cannot be done: there is no model 'random:nothing'" in lines[2]
    )
    assert "8 cells, 6 to do" in lines[4]
    assert len(list((whole / "features").glob("*.h5"))) == 4


def test_size_said_beforehand_is_that_of_the_columns(root: Path, whole: Path, tmp_path: Path) -> None:
    pairs = matrix_plan.make_plan(config_of(root, tmp_path), torch.device("cpu"))
    for pair in pairs:
        held = open_features(whole / "features" / pair.features.name)
        assert pair.bytes == held._pooled.nbytes


def config_of(root: Path, out: Path, **more: Any) -> MatrixConfig:
    """The options of `arguments`."""
    extract = ExtractOptions(pictures=2, workers=1, device="cpu")
    probe = ProbeOptions(steps=4, lrs=(0.001,), seeds=(0,), weight_decays=(0.01,), resamples=20, device="cpu")
    manifests = (root / "one.json", root / "two.json")
    given = MatrixConfig(("random:demo", VIT), manifests, data_root=root, probes=("knn", "linear"), out=out)
    return replace(given, extract=extract, probe=probe, **more)


def test_a_killed_run_goes_on(
    root: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    count = 0

    def append_two(path: Path, document: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count > 3:
            raise KeyboardInterrupt
        append_result(path, document)

    monkeypatch.setattr(matrix, "append_result", append_two)
    assert main(arguments(root, tmp_path)) == 130
    assert "goes on" in capsys.readouterr().err
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(b'{"format": "surgrec-re')  # a line that was torn
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").glob("*.h5")}
    assert len(done) == 2
    monkeypatch.undo()
    assert main(arguments(root, tmp_path)) == 0
    assert "5 results more, 3 were there, 0 cells failed" in capsys.readouterr().out
    assert measured(tmp_path) == measured(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())


def test_what_fails_does_not_stop_the_others(
    root: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that is gone, weights that give no numbers, a manifest that is torn, no video at all."""
    import timm

    state = timm.create_model("test_vit").state_dict()
    state["norm.weight"].fill_(3e38)
    save_file(state, tmp_path / "large.safetensors")
    rows = tuple(
        Row(f"gone{n}.mp4", n % 2, s, f"g{n}") for n, s in enumerate(("train", "train", "val", "test"))
    )
    write_manifest(tmp_path / "gone.json", SplitManifest("gone", ("a", "b"), rows))
    (tmp_path / "torn.json").write_text("{")
    out = tmp_path / "out"
    models = (f"ckpt:{tmp_path / 'none'}", f"timm:test_vit@{tmp_path / 'large.safetensors'}", "random:demo")
    given = arguments(root, out, models=models)
    given[given.index(str(root / "two.json"))] = str(tmp_path / "torn.json")
    given.insert(given.index("--data-root"), str(tmp_path / "gone.json"))
    assert main(given) == 1
    printed = capsys.readouterr()
    assert "2 results more, 0 were there, 16 cells failed" in printed.out
    for text in (
        f"knn, linear of ckpt:{tmp_path / 'none'} on one: ",
        "the network gives values that are not finite",
        "torn.json: not a JSON file",
        "none of the 4 rows could be read, the first one because: no such file",
    ):
        assert text in printed.err
    assert {key[:2] for key in measured(out)} == {("random:demo", "one")}
    for mode in ("probe-knn", "probe-linear"):
        assert measured(out)["random:demo", "one", mode] == measured(whole)["random:demo", "one", mode]


def test_two_ranks_do_what_one_does(
    root: Path, whole: Path, tmp_path: Path, two_ranks: Callable[..., Any]
) -> None:
    command = ["surgrec.benchmark", *arguments(root, tmp_path)]
    answers = two_ranks(command, command)
    assert [status for status, _, _ in answers] == [0, 0], answers
    assert "8 results more, 0 were there, 0 cells failed" in answers[0][1]
    assert answers[1][1] == ""
    said = [error.count("accuracy") for _, _, error in answers]
    assert said == [4, 4]
    assert measured(tmp_path) == measured(whole)
    assert len(list((tmp_path / "features").glob("*.h5"))) == 4


def test_a_rank_whose_cells_fail_does_not_hang_the_other(
    root: Path, tmp_path: Path, two_ranks: Callable[..., Any]
) -> None:
    command = [
        "surgrec.benchmark",
        *arguments(root, tmp_path, models=("random:demo", "random:nothing")),
    ]
    answers = two_ranks(command, command)
    assert [status for status, _, _ in answers] == [1, 1], answers
    assert "4 results more, 0 were there, 4 cells failed" in answers[0][1]
    assert "Traceback" not in answers[0][2] + answers[1][2]


def test_features_that_are_dropped(root: Path, whole: Path, tmp_path: Path) -> None:
    assert main(arguments(root, tmp_path, "--drop-features")) == 0
    assert list((tmp_path / "features").glob("*.h5")) == []
    assert measured(tmp_path) == measured(whole)


def test_features_are_kept_where_a_probe_fails(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = matrix.probe

    def fail_once(config: Any) -> Any:
        if config.kind == "linear":
            raise torch.OutOfMemoryError
        return probe(config)

    monkeypatch.setattr(matrix, "probe", fail_once)
    given = arguments(root, tmp_path, "--drop-features", models=("random:demo",))
    assert main(given) == 1
    assert "give a smaller --probe.batch" in capsys.readouterr().err
    assert len(list((tmp_path / "features").glob("*.h5"))) == 2
    monkeypatch.undo()
    assert main(given) == 0
    assert list((tmp_path / "features").glob("*.h5")) == []


def test_a_disk_without_the_room(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(matrix_plan.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert main(arguments(root, tmp_path)) == 1
    assert "give --drop-features, free some space" in capsys.readouterr().err
    assert not (tmp_path / "results.jsonl").exists()


def test_room() -> None:
    sizes = ((10, 0), (30, 5), (20, 0), (0, 0))
    pairs = [Pair("m", Path("f"), "d", bytes=size, begun=begun) for size, begun in sizes]
    assert room(pairs, ranks=1, drop=False) == 60 + 30 - 5
    assert room(pairs, ranks=2, drop=False) == 60 + 50 - 5
    assert room(pairs, ranks=1, drop=True) == 30 + 30 - 5
    assert room([], ranks=2, drop=True) == 0


def test_a_second_run_waits_its_turn(root: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = matrix.FeatureFolder(whole / "features").open()
    assert main(arguments(root, whole)) == 1
    assert "another run is evaluating into it" in capsys.readouterr().err
    folder.close()
    # An extraction that a person has started beside it.
    assert ChunkRecords(whole / "features" / "x.h5.work").open().close(remove=True) is None


def test_other_options_are_other_cells(root: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, todo in (
        (("--probe.steps", "5"), 4),  # k-NN has no steps
        (("--probe.select", "macro_f1"), 8),
        (("--extract.views", "centre", "mirror"), 8),
        (("--extract.pictures", "3"), 4),  # of the image model alone
        (("--extract.seed", "1"), 8),
        (("--extract.batch", "3"), 0),
    ):
        assert main(arguments(root, whole, "--print-only", *more)) == 0
        assert f"8 cells, {todo} to do" in capsys.readouterr().out, more


def test_input_that_makes_no_sense(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["run", "--out", str(tmp_path / "out"), "--data-root", str(root)]
    manifest = ["--manifests", str(root / "one.json")]
    for given, text in (
        (manifest, "--models are empty"),
        ([*manifest, "--models", "random:demo", "random:demo"], "name each once"),
        (["--models", "random:demo"], "give --manifests FILE ... or --datasets NAME"),
        (["--models", "random:demo", "--datasets", "cholec81"], "'cholec81' is no data set"),
        ([*manifest, str(root / "one.json"), "--models", "random:demo"], "is the same as random:demo on"),
        ([*manifest, "--models", "random:demo", "--probe.steps", "0"], "--steps is 0"),
        ([*manifest, "--models", "random:demo", "--data-root", "nowhere"], "nowhere: no such folder"),
    ):
        assert main([*base, *given]) == 1
        assert text in capsys.readouterr().err
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "results.jsonl").write_text(json.dumps({"format": "other"}) + "\n")
    assert main([*base, *manifest, "--models", "random:demo"]) == 1
    assert "results.jsonl, line 1: not a result" in capsys.readouterr().err


def test_data_sets_by_name(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(root / "one.json", tmp_path / "cholec80.json")
    given = ["run", "--models", "random:demo", "--datasets", "cholec80", "--manifest-folder", str(tmp_path)]
    given += ["--data-root", str(root), "--out", str(tmp_path / "out"), "--print-only"]
    assert main(given) == 0
    assert "random:demo on one (" in capsys.readouterr().out
    assert main([*given, "--splits", "repaired"]) == 0
    assert "cholec80.repaired.json: no such manifest" in capsys.readouterr().out
