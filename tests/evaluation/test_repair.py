from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgrec.evaluation.lint import lint
from surgrec.evaluation.lint_leaks import key_of
from surgrec.evaluation.manifest import SPLITS, Row, SplitManifest
from surgrec.evaluation.repair import RepairError, repair
from surgrec.evaluation.stratify import allowed, misses, stratify

FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def grouped(draw: st.DrawFn) -> SplitManifest:
    """Whole files in 3 to 12 groups of any size, with labels and splits that mean nothing."""
    classes = draw(st.integers(2, 4))
    groups = draw(st.integers(3, 12))
    rows = []
    for group in range(groups):
        for clip in range(draw(st.integers(1, 9))):
            label = draw(st.integers(0, classes - 1))
            split = draw(st.sampled_from(SPLITS))
            rows.append(Row(f"made/{group}/{clip}.mp4", label, split, f"group {group}"))
    rows[0:2] = [
        Row("made/x.mp4", 0, "train", "group 0"),
        Row("made/y.mp4", 1, "test", "group 1"),
    ]
    return SplitManifest("made", tuple(f"act{label}" for label in "abcd"[:classes]), tuple(rows))


def files(count: int, classes: int, per_group: int = 1) -> SplitManifest:
    """Whole files: label i % classes, i // per_group their group, all in train."""
    rows = tuple(
        Row(f"made/{number:04}.mp4", number % classes, "train", f"g{number // per_group:04}")
        for number in range(count)
    )
    return SplitManifest("made", tuple(f"act{label}" for label in range(classes)), rows)


def held(manifest: SplitManifest) -> np.ndarray:
    counts = np.zeros((len(SPLITS), len(manifest.classes)), np.int64)
    for row in manifest.rows:
        counts[SPLITS.index(row.split), row.label] += 1
    return counts


@FEW
@given(grouped(), st.randoms(use_true_random=False), st.integers(0, 3))
def test_no_group_is_shared_in_any_order(manifest: SplitManifest, rng: random.Random, seed: int) -> None:
    repaired = repair(manifest, seed=seed)
    splits: dict[str, set[str]] = {}
    for row in repaired.manifest.rows:
        splits.setdefault(row.group, set()).add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {row.split for row in repaired.manifest.rows} == set(SPLITS)
    assert sorted((row.path, row.label, row.group) for row in repaired.manifest.rows) == sorted(
        {(row.path, row.label, row.group) for row in manifest.rows}
    )
    assert not [finding for finding in lint(repaired.manifest) if "-in-" in finding.code]
    rows = list(manifest.rows)
    rng.shuffle(rows)
    again = repair(replace(manifest, rows=tuple(rows)), seed=seed)
    assert again.manifest.rows == repaired.manifest.rows
    assert again.manifest.digest == repaired.manifest.digest
    # What misses its share is said, and nothing else.
    off = misses(held(repaired.manifest))
    assert {(miss.split, miss.name) for miss in repaired.misses} == {
        (SPLITS[split], manifest.classes[label]) for split, label in np.argwhere(off).tolist()
    }
    said = [rule for rule in repaired.manifest.rules if rule.startswith("not within 10 %")]
    assert len(said) == len(repaired.misses)


@FEW
@given(st.integers(40, 200), st.integers(2, 5), st.integers(1, 2), st.integers(0, 5))
def test_shares_are_met_where_groups_allow_it(count: int, classes: int, per_group: int, seed: int) -> None:
    repaired = repair(files(count, classes, per_group), seed=seed)
    assert repaired.misses == ()
    counts = held(repaired.manifest)
    shares = counts.sum(0) / counts.sum()
    for split in counts:
        off = np.abs(split - split.sum() * shares)
        assert (off <= np.maximum(1, 0.1 * split.sum() * shares) + 1e-9).all()
    assert np.abs(counts.sum(1) / counts.sum() - [0.7, 0.15, 0.15]).max() < 0.06


def test_the_digest_is_the_same_on_every_machine() -> None:
    # Pinned: results name it. Change METHOD, and these, when groups are chosen in another way.
    rows = tuple(
        Row(f"made/{number}.mp4", min(number * number % 11, 3), "train", f"g{number * 31 % 41}")
        for number in range(300)
    )
    manifest = SplitManifest("made", ("a", "b", "c", "d"), rows)
    assert repair(manifest).manifest.digest == "21ae754538e4e130947e0437548a898a"
    assert repair(manifest, (8, 1, 1), seed=7).manifest.digest == "312d57dc4f047a2f927feba530ba2d40"


def test_classes_in_few_groups_go_to_train_and_test() -> None:
    rows = list(files(60, 2).rows)
    rows += [Row(f"made/x{number}.mp4", 2, "test", f"x{number // 30}") for number in range(40)]
    repaired = repair(SplitManifest("made", ("a", "b", "rare"), tuple(rows)))
    counts = Counter(row.split for row in repaired.manifest.rows if row.label == 2)
    assert counts == {"train": 30, "test": 10}
    missed = [miss for miss in repaired.misses if miss.name == "rare"]
    assert {(miss.split, miss.clips, miss.groups) for miss in missed} >= {("val", 0, 2)}
    assert any("rare has 0 of" in rule for rule in repaired.manifest.rules)


def fewest_missed(counts: np.ndarray, parts: tuple[int, ...]) -> int | None:
    """By looking at all divisions of the groups: how few classes miss their share where every split has
    every class, and a size within 10 % of its part. None where there is no such division."""
    groups = len(counts)
    splits = np.indices((3,) * groups, dtype=np.int8).reshape(groups, -1)
    held = np.stack([(splits == split).T.astype(np.int64) @ counts for split in range(3)], 1)
    sizes, everything = held.sum(2), counts.sum()
    wanted = np.array(parts) / sum(parts) * everything
    held = held[(held > 0).all((1, 2)) & (np.abs(sizes - wanted) <= 0.1 * wanted).all(1)]
    if not len(held):
        return None
    share = held.sum(2)[:, :, None] * counts.sum(0) / everything
    off = np.abs(held - share) > np.maximum(1, 0.1 * share) + 1e-9
    return int(off.any(1).sum(1).min())


def test_shares_are_met_where_some_division_meets_them() -> None:
    rng = np.random.default_rng(20261129)
    parts, met = (50, 25, 25), 0
    for _ in range(300):
        shape = int(rng.integers(5, 11)), int(rng.integers(2, 5))
        counts = rng.integers(0, rng.choice([3, 10, 40]), shape) * (rng.random(shape) < 0.8)
        if fewest_missed(counts, parts) != 0:
            continue
        met += 1
        chosen = stratify([f"g{number}" for number in range(len(counts))], counts, parts, 0)
        found = np.stack([counts[chosen == split].sum(0) for split in range(3)])
        assert not misses(found).any(), counts.tolist()
    assert met > 30


def test_large_groups_of_two_classes_cost_no_more_shares_than_they_must() -> None:
    # As in Kvasir-Capsule: `a` and `b` are nearly all in one group each, which fill train.
    # Val and test have little but the other two, so that one of these is above its share; one need not be.
    rows = [(70, 0, 0, 0), (1, 0, 1, 0), (0, 40, 0, 0), (0, 1, 0, 1)]
    rows += [(0, 0, number % 3 + 1, (number + 1) % 3) for number in range(80)]
    counts = np.array(rows, np.int64)
    chosen = stratify([f"g{number}" for number in range(len(counts))], counts, (70, 15, 15), 0)
    found = np.stack([counts[chosen == split].sum(0) for split in range(3)])
    assert misses(found).any(0).tolist() == [True, True, True, False]
    assert chosen[0] == chosen[2] == 0
    assert found.sum(1)[1:].min() > 0.08 * counts.sum()


def test_what_groups_allow() -> None:
    parts = np.array([70, 15, 15])
    assert allowed(np.array([70, 15, 15]), parts)
    assert allowed(np.array([66, 17, 17]), parts)
    assert not allowed(np.array([40, 30, 30]), parts)
    assert not allowed(np.array([139, 1]), parts)
    assert not allowed(np.array([300, *[1] * 20]), parts)
    assert allowed(np.ones(20, np.int64), parts)


def test_too_many_clips_or_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="2,001 classes; splits of 1,000,000 clips and 2,000 classes"):
        stratify(["a"], np.ones((1, 2001), np.int64), (70, 15, 15), 0)


def test_groups_are_put_elsewhere_where_shares_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    large = [8 if g % 5 == 0 else 1 for g in range(16)]
    counts = np.array(
        [[(3 * g * g + c * (g + 3)) % 4 * large[g] for c in range(4)] for g in range(16)], np.int64
    )

    def off() -> int:
        chosen = stratify([f"g{number}" for number in range(16)], counts, (70, 15, 15), 0)
        return int(misses(np.stack([counts[chosen == split].sum(0) for split in range(3)])).sum())

    assert off() == 0
    # Moves and swaps that lower the cost are not enough here.
    monkeypatch.setattr("surgrec.evaluation.stratify.KICKS", 0)
    assert off() > 0


def test_three_groups_that_must_change_places() -> None:
    # One group holds a clip of two classes, two others all the rest of these.
    counts = np.array([[1, 1, 0], [40, 0, 0], [0, 30, 0], *[[0, 0, 1]] * 12], np.int64)
    chosen = stratify([f"g{number}" for number in range(len(counts))], counts, (70, 15, 15), 0)
    assert chosen[0] == 2
    assert chosen[1] == chosen[2] == 0


def test_what_is_left_out_is_said() -> None:
    manifest = files(30, 3)
    again = replace(manifest.rows[0], split="test")
    torn = replace(manifest.rows[1], label=0, split="test")
    repaired = repair(replace(manifest, rows=(*manifest.rows, again, torn), rules=("made by hand",)))
    assert len(repaired.manifest.rows) == 29
    assert repaired.manifest.rules[1:4] == (
        "made by hand",
        "1 clips with more than one label left out: made/0001.mp4",
        "1 rows that repeat a clip left out",
    )
    fewer = repair(manifest, drop_classes=["act1"])
    assert fewer.manifest.classes == ("act0", "act2")
    assert Counter(row.label for row in fewer.manifest.rows) == {0: 10, 1: 10}
    assert "classes dropped, and the others numbered anew: act1" in fewer.manifest.rules


def test_groups_of_one_video_are_joined() -> None:
    rows = list(files(40, 2).rows)
    # Two groups cut from one file, and a chain: h shares files with both i and j.
    rows += [Row("made/cut.mp4", 0, "train", "left", 0, 10), Row("made/cut.mp4", 1, "test", "right", 10, 20)]
    repaired = repair(replace(files(40, 2), rows=tuple(rows)))
    cut = [row for row in repaired.manifest.rows if row.path == "made/cut.mp4"]
    assert len({row.split for row in cut}) == 1
    assert {row.group for row in cut} == {"left"}
    assert "1 groups joined to others with which they share a video" in repaired.manifest.rules


def test_covered_clips_are_left_out_if_asked() -> None:
    def clip(start: int, end: int, name: str, label: int, exam: int) -> Row:
        path = f"kvasir-capsule/videos/{name}/{exam:016x}_{start}-{end}.mp4"
        return Row(path, label, "train", f"{exam:016x}")

    rows = [clip(0, 80, name, label, exam) for exam in range(30) for name, label in (("b", exam % 2),)]
    rows += [clip(100, 200, "b", 0, 40), clip(120, 150, "b", 1, 40)]
    manifest = SplitManifest("kvasir-capsule", ("b", "c"), tuple(rows))
    assert len(repair(manifest).manifest.rows) == 32
    repaired = repair(manifest, drop_covered=True)
    assert {key_of(row)[0] for row in rows} - {row.path for row in repaired.manifest.rows} == {rows[-1].path}
    assert any(rule.startswith("1 clips left out of which half") for rule in repaired.manifest.rules)


@pytest.mark.parametrize(
    ("manifest", "options", "message"),
    [
        (files(30, 2), {"parts": (70, 30, 0)}, "three whole numbers from 1 on"),
        (files(30, 2), {"parts": (700, 150, 150)}, "at most 100 together"),
        (files(30, 2), {"drop_classes": ["none"]}, "no such class; they are act0, act1"),
        (files(30, 2), {"drop_classes": ["act0"]}, "fewer than two classes"),
        (files(30, 1), {}, "nothing to tell apart"),
        (files(30, 2, 15), {}, "2 groups, and train, val and test need one each"),
    ],
)
def test_what_cannot_be_repaired(manifest: SplitManifest, options: dict[str, object], message: str) -> None:
    with pytest.raises(RepairError, match=message):
        repair(manifest, **options)  # type: ignore[arg-type]


def test_clips_that_all_have_two_labels() -> None:
    manifest = files(6, 2)
    rows = (*manifest.rows, *(replace(row, label=1 - row.label) for row in manifest.rows))
    with pytest.raises(RepairError, match="no clip has one label only"):
        repair(replace(manifest, rows=rows))


def test_three_groups_are_enough() -> None:
    counts = held(repair(files(9, 2, 3)).manifest)
    assert (counts.sum(1) == 3).all()
