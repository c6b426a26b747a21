"""Measures against plain Python, and on answerers of whom it is known what they should be."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgrec.evaluation.manifest import Row, SplitManifest
from surgrec.evaluation.metrics import Ints
from surgrec.vision_language.grid import (
    UNPARSED,
    Grid,
    ScoreError,
    check_questions,
    make_grid,
    reader_of_likelihoods,
    reader_of_text,
)
from surgrec.vision_language.likelihoods import chosen, shares_of
from surgrec.vision_language.measures import (
    BINS,
    class_recall,
    grid_figures,
    position_test,
    with_intervals,
)
from surgrec.vision_language.prompts import load_prompts, questions
from surgrec.vision_language.records import Asked, Question, Reply

CLASSES = ("left", "right", "up", "down")


def made(draw: random.Random, n: int, P: int, K: int, C: int, shares: bool = True) -> tuple[Grid, Ints, Ints]:
    orders = np.array([[draw.sample(range(C), C) for _ in range(K)] for _ in range(n)])
    said = np.array([[[draw.randrange(-1, C) for _ in range(K)] for _ in range(P)] for _ in range(n)])
    values = np.array([draw.random() + 0.01 for _ in range(n * P * K * C)]).reshape(n, P, K, C)
    values /= values.sum(-1, keepdims=True)
    labels = np.array([draw.randrange(C) for _ in range(n)])
    groups = np.unique([draw.randrange(max(1, n // 2)) for _ in range(n)], return_inverse=True)[1]
    names = tuple(f"p{k}" for k in range(P))
    grid = Grid(names, np.arange(n), orders, said, values if shares else None, {}, {})
    return grid, labels, groups


def by_hand(grid: Grid, labels: Ints, rows: list[int]) -> dict[str, float]:
    """The figures over some rows, which may repeat, in loops."""
    _, P, K = grid.said.shape
    said, truth = grid.said.tolist(), labels.tolist()
    answers = [(n, p, k, said[n][p][k]) for n in rows for p in range(P) for k in range(K)]
    right = [label == truth[n] for n, _, _, label in answers]
    parsed = [label != UNPARSED for *_, label in answers]
    found = {
        "accuracy": mean(right),
        "accuracy_parsed": sum(right) / sum(parsed) if any(parsed) else math.nan,
        "parse_failure_rate": 1 - mean(parsed),
    }
    if P > 1:
        each = [mean(said[n][p][k] == truth[n] for n in rows for k in range(K)) for p in range(P)]
        pairs = list(itertools.combinations(range(P), 2))
        found |= {
            "prompt_min": min(each),
            "prompt_max": max(each),
            "prompt_sd": stdev(each),
            "flip_rate": mean(
                said[n][a][k] != said[n][b][k] for n in rows for k in range(K) for a, b in pairs
            ),
        }
    if K > 1:
        pairs = list(itertools.combinations(range(K), 2))
        found["order_consistency"] = mean(
            said[n][p][a] == said[n][p][b] for n in rows for p in range(P) for a, b in pairs
        )
    orders = [[tuple(order) for order in own] for own in grid.orders.tolist()]
    if len({order for own in orders for order in own}) > 1:
        named = [(orders[n][k], label) for n, _, k, label in answers if label != UNPARSED]
        rate = Counter(label for _, label in named)
        at: dict[int, float] = defaultdict(float)
        for order, label in named:
            at[order.index(label)] += 1
            for position, shown in enumerate(order):
                at[position] -= rate[shown] / len(named)
        found["position_bias"] = sum(map(abs, at.values())) / 2 / len(named) if named else math.nan
    if grid.shares is not None:
        bins: dict[int, list[float]] = defaultdict(list)
        for n, p, k, label in answers:
            confidence = max(grid.shares[n, p, k].tolist())
            bins[min(BINS - 1, int(confidence * BINS))].append(float(label == truth[n]) - confidence)
        found["ece"] = sum(abs(sum(own)) for own in bins.values()) / len(answers)
    return found


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    P=st.integers(1, 4),
    K=st.integers(1, 3),
    C=st.integers(2, 5),
    seed=st.integers(0, 2**31),
    shares=st.booleans(),
)
def test_figures_by_hand(n: int, P: int, K: int, C: int, seed: int, shares: bool) -> None:
    draw = random.Random(seed)
    grid, labels, groups = made(draw, n, P, K, C, shares)
    count = int(groups.max()) + 1
    weights = np.array([[draw.randrange(3) for _ in range(count)] for _ in range(4)], np.float64)
    weights[0] = 1
    weights[:, 0] += weights.sum(1) == 0
    found = grid_figures(grid, labels, groups, weights)
    for r, own in enumerate(weights):
        rows = [row for row in range(n) for _ in range(int(own[groups[row]]))]
        expected = by_hand(grid, labels, rows)
        # Whether positions can be told from classes is asked of the test set as it is, not of a resample.
        for name in expected.keys() & found.keys():
            assert found[name][r] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), name
        if r == 0:
            assert found.keys() == expected.keys()


def test_intervals_hold_the_middle_of_the_resamples_of_groups() -> None:
    grid, labels, groups = made(random.Random(3), 60, 3, 2, 4)
    found = with_intervals(grid, labels, groups, 0, 200)
    for name, figure in found.items():
        assert figure.low is not None, name
        assert figure.high is not None
        assert 0 <= figure.low <= figure.high <= 1
    assert found["accuracy"].low <= found["accuracy"].value <= found["accuracy"].high  # type: ignore[operator]
    assert found == with_intervals(grid, labels, groups, 0, 200)
    one = with_intervals(grid, labels, np.zeros(60, np.int64), 0, 200)
    assert one["accuracy"].low is None
    assert one["accuracy"].value == found["accuracy"].value


def manifest(rows: int = 48) -> SplitManifest:
    split = tuple(Row(f"{k}.mp4", k % 4, "test", f"g{k // 4}") for k in range(rows))
    return SplitManifest("moving-digits-motion", CLASSES, split)


def answered(answer: Any, permutations: int = 4, way: Any = "generate", grey: bool = False) -> list[Asked]:
    """The default prompts on the manifest, answered by answer(question) -> text or Reply."""
    asked = []
    for question in questions(
        load_prompts("default"), manifest(), range(48), permutations=permutations, seed=0, content_free=grey
    ):
        said = answer(question)
        asked.append(Asked(question, way, Reply(said) if isinstance(said, str) else said))
    return asked


def label_of(question: Question) -> int:
    assert question.row is not None
    return question.row % 4


def letter(question: Question, label: int) -> str:
    return question.targets[question.order.index(label)]


def figures(asked: list[Asked]) -> tuple[dict[str, float], Grid]:
    split = manifest()
    check_questions(asked, load_prompts("default"), split)
    grid = make_grid(asked, range(48), 4, reader_of_text(load_prompts("default"), split))
    labels, groups = np.arange(48) % 4, np.arange(48) // 4
    values = grid_figures(grid, labels, groups, np.ones((1, 12)))
    return {name: float(value[0]) for name, value in values.items()}, grid


def test_an_oracle() -> None:
    found, grid = figures(answered(lambda question: f"The answer is {letter(question, label_of(question))}."))
    assert found == pytest.approx(
        {
            "accuracy": 1,
            "accuracy_parsed": 1,
            "parse_failure_rate": 0,
            "prompt_min": 1,
            "prompt_max": 1,
            "prompt_sd": 0,
            "flip_rate": 0,
            "order_consistency": 1,
            "position_bias": 0,
        }
    )
    test = position_test(grid, 0, 200)
    # With as many orders as classes, each class stands at each position once.
    assert (test.chosen, test.statistic, test.p) == ((576,) * 4, 0.0, 1.0)
    assert class_recall(grid, np.arange(48) % 4, 4) == [1.0] * 4


def test_one_who_always_says_the_same_class() -> None:
    found, grid = figures(answered(lambda question: "up"))
    assert found == pytest.approx(
        {
            "accuracy": 1 / 4,
            "accuracy_parsed": 1 / 4,
            "parse_failure_rate": 0,
            "prompt_min": 1 / 4,
            "prompt_max": 1 / 4,
            "prompt_sd": 0,
            "flip_rate": 0,
            "order_consistency": 1,
            "position_bias": 0,
        }
    )
    assert position_test(grid, 0, 200).p == 1
    assert class_recall(grid, np.arange(48) % 4, 4) == [0, 0, 1, 0]


def test_one_who_always_says_the_same_letter() -> None:
    found, grid = figures(answered(lambda question: "B"))
    assert found == pytest.approx(
        {
            "accuracy": 1 / 4,
            "accuracy_parsed": 1 / 4,
            "parse_failure_rate": 0,
            "prompt_min": 1 / 4,
            "prompt_max": 1 / 4,
            "prompt_sd": 0,
            "flip_rate": 0,
            "order_consistency": 0,
            "position_bias": 3 / 4,
        }
    )
    test = position_test(grid, 0, 200)
    assert test.chosen == (0, 48 * 12 * 4, 0, 0)
    assert test.expected == pytest.approx((576,) * 4)
    assert test.statistic == pytest.approx(3 * 576 + 3 * 576 * 3)


def test_the_test_of_positions_finds_a_preference_and_no_other() -> None:
    """Right for half of the clips, a guess of the first position else; and a guess of a class else."""
    draw = random.Random(1)
    guess = {row: draw.randrange(4) for row in range(48)}

    def at_first(question: Question) -> str:
        return letter(question, label_of(question)) if label_of(question) < 2 else question.targets[0]

    def of_class(question: Question) -> str:
        assert question.row is not None
        return letter(question, label_of(question) if label_of(question) < 2 else guess[question.row])

    biased, honest = (figures(answered(answer, permutations=1))[1] for answer in (at_first, of_class))
    assert (position_test(biased, 0, 500).p or 1) < 0.02
    assert (position_test(honest, 0, 500).p or 0) > 0.05


def test_the_p_value_is_uniform_for_answers_that_ignore_positions() -> None:
    ps = []
    for seed in range(60):
        draw = random.Random(seed)
        said = {row: draw.randrange(4) for row in range(48)}
        grid = figures(answered(lambda q, said=said: letter(q, said[q.row]), permutations=1))[1]
        orders = np.array([[draw.sample(range(4), 4)] for _ in range(48)])
        own = Grid(grid.prompts, grid.rows, orders, grid.said, None, {}, {})
        ps.append(position_test(own, seed, 99).p or 0)
    assert 0.35 < mean(ps) < 0.65
    assert sum(p <= 0.1 for p in ps) <= 13


def test_positions_are_not_tested_where_all_clips_had_one_order() -> None:
    split = manifest()
    prompts = load_prompts("release")
    asked = [
        Asked(question, "generate", Reply("B"))
        for question in questions(prompts, split, range(48), permutations=1, seed=0, content_free=False)
    ]
    grid = make_grid(asked, range(48), 4, reader_of_text(prompts, split))
    assert position_test(grid, 0, 10).p is None
    assert "position_bias" not in grid_figures(grid, np.arange(48) % 4, np.arange(48), np.ones((1, 48)))


def test_the_content_free_answer_takes_a_preference_away() -> None:
    """A model that knows the class, and likes the first position more: only the prior shows what it knows."""

    def likelihoods(question: Question) -> Reply:
        values = [-6.0] * 4
        values[0] = -1.0
        if question.row is not None:
            values[question.order.index(label_of(question))] += 2.0
        return Reply("", tuple(values), (1,) * 4)

    asked = answered(likelihoods, way="options", grey=True)
    accuracy, bias = {}, {}
    for rule in ("sum", "length", "prior"):
        grid = make_grid(asked, range(48), 4, reader_of_likelihoods(asked, rule))  # type: ignore[arg-type]
        found = grid_figures(grid, np.arange(48) % 4, np.arange(48), np.ones((1, 48)))
        accuracy[rule], bias[rule] = float(found["accuracy"][0]), float(found["position_bias"][0])
        assert grid.shares is not None
        assert grid.shares.sum(-1) == pytest.approx(1)
    assert accuracy == {"sum": 0.25, "length": 0.25, "prior": 1.0}
    assert bias == pytest.approx({"sum": 0.75, "length": 0.75, "prior": 0})


def test_shares_by_hand() -> None:
    reply = Reply("", (math.log(0.2), math.log(0.04), math.log(0.1)), (1, 2, 1))
    assert shares_of(reply, "sum").tolist() == pytest.approx([0.2 / 0.34, 0.04 / 0.34, 0.1 / 0.34])
    assert shares_of(reply, "length").tolist() == pytest.approx([0.4, 0.4, 0.2])
    without = Reply("", (math.log(0.6), math.log(0.09), math.log(0.1)), (1, 2, 1))
    # Means without content are 0.6, 0.3, 0.1; shares over them 2/3, 4/3, 2.
    assert shares_of(reply, "prior", without).tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert chosen(np.array([0.4, 0.2, 0.4])) is None
    assert chosen(np.array([0.4, 0.2, 0.41])) == 2
    with pytest.raises(ValueError, match="no reply to the content-free"):
        shares_of(reply, "prior")
    with pytest.raises(ValueError, match="without a log-likelihood"):
        shares_of(Reply("A"), "sum")


def test_calibration() -> None:
    """Half of the answers are right, at a confidence of 0.7."""

    def likelihoods(question: Question) -> Reply:
        assert question.row is not None
        label = label_of(question) if question.row % 8 < 4 else (label_of(question) + 1) % 4
        values = [math.log(0.7) if shown == label else math.log(0.1) for shown in question.order]
        return Reply("", tuple(values), (1,) * 4)

    asked = answered(likelihoods, way="options")
    grid = make_grid(asked, range(48), 4, reader_of_likelihoods(asked, "sum"))
    found = grid_figures(grid, np.arange(48) % 4, np.arange(48), np.ones((1, 48)))
    assert float(found["ece"][0]) == pytest.approx(0.2)


def test_rows_that_are_not_answered_in_full_are_named() -> None:
    asked = answered(lambda question: "A", permutations=2)
    of = {row: [each for each in asked if each.question.row == row] for row in range(48)}
    kept = [each for row in range(6, 48) for each in of[row]]
    kept += [Asked(each.question, "generate", None, "clip unreadable: gone") for each in of[0]]
    kept += [*of[1][1:], Asked(of[1][0].question, "generate", None, "server error: 500", True)]
    kept += of[2][:-1]
    kept += [*of[3][1:], Asked(of[3][0].question, "generate", None, "context overflow: 9 of 8 tokens")]
    split = manifest()
    grid = make_grid(kept, range(48), 4, reader_of_text(load_prompts("default"), split))
    assert grid.rows.tolist() == [3, *range(6, 48)]
    assert grid.missing == {
        0: "clip unreadable: gone",
        1: "not answered yet: server error: 500",
        2: "not answered yet: 23 of 24 questions",
        4: "not asked",
        5: "not asked",
    }
    assert (grid.said[0] == UNPARSED).sum() == 1
    assert grid.reasons == {"letter": 43 * 24 - 1, "failure": 1}
    with pytest.raises(ScoreError, match="no row was answered in full: 48 rows: not asked"):
        make_grid([], range(48), 4, reader_of_text(load_prompts("default"), split))


def test_answers_to_other_questions_are_refused() -> None:
    question = answered(lambda _: "A")[0].question
    changed = Question(
        question.row, question.prompt, question.style, question.order, "", "another text", question.targets
    )
    with pytest.raises(ScoreError, match="its words have changed"):
        check_questions([Asked(changed, "generate", Reply("A"))], load_prompts("default"), manifest())
    beyond = next(
        iter(questions(load_prompts("default"), manifest(), [99], permutations=1, seed=0, content_free=False))
    )
    with pytest.raises(ScoreError, match="row 99 is none of the manifest"):
        check_questions([Asked(beyond, "generate", Reply("A"))], load_prompts("default"), manifest())
