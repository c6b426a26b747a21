"""Paired comparison of results: against a plain bootstrap, known simulations, and what cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, f1_score

from surgrec.benchmark import main
from surgrec.evaluation.comparison import CompareError, Comparison, Side, compare
from surgrec.evaluation.intervals import draw_groups
from surgrec.evaluation.manifest import Row, SplitManifest, write_manifest
from surgrec.evaluation.results import ClassResult, Interval, Result, append_result, document_of

CLASSES = ("one", "two", "three")


def manifest_of(
    groups: int = 12, rows: int = 10, dataset: str = "films", seed: int = 0, starts: bool = False
) -> SplitManifest:
    """Some train rows, then the rows of test, group by group."""
    labels = np.random.default_rng(seed).integers(0, 3, groups * rows)
    train = [Row(f"t{k}.mp4", k % 3, "train", f"t{k}") for k in range(5)]
    test = [
        Row(
            f"{k // rows}.mp4" if starts else f"{k}.mp4",
            int(label),
            "test",
            f"g{k // rows}",
            *((float(k % rows), k % rows + 1.0) if starts else (None, None)),
        )
        for k, label in enumerate(labels)
    ]
    return SplitManifest(dataset, CLASSES, (*train, *test))


def answers(manifest: SplitManifest, skill: float, seed: int) -> dict[int, int]:
    """Of each test row the right class with a probability that differs from group to group."""
    rng = np.random.default_rng(seed)
    by_group: dict[str, float] = {}
    found = {}
    for number, row in enumerate(manifest.rows):
        if row.split == "test":
            luck = by_group.setdefault(row.group, float(np.clip(skill + rng.normal(0, 0.15), 0, 1)))
            found[number] = row.label if rng.random() < luck else int(rng.integers(0, 3))
    return found


def result_of(
    manifest: SplitManifest, said: dict[int, int], model: str = "mae", mode: str = "probe-linear", **more: Any
) -> Result:
    found = Result(
        model=model,
        dataset=manifest.dataset,
        manifest_digest=manifest.digest,
        features_digest="",
        mode=mode,
        n=len(said),
        m=len(manifest.of("test")),
        groups=1,
        figures={"accuracy": Interval(0.5)},
        baselines={"majority": {"accuracy": Interval(0.5)}},
        classes=tuple(ClassResult(name, None, None) for name in CLASSES),
        confusion=(),
        trained_parameters=None,
        options={},
        chosen={},
        date="",
        versions={},
        commit="",
        predictions=tuple(sorted(said.items())),
    )
    return replace(found, **more)


def compared(
    manifest: SplitManifest, one: dict[int, int], two: dict[int, int], resamples: int = 200
) -> Comparison:
    results = [result_of(manifest, one, "mae"), result_of(manifest, two, "jepa")]
    return compare(results, [manifest], (Side("mae", None), Side("jepa", None)), 0, resamples)


def figure(name: str, labels: NDArray[Any], said: NDArray[Any]) -> float:
    """By scikit-learn."""
    if name == "accuracy":
        return float((labels == said).mean())
    if name == "balanced_accuracy":
        return float(balanced_accuracy_score(labels, said))
    return float(f1_score(labels, said, average="macro"))


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1"])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_differences_are_those_of_a_plain_bootstrap(name: str) -> None:
    """Resamples written out row by row, figures by scikit-learn."""
    manifest = manifest_of(groups=8, rows=12)
    one, two = answers(manifest, 0.7, 1), answers(manifest, 0.5, 2)
    (found,) = compared(manifest, one, two).sets
    numbers = list(one)
    labels = np.array([manifest.rows[number].label for number in numbers])
    group = np.array([int(manifest.rows[number].group[1:]) for number in numbers])
    said = [np.array([own[number] for number in numbers]) for own in (one, two)]
    drawn = []
    for counts in draw_groups(8, 0, 200, manifest.digest):
        rows = np.concatenate(
            [np.tile(np.flatnonzero(group == number), int(counts[number])) for number in range(8)]
        ).astype(int)
        drawn.append(figure(name, labels[rows], said[0][rows]) - figure(name, labels[rows], said[1][rows]))
    difference = found.differences[name]
    assert difference.value == pytest.approx(figure(name, labels, said[0]) - figure(name, labels, said[1]))
    assert (difference.low, difference.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    below, above = np.mean(np.array(drawn) <= 0), np.mean(np.array(drawn) >= 0)
    assert difference.p == pytest.approx(min(1, max(2 * min(below, above), 1 / 200)))
    assert found.one[name] == pytest.approx(figure(name, labels, said[0]))
    assert found.two[name] == pytest.approx(figure(name, labels, said[1]))


def test_no_difference_is_found_as_rarely_as_promised() -> None:
    """300 pairs of equally good models in 30 groups: 95 % intervals miss no difference in 2 to 10 %, and p is
    below 5 % as often. docs/probes.md says how narrow they are with how many groups."""
    missed = significant = 0
    for trial in range(300):
        manifest = manifest_of(groups=30, rows=6, seed=trial)
        one, two = (answers(manifest, 0.6, 100_000 * side + trial) for side in (1, 2))
        (found,) = compared(manifest, one, two, 1000).sets
        difference = found.differences["accuracy"]
        missed += not difference.low <= 0 <= difference.high
        significant += difference.p < 0.05
    assert 6 <= missed <= 30
    assert 6 <= significant <= 30


def test_a_difference_is_found() -> None:
    manifest = manifest_of(groups=30)
    found = compared(manifest, answers(manifest, 0.9, 1), answers(manifest, 0.5, 2))
    difference = found.sets[0].differences["accuracy"]
    assert difference.low > 0.1
    assert difference.p == 1 / 200
    again = compared(manifest, answers(manifest, 0.5, 2), answers(manifest, 0.9, 1)).sets[0]
    assert again.differences["accuracy"].value == -difference.value
    assert again.differences["accuracy"].high == pytest.approx(-difference.low)


def test_the_mean_over_data_sets_is_narrower() -> None:
    """Resamples of sets are independent of each other: of k alike, the interval shrinks by the root of k."""
    manifests = [manifest_of(groups=20, dataset=f"set{k}", seed=k) for k in range(9)]
    results = [
        result_of(each, answers(each, skill, 10 * number + side), model)
        for number, each in enumerate(manifests)
        for side, (model, skill) in enumerate((("mae", 0.7), ("jepa", 0.6)))
    ]
    sides = Side("mae", None), Side("jepa", None)
    found = compare(results, manifests, sides, 0, 1000)
    difference, count = found.means["accuracy"]
    alone = [each.differences["accuracy"] for each in found.sets]
    assert count == 9
    assert difference.value == pytest.approx(np.mean([each.value for each in alone]))
    width = float(np.sqrt(np.mean([(each.high - each.low) ** 2 for each in alone])))
    assert difference.high - difference.low == pytest.approx(width / 3, rel=0.15)
    assert compare(results[:2], manifests, sides, 0, 100).means == {}


def test_only_common_rows_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_of()
    one, two = answers(manifest, 0.7, 1), answers(manifest, 0.6, 2)
    few = {row: label for row, label in one.items() if row % 7}
    less = {row: label for row, label in two.items() if row % 5}
    (found,) = compared(manifest, few, less).sets
    common = sorted(few.keys() & less.keys())
    assert (found.rows, found.of) == (len(common), 120)
    assert found.only == (len(few) - len(common), len(less) - len(common))
    same = compared(manifest, {row: one[row] for row in common}, {row: two[row] for row in common}).sets[0]
    assert (same.differences, same.only) == (found.differences, (0, 0))


def test_figures_of_videos(capsys: pytest.CaptureFixture[str]) -> None:
    """The edit score where the manifest knows the starts; never figures that need scores."""
    names = {"accuracy", "balanced_accuracy", "macro_f1", "video_accuracy", "video_jaccard"}
    for starts in (False, True):
        manifest = manifest_of(starts=starts)
        (found,) = compared(manifest, answers(manifest, 0.7, 1), answers(manifest, 0.6, 2)).sets
        assert set(found.differences) == names | ({"video_edit"} if starts else set())


def refused(results: list[Result], manifests: list[SplitManifest], *sides: Side) -> str:
    one, two = sides or (Side("mae", None), Side("jepa", None))
    with pytest.raises(CompareError) as error:
        compare(results, manifests, (one, two), 0, 10)
    return str(error.value)


def test_what_cannot_be_compared_is_said() -> None:
    manifest, other = manifest_of(), manifest_of(seed=1)
    said = answers(manifest, 0.7, 1)
    mae, jepa = result_of(manifest, said, "mae"), result_of(manifest, said, "jepa")
    assert f"jepa on {other.digest}: figures of different splits" in refused(
        [mae, result_of(other, said, "jepa")], [manifest, other]
    )
    assert f"split {manifest.digest}; give the manifest" in refused([mae, jepa], [other])
    on_both = [*(result_of(other, said, model) for model in ("mae", "jepa")), mae, jepa]
    assert "of one where there are several" in refused(on_both, [manifest, other])
    assert len(compare(on_both, [other], (Side("mae", None), Side("jepa", None)), 0, 10).sets) == 1
    assert "there is no result of vit; there are: mae (probe-linear), jepa (probe-linear)" in refused(
        [mae, jepa], [manifest], Side("vit", None), Side("jepa", None)
    )
    modes = [mae, result_of(manifest, said, "mae", "probe-knn"), jepa]
    assert "results of modes probe-linear, probe-knn; choose, --modes" in refused(modes, [manifest])
    assert compare(modes, [manifest], (Side("mae", "probe-knn"), Side("jepa", None)), 0, 10).names == (
        "mae, probe-knn",
        "jepa, probe-linear",
    )
    options = [replace(mae, options={"blocks": blocks, "seed": 0}) for blocks in (1, 4)]
    assert "several results, with other blocks" in refused([*options, jepa], [manifest])
    views = [replace(mae, sampling={"views": own}) for own in (["centre"], ["centre", "mirror"])]
    assert "several results, with other views" in refused([*views, jepa], [manifest])
    assert "has no predictions" in refused([replace(mae, predictions=()), jepa], [manifest])
    assert "no test row in common" in refused(
        [result_of(manifest, {5: 0}), result_of(manifest, {6: 0}, "jepa")], [manifest]
    )
    assert "of one group" in refused([result_of(manifest, {5: 0, 6: 1}), jepa], [manifest])
    for row in (0, 10_000):  # of train, and beyond
        assert f"row {row}, which is no test row" in refused(
            [result_of(manifest, {row: 0}), jepa], [manifest]
        )
    alone = manifest_of(dataset="alone")
    found = compare(
        [mae, jepa, result_of(alone, said, "jepa")],
        [manifest, alone],
        (Side("mae", None), Side("jepa", None)),
        0,
        10,
    )
    assert found.skipped == ("alone: there is no result of mae",)


Files = tuple[Path, Path, SplitManifest]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Results of two models, one of which lacks a row, and the manifest."""
    manifest = manifest_of(dataset="films|<b>")
    path, split = tmp_path / "results.jsonl", tmp_path / "split.json"
    write_manifest(split, manifest)
    for model, skill in (("mae", 0.8), ("jepa", 0.5)):
        said = answers(manifest, skill, len(model))
        if model == "jepa":
            said.pop(7)
        append_result(path, document_of(result_of(manifest, said, model)))
    return path, split, manifest


def test_the_command(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, split, manifest = files
    given = ["compare", str(path), "--models", "mae", "jepa", "--manifests", str(split), "--resamples", "100"]
    assert main(given) == 0
    printed = capsys.readouterr()
    assert "119 of 120  12" in printed.out
    assert "1 test rows were scored by the first alone, 0 by the second alone" in printed.err
    assert "<= 0.01" in printed.out
    assert main([*given, "--form", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (each,) = found["sets"]
    assert each["manifest_digest"] == manifest.digest
    assert each["rows"] == {"common": 119, "of": 120, "first_alone": 1, "second_alone": 0}
    accuracy = each["figures"]["accuracy"]
    assert accuracy["difference"]["value"] == pytest.approx(accuracy["first"] - accuracy["second"])
    out = tmp_path / "table.md"
    assert main([*given, "--form", "markdown", "--out", str(out)]) == 0
    assert f"{out}: 1 data sets" in capsys.readouterr().out
    lines = [line for line in out.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5
    assert "films\\|\\<b\\>" in lines[2]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda given: [*given, "--resamples", "0"], "--resamples is 0"),
        (lambda given: [*given, "--modes", "a", "b", "c"], "one for both models, or one for each"),
        (lambda given: [*given, "--modes", "probe-knn"], "no result of mae, probe-knn"),
        (lambda given: [*given[:3], "mae", "mae", *given[5:]], "mae is compared with itself"),
        (lambda given: [*given[:-1], "none.json"], "none.json: no such manifest"),
        (lambda given: ["compare", "none.jsonl", *given[2:]], "none.jsonl: cannot be read"),
    ],
)
def test_bad_options(
    files: Files, change: Callable[[list[str]], list[str]], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, split, _ = files
    given = ["compare", str(path), "--models", "mae", "jepa", "--manifests", str(split)]
    assert main(change(given)) == 1
    assert text in capsys.readouterr().err


def test_modes_of_one_model(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    path, split, manifest = files
    append_result(path, document_of(result_of(manifest, answers(manifest, 0.6, 9), "mae", "probe-knn")))
    given = ["compare", str(path), "--models", "mae", "mae", "--modes", "probe-linear", "probe-knn"]
    assert main([*given, "--manifests", str(split), "--resamples", "50"]) == 0
    assert "First: mae, probe-linear\nSecond: mae, probe-knn" in capsys.readouterr().out
