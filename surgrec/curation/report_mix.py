"""What a plan will draw: the mix at each level before and after balancing, and how often segments come again.

Before balancing, segments are drawn by their frames; after it, by the plan's weights. Segments that are not
drawn count in neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surgrec.curation.balance import MixMeasures, mix_measures, numbers_of
from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.sampler import UNLABELLED

QUANTILES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

BY_VIDEO: Final = {"domain": "domain", "dataset": "data set", "case": "case"}
"""Columns of the index of which there is a mix whatever the tree is, and how people call them."""


@dataclass(frozen=True)
class LevelMix:
    """The mix at one level. labels: of its m nodes. natural, drawn: float64 [m], their shares by frames and
    by weight. before, after: how even these are.
    """

    name: str
    labels: tuple[str, ...]
    natural: NDArray[np.float64]
    drawn: NDArray[np.float64]
    before: MixMeasures
    after: MixMeasures

    @property
    def maximum(self) -> float:
        """The entropy of equal shares, in nats."""
        return float(np.log(len(self.labels)))


def predicted_mixes(index: PacketIndex, plan: CorpusPlan) -> list[LevelMix]:
    """Of domains, data sets, cases and videos, and of each further level of the plan's tree."""
    kept = plan.reason == 0
    frames = (plan.segments.end - plan.segments.start)[kept].astype(np.float64)
    weight, video = plan.weight[kept], plan.segments.video[kept]
    found = []
    for column, name in BY_VIDEO.items():
        labels = [text or UNLABELLED for text in getattr(index.videos, column)]
        if column == "case":  # a video without a case is a case of its own
            labels = [text or f"video {number}" for number, text in enumerate(getattr(index.videos, column))]
        names = np.unique(np.asarray(labels, dtype=str))
        found.append(level_mix(name, numbers_of(labels)[video], frames, weight, names.tolist()))
    found.append(level_mix("video", video, frames, weight, index.videos.path))
    for name, level in zip(plan.level_names, plan.levels, strict=True):
        if name not in BY_VIDEO:
            found.append(level_mix(name, level[kept], frames, weight))
    return found


def level_mix(
    name: str,
    nodes: ArrayLike,
    frames: ArrayLike,
    weight: ArrayLike,
    names: list[str] | None = None,
) -> LevelMix:
    """Of the nodes, integer [n], that segments belong to, -1 for none; frames, weight: of each segment.

    names: of the nodes, by number; the numbers themselves by default.
    """
    node = np.asarray(nodes)
    there = node >= 0
    numbers, place = np.unique(node[there], return_inverse=True)
    sums = [
        np.bincount(place, weights=np.asarray(values, np.float64)[there], minlength=len(numbers))
        for values in (frames, weight)
    ]
    natural, drawn = (total / max(float(total.sum()), np.finfo(float).tiny) for total in sums)
    labels = [str(number) if names is None else names[number] for number in numbers.tolist()]
    everyone = np.arange(len(numbers))
    before, after = mix_measures(natural, everyone), mix_measures(drawn, everyone)
    return LevelMix(name, tuple(labels), natural, drawn, before, after)


@dataclass(frozen=True)
class DrawnEntropy:
    """Entropy, in nats, of the shares counted in a number of draws. deviation: its standard deviation."""

    mean: float
    deviation: float


def drawn_entropy(shares: ArrayLike, draws: int) -> DrawnEntropy:
    """What the entropy of counted draws is expected to be where things have these shares, [m].

    Counts are less even than the shares by chance: the mean is (m - 1) / (2 draws) below their entropy
    (Miller 1955), the variance (sum p ln(p)**2 - H**2) / draws + (m - 1) / (2 draws**2) (Basharin 1959, the
    second term after Harris 1975). Holds where each of the m is drawn several times.
    """
    share = np.asarray(shares, np.float64)
    share = share[share > 0] / share.sum()
    logs = np.log(share)
    entropy = float(-(share * logs).sum())
    spread = max(0.0, float((share * logs**2).sum()) - entropy**2)
    more = len(share) - 1
    deviation = (spread / draws + more / (2 * draws**2)) ** 0.5
    return DrawnEntropy(entropy - more / (2 * draws), float(deviation))


@dataclass(frozen=True)
class Repeats:
    """How often the segments that can be drawn are expected to be, over a run of `samples` clips.

    expected: float64 [m]. quantiles: of it, at QUANTILES. never: share of the segments expected to be drawn
    not once. distinct: number of segments expected to be drawn at least once.
    """

    samples: int
    expected: NDArray[np.float64]
    quantiles: tuple[float, ...]
    never: float
    distinct: float


def expected_repeats(weight: NDArray[np.float64], samples: int) -> Repeats:
    """Draws are independent: a segment of weight w is drawn samples * w times in the mean, and not at all
    with probability (1 - w) ** samples. Weights of zero are left out."""
    drawable = weight[weight > 0]
    with np.errstate(divide="ignore"):
        missed = np.exp(samples * np.log1p(-np.minimum(drawable, 1.0)))
    expected = samples * drawable
    quantiles = tuple(np.quantile(expected, QUANTILES).tolist())
    return Repeats(samples, expected, quantiles, float(missed.mean()), float((1 - missed).sum()))
