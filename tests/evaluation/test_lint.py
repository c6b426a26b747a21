from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgrec.evaluation.baselines import baselines
from surgrec.evaluation.findings import Finding, LintOptions
from surgrec.evaluation.lint import as_json, as_record, as_text, has_errors, lint
from surgrec.evaluation.lint_size import smallest_difference, widest_half, wilson
from surgrec.evaluation.manifest import SPLITS, Row, SplitManifest
from surgrec.evaluation.repair import repair

# Large enough for what the generated test sets can show.
OPTIONS = LintOptions(difference=0.1)
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def clean(draw: st.DrawFn, clips_apart: float = 5.0) -> SplitManifest:
    """A manifest in which nothing is wrong: 2 to 5 classes, each in every split; groups of one split, each of
    one file, from which clips are cut that do not touch; 130 test clips and more."""
    classes = draw(st.integers(2, 5))
    rows = []
    for split in SPLITS:
        groups = draw(st.integers(2, 6))
        clips = draw(st.integers(max(classes, -(-130 // groups)), 80)) if split == "test" else 3 * classes
        for group in range(groups):
            first = draw(st.integers(0, classes - 1))
            for clip in range(clips):
                start = clip * (10 + clips_apart)
                # Whole numbers of classes in a row: each class is in each group.
                label = (first + clip) % classes
                rows.append(
                    Row(f"made/{split}{group}.mp4", label, split, f"{split} {group}", start, start + 10)
                )
    return SplitManifest("made", tuple(f"act{label}" for label in "abcde"[:classes]), tuple(rows))


def codes(manifest: SplitManifest, options: LintOptions = OPTIONS) -> dict[str, Finding]:
    return {finding.code: finding for finding in lint(manifest, options)}


def faults(manifest: SplitManifest) -> set[str]:
    return {code for code, finding in codes(manifest).items() if finding.severity != "info"}


@FEW
@given(clean())
def test_nothing_is_found_on_clean_splits(manifest: SplitManifest) -> None:
    found = codes(manifest)
    assert set(found) == {"groups-disjoint", "test-size", "majority"}
    assert not has_errors(found.values())


@FEW
@given(clean())
def test_clean_splits_stay_clean(manifest: SplitManifest) -> None:
    found = lint(repair(manifest).manifest)
    # Whole groups may leave too few clips for test, which is said; nothing else is wrong.
    assert {finding.code for finding in found if finding.severity == "error"} <= {"test-too-small"}


Plant = Callable[[SplitManifest, random.Random], tuple[SplitManifest, set[str]]]


def with_rows(manifest: SplitManifest, *rows: Row) -> SplitManifest:
    return replace(manifest, rows=(*manifest.rows, *rows))


def val_is_test(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    test = manifest.of("test")
    rows = (*manifest.of("train"), *(replace(row, split="val") for row in test), *test)
    return replace(manifest, rows=rows), {"val-is-test"}


def shared_group(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    test = rng.choice(manifest.of("test"))
    group = rng.choice(manifest.of("train")).group
    rows = tuple(replace(row, group=group) if row.group == test.group else row for row in manifest.rows)
    return replace(manifest, rows=rows), {"groups-in-train-and-test"}


def shared_clip(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    row = rng.choice(manifest.of("train"))
    copy = replace(row, split="test", group="new")
    return with_rows(manifest, copy), {"rows-in-train-and-test"}


def overlap(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    row = rng.choice(manifest.of("train"))
    assert row.start is not None
    copy = replace(row, split="val", group="new", start=row.start + 9, end=row.start + 12)
    return with_rows(manifest, copy), {"overlap-of-train-and-val"}


def neighbour(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    row = rng.choice(manifest.of("test"))
    assert row.start is not None
    copy = replace(row, split="val", group="new", start=row.start + 10.5, end=row.start + 13)
    return with_rows(manifest, copy), {"neighbours-of-val-and-test"}


def duplicate(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    return with_rows(manifest, rng.choice(manifest.rows)), {"duplicate-rows"}


def two_labels(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    row = rng.choice(manifest.rows)
    other = replace(row, label=(row.label + 1) % len(manifest.classes))
    return with_rows(manifest, other), {"duplicate-rows", "two-labels", "covered-by-another-label"}


def label_gap(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    return replace(manifest, classes=(*manifest.classes, "never")), {"label-gap"}


def no_train(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    label = rng.choice(range(len(manifest.classes)))
    rows = tuple(row for row in manifest.rows if (row.split, row.label) != ("train", label))
    return replace(manifest, rows=rows), {"class-missing-from-train"}


def no_test(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    # The rows stay as many as the test set needs.
    rows = tuple(
        replace(row, label=1) if (row.split, row.label) == ("test", 0) else row for row in manifest.rows
    )
    return replace(manifest, rows=rows), {"class-missing-from-test"}


def header(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    name = rng.choice(["Phase", "03_label", "severe_index"])
    return replace(manifest, classes=(name, *manifest.classes[1:])), {"header-as-class"}


def other(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    name = rng.choice(["00_other", "not_initialized", "out_of_body"])
    return replace(manifest, classes=(*manifest.classes[:-1], name)), {"no-class-as-class"}


def rest_folder(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    row = Row("made/Rest/x.mp4", 0, "train", "new")
    return with_rows(manifest, row), {"negatives-as-class"}


def covered(manifest: SplitManifest, rng: random.Random) -> tuple[SplitManifest, set[str]]:
    row = rng.choice(manifest.rows)
    assert row.start is not None
    label = (row.label + 1) % len(manifest.classes)
    inner = replace(row, label=label, start=row.start + 2, end=row.start + 6)
    return with_rows(manifest, inner), {"covered-by-another-label"}


PLANTS = [val_is_test, shared_group, shared_clip, overlap, neighbour, duplicate, two_labels, label_gap]
PLANTS += [no_train, no_test, header, other, rest_folder, covered]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(manifest=clean(), rng=st.randoms(use_true_random=False))
def test_each_planted_fault_is_found_and_no_other(
    plant: Plant, manifest: SplitManifest, rng: random.Random
) -> None:
    planted, expected = plant(manifest, rng)
    assert faults(planted) == expected
    shuffled = list(planted.rows)
    rng.shuffle(shuffled)
    again = codes(replace(planted, rows=tuple(shuffled)))
    assert {code: finding.count for code, finding in again.items()} == {
        code: finding.count for code, finding in codes(planted).items()
    }


def test_counts_severities_and_rows() -> None:
    rows = [Row(f"s/{number}.mp4", number % 2, "train", f"g{number}") for number in range(8)]
    rows += [Row(f"s/t{number}.mp4", number % 2, "test", f"g{number}") for number in range(6, 10)]
    rows += [Row("s/v.mp4", 0, "val", "v"), Row("s/v.mp4", 0, "val", "v")]
    found = codes(SplitManifest("made", ("a", "b"), tuple(rows)))
    shared = found["groups-in-train-and-test"]
    assert (shared.severity, shared.count) == ("error", 2)
    assert shared.text == "2 groups are in both train and test; they cover 2 of 4 test rows (50.0 %)"
    assert shared.rows == ("test 0 s/t6.mp4", "test 1 s/t7.mp4")
    assert found["duplicate-rows"].severity == "warning"
    assert found["class-missing-from-val"].count == 1
    assert found["test-too-small"].severity == "error"
    assert dict(found["majority"].figures) == {"accuracy": 0.5, "right": 2, "of": 4}
    assert dict(found["source-lookup"].figures) == {
        "accuracy": 0.75,
        "accuracy_of_covered": 1.0,
        "covered": 2,
        "covered_right": 2,
        "of": 4,
    }


def test_degenerate_splits() -> None:
    one_class = SplitManifest(
        "made", ("a",), tuple(Row(f"{split}.mp4", 0, split, split) for split in SPLITS for _ in range(2))
    )
    assert codes(one_class)["one-class"].severity == "error"
    only_train = SplitManifest(
        "made", ("a", "b"), (Row("x.mp4", 0, "train", "x"), Row("y.mp4", 1, "train", "y"))
    )
    found = codes(only_train)
    assert found["no-test"].severity == found["no-val"].severity == "error"
    assert "majority" not in found
    no_train = codes(replace(only_train, rows=tuple(replace(row, split="test") for row in only_train.rows)))
    assert {"no-train", "no-val", "test-too-small"} <= set(no_train)
    assert "majority" not in no_train


def test_names_against_labels() -> None:
    def row(split: str, folder: str, label: int, number: int) -> Row:
        path = f"kvasir-capsule/videos/{folder}/{number:016x}_1-81.mp4"
        return Row(path, label, split, f"{number:016x}")  # type: ignore[arg-type]

    names = ("Ileocecal valve", "blood-fresh", "foreign-body", "d", "e", "pylorus", "g")
    rows = (row("train", "pylorus", 5, 1), row("train", "foreign-body", 5, 2), row("val", "pylorus", 2, 3))
    rows += (row("test", "blood-fresh", 0, 4), Row("kvasir-capsule/videos/holiday.mp4", 1, "test", "holiday"))
    found = codes(SplitManifest("kvasir-capsule", names, rows))
    assert "foreign-body, pylorus" in found["several-names-of-a-label"].text
    assert "'pylorus' by their names have the labels 2, 5" in found["several-labels-of-a-name"].text
    assert found["unknown-name"].count == 1
    assert found["name-of-another-class"].severity == "error"


def test_spans_of_names_are_compared_within_a_video() -> None:
    def clip(split: str, exam: int, start: int, end: int, label: int = 5) -> Row:
        path = f"kvasir-capsule/videos/pylorus/{exam:016x}_{start}-{end}.mp4"
        return Row(path, label, split, f"{exam:016x}")  # type: ignore[arg-type]

    rows = (clip("train", 1, 0, 80), clip("test", 1, 79, 120), clip("test", 1, 150, 200))
    rows += (
        clip("test", 1, 300, 400),
        clip("test", 2, 0, 80),
        clip("val", 3, 0, 80),
        clip("val", 3, 10, 70, 0),
    )
    found = codes(SplitManifest("kvasir-capsule", tuple("abcdefg"), rows))
    assert found["overlap-of-train-and-test"].count == 1
    assert "neighbours-of-train-and-test" not in found
    near = codes(SplitManifest("kvasir-capsule", tuple("abcdefg"), (*rows, clip("train", 1, 100, 130))))
    assert near["neighbours-of-train-and-test"].count == 1
    assert found["covered-by-another-label"].count == 2
    unknown = codes(SplitManifest("surgicalactions160", ("a", "b"), (Row("x/a/01_1.mp4", 0, "train", "x"),)))
    assert "leaks cannot be seen" in unknown["groups-not-known"].text


def test_lookup_ties_and_uncovered_rows() -> None:
    rows = (
        Row("1.mp4", 1, "train", "g"),
        Row("2.mp4", 0, "train", "g"),
        Row("3.mp4", 1, "train", "h"),
        Row("4.mp4", 0, "test", "g"),
        Row("5.mp4", 1, "test", "new"),
        Row("6.mp4", 0, "test", "new"),
    )
    found = baselines(SplitManifest("made", ("a", "b"), rows))
    assert (found.majority_label, found.majority) == (1, 1)
    assert (found.covered, found.covered_right, found.lookup) == (1, 1, 2)
    with pytest.raises(ValueError, match="test has no rows"):
        baselines(SplitManifest("made", ("a", "b"), rows[:3]))
    with pytest.raises(ValueError, match="no majority"):
        baselines(SplitManifest("made", ("a", "b"), rows[3:]))


def test_intervals() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    for of in (2, 16, 101):
        low, high = wilson(of // 2, of)
        assert widest_half(of) >= (high - low) / 2 - 1e-12
    assert widest_half(100) == pytest.approx((wilson(50, 100)[1] - wilson(50, 100)[0]) / 2)
    assert 2 * 0.5**6 < 0.05 < 2 * 0.5**5
    assert smallest_difference(15) == 0.4


def test_reports() -> None:
    rows = tuple(Row(f"{split}.mp4", 0, split, "g") for split in SPLITS)
    manifest = SplitManifest("made", ("a", "b"), rows)
    findings = lint(manifest)
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    assert {"error", "warning", "info"} == set(severities)
    text = as_text(manifest, findings)
    assert text.startswith(f"made: 1/1/1 rows train/val/test, 2 classes, 1 groups, digest {manifest.digest}")
    (record,) = json.loads(as_json([as_record(manifest, findings)]))
    assert record["rows"] == {"train": 1, "val": 1, "test": 1}
    assert record["errors"] == sum(finding["severity"] == "error" for finding in record["findings"])
    assert record["findings"][0].keys() == {"code", "severity", "text", "count", "rows", "figures"}


def test_names_that_mean_harm_are_spelled_out() -> None:
    name = "a\x1b[2Jb\u202ec\n0 errors"
    rows = tuple(Row(f"{name.encode().hex()}\x9b{split}.mp4", 0, split, "g") for split in SPLITS)
    lines = as_text(SplitManifest("made", (name, "größer"), rows), lint(SplitManifest("made", (name,), rows)))
    assert all(line.isprintable() for line in lines.splitlines())
    assert "a\\x1b[2Jb\\u202ec\\n0 errors" in lines


@pytest.mark.parametrize(
    "options",
    [
        LintOptions(difference=0.0),
        LintOptions(difference=5),
        LintOptions(covered=0),
        LintOptions(covered=1.1),
        LintOptions(examples=-1),
        LintOptions(gap_seconds=float("nan")),
    ],
)
def test_options_without_sense(options: LintOptions) -> None:
    manifest = SplitManifest("made", ("a",), (Row("x.mp4", 0, "train", "g"),))
    with pytest.raises(ValueError, match="--"):
        lint(manifest, options)
