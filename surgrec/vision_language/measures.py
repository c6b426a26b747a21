"""What answers are worth and how far they depend on the wording and on the order of the options.

Every figure is a function of the weights of groups, as in evaluation/metrics.py, so that the bootstrap over
groups gives its interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from surgrec.evaluation.intervals import draw_groups, interval
from surgrec.evaluation.metrics import Floats, Ints
from surgrec.evaluation.results import Interval
from surgrec.kernels.counter_rng import stream_key
from surgrec.vision_language.grid import UNPARSED, Grid

BINS: Final = 15
"""Of confidence, of equal width, as in Guo et al. 2017."""
HELD: Final = 2**22
"""Numbers of a product that are held at once."""


@dataclass(frozen=True)
class PositionTest:
    """How often positions were chosen. chosen, expected: [C] answers; expected if the class that is said did
    not depend on where it is shown. statistic: Pearson's chi-square of the two. p: share of reassignments of
    the orders to rows with a statistic as large; None where all rows had the same orders."""

    chosen: tuple[int, ...]
    expected: tuple[float, ...]
    statistic: float
    p: float | None


def grid_figures(grid: Grid, labels: Ints, groups: Ints, weights: Floats) -> dict[str, Floats]:
    """Figures of all answers, [R] each, NaN where one has no value.

    labels, groups: int64 [n]. weights: float [R, G], how often each group counts.

        accuracy            share of the answers that are right; unparsed ones are wrong
        accuracy_parsed     of those that name a class
        parse_failure_rate  share of the answers that name none
        prompt_min, _max    accuracy of the worst and of the best wording
        prompt_sd           standard deviation over wordings, that of a sample of them
        flip_rate           share of the pairs of wordings that differ in their answer to a clip, in one order
        order_consistency   share of the pairs of orders with the same answer to a clip, in one wording
        position_bias       share of the answers that would have to move for positions to be chosen as often
                            as the classes said were shown there
        ece                 expected calibration error (Guo et al., ICML 2017)

    To name no class is an answer like another where answers are compared.
    """
    right = grid.said == labels[:, None, None]
    parsed = grid.said != UNPARSED
    _, P, K = grid.said.shape
    count = weights @ _by_group(np.ones(len(labels)), groups)
    by_prompt = weights @ _by_group(right.mean(2), groups) / count[:, None]
    hits, answered = (weights @ _by_group(each.sum((1, 2)), groups) for each in (right, parsed))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "accuracy": by_prompt.mean(1),
            "accuracy_parsed": hits / np.where(answered > 0, answered, np.nan),
            "parse_failure_rate": 1 - answered / (count * P * K),
        }
    if P > 1:
        differ = 1 - _agreement(grid.said)  # over wordings, for each order
        found |= {
            "prompt_min": by_prompt.min(1),
            "prompt_max": by_prompt.max(1),
            "prompt_sd": by_prompt.std(1, ddof=1),
            "flip_rate": weights @ _by_group(differ.mean(1), groups) / count,
        }
    if K > 1:
        same = _agreement(grid.said.swapaxes(1, 2)).mean(1)
        found["order_consistency"] = weights @ _by_group(same, groups) / count
    if not _one_order(grid):
        found["position_bias"] = _position_bias(grid, groups, weights)
    if grid.shares is not None:
        found["ece"] = _calibration_error(grid.shares, right, groups, weights)
    return found


def with_intervals(
    grid: Grid, labels: Ints, groups: Ints, seed: int, resamples: int, test_set: str = ""
) -> dict[str, Interval]:
    """`grid_figures` with 95 % intervals by bootstrap over groups; without where there is one group."""
    count = int(groups.max()) + 1
    as_is = grid_figures(grid, labels, groups, np.ones((1, count)))
    drawn: dict[str, list[Floats]] = {name: [] for name in as_is}
    if count > 1:
        weights = draw_groups(count, seed, resamples, test_set)
        block = max(1, HELD // (grid.orders.shape[2] ** 2 + count))
        for first in range(0, len(weights), block):
            for name, values in grid_figures(grid, labels, groups, weights[first : first + block]).items():
                drawn[name].append(values)
    found = {}
    for name, values in as_is.items():
        if np.isfinite(values[0]):
            bounds = interval(np.concatenate(drawn[name])) if drawn[name] else None
            found[name] = Interval(*_shares(float(values[0]), *(bounds or (None, None))))
    return found


def _shares(*values: float | None) -> Any:
    """Within 0 to 1, which sums of shares leave by a rounding error."""
    return tuple(None if value is None else min(1.0, max(0.0, value)) for value in values)


def class_recall(grid: Grid, labels: Ints, classes: int) -> list[float | None]:
    """Share of the answers to clips of each class that are right, None for a class without a clip."""
    right = (grid.said == labels[:, None, None]).mean((1, 2))
    return [float(right[labels == c].mean()) if (labels == c).any() else None for c in range(classes)]


def position_test(grid: Grid, seed: int, resamples: int) -> PositionTest:
    """Whether positions are preferred. Under the hypothesis that what is said does not depend on the order,
    orders may be dealt to the rows anew: they were drawn without regard to them."""
    said, C = grid.said, grid.orders.shape[2]
    counts = np.stack([(said == c).sum(1) for c in range(C)], 2)  # [n, K, C]: answers by order and class
    places = np.argsort(grid.orders, 2)  # [n, K, C]: where each class is shown
    chosen, expected, statistic = _chi_square(counts, places)
    p = None
    if not _one_order(grid):
        generator = np.random.Generator(np.random.Philox(stream_key(seed, "vlm/position-test")))
        drawn = [_chi_square(counts, places[generator.permutation(len(places))])[2] for _ in range(resamples)]
        p = (1 + sum(other >= statistic - 1e-9 for other in drawn)) / (1 + resamples)
    return PositionTest(tuple(int(n) for n in chosen), tuple(map(float, expected)), statistic, p)


def _chi_square(counts: NDArray[Any], places: Ints) -> tuple[Floats, Floats, float]:
    """counts, places: [n, K, C]. Chosen [C], expected [C] and the statistic over positions."""
    C = counts.shape[2]
    flat = places.reshape(-1)
    chosen: Floats = np.bincount(flat, counts.reshape(-1), C).astype(np.float64)
    total = counts.sum()
    if not total:
        return chosen, np.zeros(C), 0.0
    said = counts.sum((0, 1)) / total
    shown = (counts.sum(2)[:, :, None] * said).reshape(-1)
    expected = np.bincount(flat, shown, C)
    known = expected > 0
    statistic = float((((chosen - expected) ** 2)[known] / expected[known]).sum())
    return chosen, expected, statistic


def _one_order(grid: Grid) -> bool:
    """Whether all rows had the same orders: then positions cannot be told from classes."""
    return bool((grid.orders == grid.orders[0, 0]).all())


def _position_bias(grid: Grid, groups: Ints, weights: Floats) -> Floats:
    """[R]: total variation distance between positions as chosen and as expected."""
    C = grid.orders.shape[2]
    places = np.argsort(grid.orders, 2)  # [n, K, C]
    counts = np.stack([(grid.said == c).sum(1) for c in range(C)], 2).astype(np.float64)
    answers = counts.sum(2)
    at = np.zeros((len(groups), C))
    shown = np.zeros((len(groups), C, C))  # answers while class c is at position j
    for k in range(places.shape[1]):
        rows = np.arange(len(groups))[:, None]
        at[rows, places[:, k]] += counts[:, k]
        shown[rows, np.arange(C), places[:, k]] += answers[:, k, None]
    chosen = weights @ _by_group(at, groups)
    said = weights @ _by_group(counts.sum(1), groups)
    total = said.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        said = said / total
        moved = weights @ _by_group(shown.reshape(len(groups), -1), groups)
        expected = np.einsum("rc,rcj->rj", said, moved.reshape(-1, C, C))
        found: Floats = np.abs(chosen - expected).sum(1) / (2 * total[:, 0])
    return found


def _calibration_error(shares: Floats, right: NDArray[np.bool_], groups: Ints, weights: Floats) -> Floats:
    """[R]: mean over bins, by their answers, of |share that is right - mean confidence|."""
    n = len(groups)
    known = np.isfinite(shares[..., 0])
    confidence = np.where(known, np.nan_to_num(shares).max(-1), 0.0)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps, counts = np.zeros((n, BINS)), np.zeros((n, BINS))
    rows = np.broadcast_to(np.arange(n)[:, None, None], bins.shape)
    np.add.at(gaps, (rows[known], bins[known]), (right - confidence)[known])
    np.add.at(counts, (rows[known], bins[known]), 1.0)
    found: Floats = np.abs(weights @ _by_group(gaps, groups)).sum(1)
    return found / (weights @ _by_group(counts, groups)).sum(1)


def _agreement(said: Ints) -> Floats:
    """[n, K] of [n, P, K]: share of the pairs along P that are equal."""
    P = said.shape[1]
    equal = sum((said[:, a] == said[:, b]).astype(np.float64) for a in range(P) for b in range(a))
    return np.asarray(equal) / (P * (P - 1) / 2)


def _by_group(values: NDArray[Any], groups: Ints) -> Floats:
    """float64 [G, ...]: sums over the rows of each group."""
    found = np.zeros((int(groups.max()) + 1, *values.shape[1:]))
    np.add.at(found, groups, values)
    return found


def plain(test: PositionTest) -> Mapping[str, Any]:
    """As a document has it."""
    return {
        "chosen": list(test.chosen),
        "expected": list(test.expected),
        "chi_square": test.statistic,
        "p": test.p,
    }
