"""Figures against scikit-learn and by hand, and their intervals against simulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from surgrec.evaluation import intervals
from surgrec.evaluation.baseline_answers import as_scores, lookup
from surgrec.evaluation.baselines import majority_label
from surgrec.evaluation.intervals import draw_groups, evaluate, figures_of, interval, paired_differences
from surgrec.evaluation.manifest import Row, SplitManifest
from surgrec.evaluation.metrics import (
    Answers,
    auroc,
    class_figures,
    confusion,
    edit_score,
    top_k,
    video_figures,
)
from surgrec.evaluation.outcome import times_of
from surgrec.evaluation.parts import Part


def drawn(n: int = 300, classes: int = 8, groups: int = 30, seed: int = 0, skill: float = 1.0) -> Answers:
    """Scores with ties; class 7 never occurs."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes - 1, n)
    scores = generator.normal(size=(n, classes)) + skill * np.eye(classes)[labels]
    numbers = np.unique(generator.integers(0, groups, n), return_inverse=True)[1]
    return Answers(labels, np.round(scores, 1), numbers)


def repeated(answers: Answers, counts: np.ndarray) -> Answers:
    """The rows as a resample holds them, written out."""
    rows = np.concatenate(
        [np.flatnonzero(answers.groups == group).repeat(1) for group in np.repeat(range(len(counts)), counts)]
    )
    copies = np.unique(answers.groups[rows], return_inverse=True)[1]
    return Answers(answers.labels[rows], answers.scores[rows], copies)


def by_sklearn(answers: Answers) -> dict[str, Any]:
    labels, said, scores = answers.labels, answers.predicted, answers.scores
    with np.errstate(all="ignore"):
        recall = sk.recall_score(labels, said, labels=range(8), average=None, zero_division=np.nan)
    areas = [sk.roc_auc_score(labels == c, scores[:, c]) for c in np.unique(labels)]
    return {
        "accuracy": sk.accuracy_score(labels, said),
        "balanced_accuracy": np.nanmean(recall),
        "macro_f1": sk.f1_score(labels, said, average="macro"),
        "recall": recall,
        "auroc": np.mean(areas),
    }


def test_figures_of_resamples_are_those_of_scikit_learn() -> None:
    answers = drawn()
    weights = np.vstack([np.ones((1, answers.group_count)), draw_groups(answers.group_count, 0, 5)])
    found = figures_of(answers, weights)
    for at, counts in enumerate(weights.astype(int)):
        expected = by_sklearn(repeated(answers, counts))
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][at], value, atol=1e-12, err_msg=name)
    assert np.isnan(found["class_auroc"][:, 7]).all()


def test_top_5_counts_equal_scores_in_order() -> None:
    answers = drawn()
    ones = np.ones((1, answers.group_count))
    untied = Answers(answers.labels, answers.scores - 1e-6 * np.arange(8), answers.groups)
    expected = sk.top_k_accuracy_score(untied.labels, untied.scores, k=5, labels=range(8))
    assert top_k(answers, ones)[0] == pytest.approx(expected)
    flat = Answers(np.array([0, 4, 5, 6]), np.zeros((4, 8)), np.zeros(4, np.int64))
    assert top_k(flat, np.ones((1, 1)))[0] == 0.5


def test_auroc_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.5, 0.5], [0.5, 0.5], [0.2, 0.8]])
    answers = Answers(np.array([0, 0, 1, 1]), scores, np.arange(4))
    np.testing.assert_allclose(auroc(answers, np.ones((1, 4)))[0], [0.875, 0.875])
    assert np.isnan(auroc(answers, np.array([[1.0, 1.0, 0.0, 0.0]]))).all()


def test_figures_of_videos_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, 0, 0])
    said = np.array([0, 1, 1, 1, 2, 2, 1, 1])
    groups = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    answers = Answers(labels, as_scores(said, 3), groups)
    found = video_figures(answers, np.arange(8.0))
    np.testing.assert_allclose(found["video_accuracy"], [5 / 6, 0])
    np.testing.assert_allclose(found["video_jaccard"], [(1 / 2 + 2 / 3 + 1) / 3, 0])
    np.testing.assert_allclose(found["video_edit"], [1, 0])
    assert "video_edit" not in video_figures(answers, None)
    # Rows may come in any order: time orders them.
    order = np.array([5, 0, 3, 7, 1, 6, 2, 4])
    mixed = Answers(labels[order], as_scores(said[order], 3), groups[order])
    np.testing.assert_allclose(video_figures(mixed, order.astype(float))["video_edit"], [1, 0])


def test_starts_of_names_order_rows_in_time() -> None:
    """Clips that are files of their own: of a set of the registry their names tell when they were."""
    names = (
        "case_1/case_1_segment_03_incision_100.000-120.000",
        "case_1/case_1_segment_02_viscoelastic_022.100-030.283",
        "case_2/case_2_segment_01_incision_001.000-002.000",
        "case_1/case_1_segment_01_incision_003.000-022.100",
    )
    rows = tuple(
        Row(f"cataract-1k-phase/split_video/{name}.mp4", k % 2, "test", name[:6])
        for k, name in enumerate(names)
    )
    part = Part(np.arange(4), np.zeros(4, np.int64), np.array([0, 0, 1, 0]), 4, ())

    def times(rows: tuple[Row, ...], dataset: str = "cataract-1k") -> list[float] | None:
        found = times_of(SplitManifest(dataset, ("a", "b"), rows), part)
        return None if found is None else found.tolist()

    assert times(rows) == [2, 1, 3, 0]
    assert times(rows, "films") is None
    assert times((*rows[:3], replace(rows[3], path="cataract-1k-phase/split_video/unknown.mp4"))) is None
    # What the manifest says goes first: the rows of a file follow its path and their starts.
    assert times(tuple(replace(row, path="film.mp4", start=9.0 - k) for k, row in enumerate(rows))) == [
        *(3, 2, 1, 0)
    ]


def test_edit_score_by_hand() -> None:
    assert edit_score([0, 0, 1, 2, 2], [0, 1, 1, 1, 2]) == 1
    assert edit_score([0, 1, 2], [0, 2]) == pytest.approx(2 / 3)
    assert edit_score([0], [0, 1, 0, 1]) == pytest.approx(1 / 4)
    assert edit_score([0, 1], [2, 3]) == 0


def test_confusion_is_scikit_learns() -> None:
    answers = drawn()
    expected = sk.confusion_matrix(answers.labels, answers.predicted, labels=range(8))
    np.testing.assert_array_equal(confusion(answers.labels, answers.predicted, 8), expected)


def test_absent_classes_are_named() -> None:
    found = evaluate(drawn(), resamples=50)
    assert found.recall[7] is None
    assert found.class_auroc[7] is None
    assert all(figure is not None for figure in found.recall[:7])
    only = Answers(np.zeros(4, np.int64), as_scores(np.array([0, 0, 1, 0]), 2), np.arange(4))
    one_class = evaluate(only, resamples=50)
    assert "auroc" not in one_class.figures
    assert one_class.figures["accuracy"].value == 0.75


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Groups differ in difficulty; 95 % intervals of 40 groups must hold the true accuracy 95 times in 100.

    Of 300 simulations 285 are expected. Intervals over rows, as if these were independent, hold it far less
    often.
    """
    generator = np.random.default_rng(7)
    held = by_rows = 0
    for simulation in range(300):
        ease = generator.beta(1.4, 0.6, size=40)
        groups = np.repeat(np.arange(40), 15)
        right = generator.random(600) < ease[groups]
        answers = Answers(np.zeros(600, np.int64), as_scores(np.where(right, 0, 1), 2), groups)
        low, high = interval(class_figures(answers, draw_groups(40, simulation, 300))["accuracy"]) or (2, 2)
        held += low <= 0.7 <= high
        single = Answers(answers.labels, answers.scores, np.arange(600))
        low, high = interval(class_figures(single, draw_groups(600, simulation, 300))["accuracy"]) or (2, 2)
        by_rows += low <= 0.7 <= high
    assert 265 <= held <= 294
    assert by_rows < 220


def test_one_group_has_no_interval() -> None:
    answers = Answers(np.array([0, 1]), np.eye(2), np.zeros(2, np.int64))
    figure = evaluate(answers).figures["accuracy"]
    assert (figure.value, figure.low, figure.high) == (1.0, None, None)
    with pytest.raises(ValueError, match="one group"):
        paired_differences(answers, answers)


def test_paired_differences_are_narrower_than_the_intervals() -> None:
    one = drawn(skill=2.0)
    worse = one.scores.copy()
    worse[:30] = drawn(seed=9, skill=0.0).scores[:30]
    two = Answers(one.labels, worse, one.groups)
    found = paired_differences(one, two)
    single = evaluate(one).figures["accuracy"]
    assert single.low is not None
    assert single.high is not None
    assert found["accuracy"].low > 0
    assert found["accuracy"].p == pytest.approx(1 / 1000)
    assert found["accuracy"].high - found["accuracy"].low < single.high - single.low
    same = paired_differences(one, one)["accuracy"]
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    other = Answers((one.labels + 1) % 7, one.scores, one.groups)
    with pytest.raises(ValueError, match="the same test rows"):
        paired_differences(one, other)


def test_intervals_follow_from_the_seed() -> None:
    answers = drawn()
    assert evaluate(answers, 1, resamples=50) == evaluate(answers, 1, resamples=50)
    assert evaluate(answers, 1, resamples=50) != evaluate(answers, 2, resamples=50)


def test_baselines_by_hand() -> None:
    train = [
        Row("a", 1, "train", "x"),
        Row("b", 1, "train", "y"),
        Row("c", 0, "train", "y"),
        Row("d", 0, "train", "y"),
        Row("e", 2, "train", "z"),
    ]
    assert majority_label(train) == 0
    test = [Row("f", 1, "test", "x"), Row("g", 2, "test", "z"), Row("h", 1, "test", "new")]
    answers, known = lookup(train, test)
    assert answers.tolist() == [1, 2, 0]
    assert known.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("labels", "scores", "groups", "text"),
    [
        ([0, 2], np.zeros((2, 2)), [0, 0], "labels 0 to 2 for scores of 2 classes"),
        ([-1, 0], np.zeros((2, 2)), [0, 0], "labels -1 to 0"),
        ([0, 1], np.array([[0, np.nan], [0, 1]]), [0, 0], "not finite"),
        ([0, 1], np.zeros((2, 2)), [0, 2], "groups are not numbered"),
        ([0], np.zeros((2, 2)), [0, 0], "2 rows of scores, 1 labels"),
        ([], np.zeros((0, 2)), [], "at least one"),
    ],
)
def test_answers_that_make_no_sense(labels: list[int], scores: Any, groups: list[int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Answers(np.array(labels, np.int64), scores, np.array(groups, np.int64))


@pytest.mark.parametrize("held", [1, 45, 1000])
def test_resamples_in_blocks_are_those_of_one(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, and no draw hangs on the bound."""
    generator = np.random.default_rng(3)
    scores = generator.dirichlet(np.ones(3), 60)
    answers = Answers(generator.integers(3, size=60), scores, np.repeat(np.arange(20), 3))
    drawn, whole = draw_groups(20, 5, 30), evaluate(answers, 5, None, 30)
    monkeypatch.setattr(intervals, "HELD", held)
    assert np.array_equal(draw_groups(20, 5, 30), drawn)
    found = evaluate(answers, 5, None, 30)
    for name, figure in whole.figures.items():
        assert found.figures[name].plain() == pytest.approx(figure.plain(), abs=1e-12)
