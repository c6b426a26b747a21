"""Probes end to end on drawn features: what can be learned is, what cannot stays at chance, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from surgrec.configs.probe import ProbeConfig

from surgrec.evaluation.features import About, Chunk, FeatureError, open_features, write_features
from surgrec.evaluation.knn import knn_scores
from surgrec.evaluation.manifest import ManifestError, Row, SplitManifest, read_manifest, write_manifest
from surgrec.evaluation.probe_data import Reader, few_shot, parts_of, sample_order
from surgrec.evaluation.probing import probe
from surgrec.evaluation.results import read_results
from surgrec.probe import main

CLASSES = ("one", "two", "three", "four")
WIDTH, TOKENS = 32, 6
KINDS = ("knn", "linear", "attentive")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rows_of(count: int = 240, labels: Callable[[int], int] = lambda number: number % 4) -> list[Row]:
    """Groups of four rows; of five groups three in train, one in val, one in test."""
    found = []
    for number in range(count):
        group = number // 4
        split: Any = ("train", "train", "train", "val", "test")[group % 5]
        found.append(Row(f"{number}.mp4", labels(number), split, f"g{group}"))
    return found


def make(
    folder: Path,
    rows: list[Row],
    clips: int = 1,
    missing: dict[int, str] | None = None,
    tokens: bool = True,
    signal: float = 1.0,
    classes: tuple[str, ...] = CLASSES,
) -> ProbeConfig:
    """A manifest and features in which one token of each clip tells the number of the row modulo 4."""
    generator = np.random.default_rng(0)
    entries = len(rows) * clips
    values = generator.normal(size=(entries, TOKENS, WIDTH))
    told = np.repeat(np.arange(len(rows)) % 4, clips)
    values[np.arange(entries), generator.integers(0, TOKENS, entries)] += 12 * signal * np.eye(WIDTH)[told]
    values[np.repeat(np.isin(np.arange(len(rows)), list(missing or ())), clips)] = 0
    manifest = SplitManifest("drawn", classes, tuple(rows))
    folder.mkdir(exist_ok=True)
    write_manifest(folder / "split.json", manifest)
    about = About("drawn", manifest.digest, "random:demo", "random:demo/0", {"frames": 4}, clips, ("centre",))
    chunks = []
    for first in range(0, len(rows), 50):
        part = values[first * clips : (first + 50) * clips].astype(np.float16)
        lost = {row - first: text for row, text in (missing or {}).items() if first <= row < first + 50}
        count = len(part) // clips
        chunks.append(
            Chunk(count, part.mean(1, dtype=np.float32).astype(np.float16), part if tokens else None, lost)
        )
    write_features(folder / "features.h5", about, len(rows), chunks, tokens)
    return ProbeConfig(
        folder / "features.h5",
        folder / "split.json",
        out=folder / "results.jsonl",
        steps=80,
        batch=64,
        resamples=200,
        device="cpu",
    )


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    """Writes a feature file anew with other pooled features."""
    found = open_features(path)
    with h5py.File(path) as file:
        pooled, tokens = file["pooled"][:], file["tokens"][:]
    change(pooled)
    count = len(found.present)
    write_features(path, found.about, count, [Chunk(count, pooled, tokens, found.missing)], True)


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_told_apart_is(kind: Any, tmp_path: Path) -> None:
    result = probe(replace(make(tmp_path, rows_of(), clips=2), kind=kind))
    accuracy = result["figures"]["accuracy"]
    assert accuracy["value"] > 0.9
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert result["baselines"]["majority"]["accuracy"]["value"] == 0.25
    assert result["baselines"]["source_lookup"]["covered"] == 0
    assert result["rows"] == {
        split: {"read": n, "of": n} for split, n in (("train", 144), ("val", 48), ("test", 48))
    }
    assert len(result["val"]) == (6 if kind == "knn" else 20)
    best = max(entry["score"] for entry in result["val"])
    chosen = [entry for entry in result["val"] if result["chosen"].items() <= entry.items()]
    assert [entry["score"] for entry in chosen] == [best]
    assert result["mode"] == f"probe-{kind}"
    assert len(result["predictions"]) == 48
    right = np.mean([said == row % 4 for row, said in result["predictions"]])
    assert right == pytest.approx(accuracy["value"])
    assert result["test_groups"] == 12
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("kind", KINDS)
def test_random_labels_stay_at_chance(kind: Any, tmp_path: Path) -> None:
    """480 test rows of four equally frequent classes: 25 % +- 4 standard deviations of 2 %."""
    labels = np.random.default_rng(1).integers(0, 4, 2400)
    config = make(tmp_path, rows_of(2400, lambda number: int(labels[number])), tokens=kind == "attentive")
    result = probe(replace(config, kind=kind, resamples=50))
    assert abs(result["figures"]["accuracy"]["value"] - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 480)
    assert abs(result["figures"]["auroc"]["value"] - 0.5) < 0.08


def test_results_are_the_same_again_and_follow_from_the_seed(tmp_path: Path) -> None:
    config = replace(make(tmp_path, rows_of(), signal=0.3), kind="linear", shots=(2,), draws=2)
    one = probe(config)
    again = probe(config)
    assert again | {"date": one["date"]} == one
    other = probe(replace(config, seed=1))
    assert other["val"] != one["val"]


def test_rows_that_are_missing_are_counted(tmp_path: Path) -> None:
    rows = rows_of()
    tests = [number for number, row in enumerate(rows) if row.split == "test"]
    lost = {tests[0]: "the file is gone", tests[5]: "damaged", 0: "the file is gone"}
    result = probe(replace(make(tmp_path, rows, missing=lost), kind="linear"))
    assert result["rows"]["test"] == {"read": 46, "of": 48}
    assert result["rows"]["train"] == {"read": 143, "of": 144}
    assert result["test_rows"] == len(result["predictions"]) == 46
    assert ["test", f"{tests[5]}.mp4", "damaged"] in result["missing"]
    assert tests[0] not in [row for row, _ in result["predictions"]]


def test_val_that_is_test_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in rows_of() if row.split != "val"]
    rows += [replace(row, split="val") for row in rows if row.split == "test"]
    config = make(tmp_path, rows)
    given = [str(config.features), "--manifest", str(config.manifest), "--out", str(config.out)]
    assert main([*given, "--kind", "knn", "--device", "cpu", "--resamples", "20"]) == 0
    assert "val and test hold the same clips" in capsys.readouterr().err
    assert [found.val_is_test for found in read_results(config.out)] == [True]
    assert not probe(replace(make(tmp_path / "honest", rows_of()), kind="knn"))["val_is_test"]


def test_few_shot_draws(tmp_path: Path) -> None:
    config = replace(make(tmp_path, rows_of()), kind="linear", shots=(1, 5), draws=3)
    result = probe(config)
    one, five = result["few_shot"]
    assert [draw["train_rows"] for draw in one["draws"]] == [4, 4, 4]
    assert [draw["train_rows"] for draw in five["draws"]] == [20, 20, 20]
    assert one["accuracy"]["mean"] < five["accuracy"]["mean"] <= 1
    values = [draw["accuracy"] for draw in five["draws"]]
    assert five["accuracy"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    manifest = read_manifest(config.manifest)
    train = parts_of(open_features(config.features, manifest), manifest)["train"]
    drawn = [few_shot(train, 5, draw, 0) for draw in range(3)]
    for part in drawn:
        assert np.bincount(part.labels).tolist() == [5, 5, 5, 5]
        assert set(part.rows) <= set(train.rows)
    assert len({tuple(part.rows) for part in drawn}) == 3
    assert np.array_equal(few_shot(train, 1000, 0, 0).rows, train.rows)


def test_every_sample_comes_once_an_epoch() -> None:
    orders = list(sample_order(10, 4, 5, 0))
    seen = np.concatenate(orders)
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert not np.array_equal(seen[:10], seen[10:])
    assert [len(order) for order in sample_order(3, 128, 2, 0)] == [3, 3]


def test_neighbours_by_hand() -> None:
    bank = [
        (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])),
        (torch.tensor([[3.0, 3.0]]), torch.tensor([2])),
    ]
    found = knn_scores(torch.tensor([[5.0, 0.1]]), bank, [1, 2, 9], 3)[:, 0].double().numpy()
    cosine = np.array([5.0, 0.1, 5.1 / np.sqrt(2)]) / np.hypot(5, 0.1)
    votes = np.exp(cosine / 0.07)
    np.testing.assert_allclose(found[0], [1, 0, 0])
    np.testing.assert_allclose(found[1], votes * [1, 0, 1] / (votes[0] + votes[2]), rtol=1e-4)
    np.testing.assert_allclose(found[2], votes / votes.sum(), rtol=1e-4)


def test_a_class_that_train_lacks_is_named(tmp_path: Path) -> None:
    rows = [replace_label(row) for row in rows_of()]
    result = probe(replace(make(tmp_path, rows), kind="linear"))
    assert result["classes_missing"] == {"train": ["four"], "val": [], "test": []}
    assert result["per_class"][3]["recall"]["value"] == 0


def replace_label(row: Row) -> Row:
    return replace(row, label=0) if row.split == "train" and row.label == 3 else row


def test_classes_that_test_lacks_are_named(tmp_path: Path) -> None:
    rows = [replace(row, label=0) if row.split == "test" and row.label == 2 else row for row in rows_of()]
    result = probe(replace(make(tmp_path, rows), kind="knn"))
    assert result["classes_missing"]["test"] == ["three"]
    assert result["per_class"][2] == {"class": "three", "recall": None, "auroc": None}


def test_standardised_features_that_are_constant(tmp_path: Path) -> None:
    """A dead feature must not turn rounding into a signal, nor into values that are not finite."""
    config = replace(make(tmp_path, rows_of(), clips=2), kind="linear")
    rewrite(config.features, lambda pooled: pooled.__setitem__((slice(None), slice(20, 22)), (0, 700)))
    manifest = read_manifest(config.manifest)
    features = open_features(config.features, manifest)
    train = parts_of(features, manifest)["train"]
    reader = Reader(features, "pooled", torch.device("cpu")).standardised(train)
    values = torch.cat([part.flatten(0, 1) for part, _ in reader.in_order(train, 50)])
    assert not values[:, 20:22].any()
    alive = [column for column in range(WIDTH) if column not in (20, 21)]
    torch.testing.assert_close(values[:, alive].mean(0), torch.zeros(30), rtol=0, atol=1e-4)
    torch.testing.assert_close(values[:, alive].var(0, correction=0), torch.ones(30), rtol=1e-4, atol=0)
    assert probe(config)["figures"]["accuracy"]["value"] > 0.9


def test_features_that_do_not_fit(tmp_path: Path) -> None:
    config = replace(make(tmp_path, rows_of(), missing={3: "gone"}), kind="linear")
    path = config.features
    for name, damage, text in (
        ("pooled", lambda file: file["pooled"].__setitem__((7, 3), 0.5), "pooled features are not those"),
        ("tokens", lambda file: file["tokens"].__setitem__((9, 0, 3), 0.5), "tokens features are not those"),
        ("about", lambda file: file.attrs.__setitem__("about", np.bytes_("[]")), "damaged"),
        ("clips", lambda file: file["missing/rows"].__setitem__(0, 6), "digest is not that of what it holds"),
        ("behind", lambda file: file["missing/rows"].__setitem__(0, 10**6), "damaged"),
        ("kind", lambda file: file.attrs.__setitem__("format", "other"), "HDF5, but no feature file"),
        ("version", lambda file: file.attrs.__setitem__("format_version", 9), "of format version 9"),
        ("gap", lambda file: file.__delitem__("pooled"), "damaged"),
        ("rows", lambda file: file.attrs.__setitem__("rows", 7), "damaged"),
    ):
        copy = tmp_path / f"{name}.h5"
        copy.write_bytes(path.read_bytes())
        with h5py.File(copy, "r+") as file:
            damage(file)
        with pytest.raises(FeatureError, match=text):
            probe(replace(config, features=copy, kind="attentive" if name == "tokens" else "linear"))
    rewrite(path, lambda pooled: pooled.__setitem__((7, 3), np.nan))
    with pytest.raises(FeatureError, match=r"features of row 8 .* are not finite"):
        probe(config)
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "short.h5").write_bytes(path.read_bytes()[:-2000])
    for name, text in (
        ("text.h5", "not an HDF5 file"),
        ("short.h5", "truncated"),
        ("gone.h5", "no such file"),
    ):
        with pytest.raises(FeatureError, match=text):
            probe(replace(config, features=tmp_path / name))


def test_a_byte_that_was_changed_is_an_error_or_nothing(tmp_path: Path) -> None:
    """Wherever it lies in the file: it is named, or what is read is what was written; HDF5 never hangs."""
    config = replace(make(tmp_path, rows_of(40), missing={3: "gone"}, tokens=False), kind="knn", ks=(1,))
    manifest, whole = read_manifest(config.manifest), bytearray(config.features.read_bytes())
    before = open_features(config.features, manifest)
    every = np.flatnonzero(before.present)
    held = before.pooled(every, np.zeros_like(every))
    generator = np.random.default_rng(0)
    copy = tmp_path / "copy.h5"
    refused = 0
    for at in generator.permutation(len(whole))[:400].tolist():
        damaged = whole.copy()
        damaged[at] ^= int(generator.integers(1, 256))
        copy.write_bytes(damaged)
        try:
            found = open_features(copy, manifest)
            found.verify("pooled")
        except FeatureError:
            refused += 1
            continue
        np.testing.assert_array_equal(found.pooled(every, np.zeros_like(every)), held)
        assert (found.about, found.missing) == (before.about, before.missing)
    assert refused > 100


def test_features_of_another_split(tmp_path: Path) -> None:
    config = make(tmp_path, rows_of())
    write_manifest(config.manifest, SplitManifest("drawn", CLASSES, tuple(rows_of()[::-1])))
    with pytest.raises(FeatureError, match="made for another split of 'drawn'"):
        probe(config)


def test_splits_of_which_nothing_can_be_learned_or_said(tmp_path: Path) -> None:
    for name, rows, missing, text in (
        ("one", [replace(row, label=1) for row in rows_of()], {}, "one class only, 'two'"),
        (
            "no",
            [replace(row, split="train") if row.split == "val" else row for row in rows_of()],
            {},
            "no row of it",
        ),
        (
            "lost",
            rows_of(),
            {n: "gone" for n, row in enumerate(rows_of()) if row.split == "test"},
            "all 48 rows",
        ),
    ):
        (tmp_path / name).mkdir()
        with pytest.raises(FeatureError, match=text):
            probe(make(tmp_path / name, rows, missing=missing))


def test_labels_out_of_range(tmp_path: Path) -> None:
    config = make(tmp_path, rows_of())
    text = config.manifest.read_text()
    config.manifest.write_text(text.replace('"0.mp4", 0,', '"0.mp4", 4,'))
    with pytest.raises(ManifestError, match="label 4, and there are 4 classes"):
        probe(config)


def test_an_attentive_probe_needs_tokens(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"no token features, which an attentive probe reads; .*--tokens"):
        probe(make(tmp_path, rows_of(), tokens=False))


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    config = make(tmp_path, rows_of())
    for given, text in (
        (replace(config, steps=0), "--steps is 0"),
        (replace(config, batch=-1), "--batch is -1"),
        (replace(config, lrs=(0.0,)), "--lrs"),
        (replace(config, lrs=(float("nan"),)), "--lrs"),
        (replace(config, weight_decays=(-0.1,)), "--weight-decays"),
        (replace(config, ks=(0,)), "--ks holds 0"),
        (replace(config, seeds=()), "--seeds is empty"),
        (replace(config, blocks=5), "blocks is 5"),
        (replace(config, kind="knn", save=tmp_path / "head"), "knn trains none"),
        (replace(config, save=config.manifest), "is there already, and is not overwritten"),
        (
            replace(config, kind="linear", lrs=(1e38,), weight_decays=(0.0,)),
            "every head of the grid diverged",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            probe(given)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make(tmp_path, rows_of(), missing={0: "the file is gone"})
    given = [str(config.features), "--manifest", str(config.manifest), "--out", str(config.out)]
    given += ["--device", "cpu", "--resamples", "50"]
    config.out.write_text('{"torn')
    assert main([*given, "--kind", "knn"]) == 0
    assert main([*given, "--kind", "linear", "--steps", "30", "--shots", "1"]) == 0
    printed = capsys.readouterr()
    assert "test: 48 of 48 rows, 12 groups" in printed.out
    assert "majority baseline" in printed.out
    assert "1 shots: accuracy" in printed.out
    assert "missing, train: 0.mp4: the file is gone" in printed.err
    lines = [json.loads(line) for line in config.out.read_text().splitlines()]  # the torn one is gone
    assert [line["mode"] for line in lines] == ["probe-knn", "probe-linear"]
    results = read_results(config.out)
    assert [result.trained_parameters for result in results] == [0, 4 * (WIDTH + 1)]
    for line, result in zip(lines, results, strict=True):
        assert sum(map(sum, result.confusion)) == 48
        right = sum(result.confusion[k][k] for k in range(4)) / 48
        assert right == pytest.approx(line["figures"]["accuracy"]["value"])
        assert result.versions["torch"]
        assert result.date
    given[4] = str(tmp_path)
    assert main([*given, "--kind", "knn"]) == 1
    assert f"--out {tmp_path} is a folder" in capsys.readouterr().err
    given[4] = str(config.manifest / "results.jsonl")
    assert main([*given, "--kind", "knn"]) == 1
    printed = capsys.readouterr()
    assert "test: 48 of 48 rows, 12 groups" in printed.out  # what was computed is said, though not kept
    assert "appended" not in printed.out
    given[4] = str(config.out)
    config.out.write_text("")
    assert main([*given, "--kind", "knn", "--ks", "0"]) == 1
    assert "surgrec.probe: --ks holds 0" in capsys.readouterr().err
    assert config.out.read_text() == ""
