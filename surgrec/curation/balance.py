"""How often each segment is drawn: shares down a tree, then bounds on videos and cases.

    scheme            the tree below the root
    uniform-frames    segments, by their frames
    uniform-videos    video, equal -> segments
    dataset           domain -> data set -> video -> segments, by the exponents of BalanceConfig
    hierarchical      domain (cluster.within) -> clusters, level by level from the coarsest -> segments

Each level shares out as loaders/sampler.py has it: mass ** exponent, 0 for equal shares, 1 for natural ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surgrec.configs.curate import BalanceOptions, Label
from surgrec.loaders.sampler import UNLABELLED, tree_probabilities
from surgrec.loaders.segments import SegmentTable

ROUNDS: Final = 200
"""Halvings of the interval in which a factor is looked for: more than float64 can tell apart."""


@dataclass(frozen=True)
class Labels:
    """Of each video of the index: domain, data set, and case. Those without a case are cases of their own."""

    domain: Sequence[str]
    dataset: Sequence[str]
    case: Sequence[str]


def check_options(labels: Labels, options: BalanceOptions, within: Sequence[Label]) -> None:
    """What cannot be right whichever segments are kept, before hours are spent on finding out which.

    labels: of all videos that may have some. Raises ValueError, as segment_weights would in the end.
    """
    outer_levels(labels, within)
    check_priors(options.priors, {name or UNLABELLED for name in labels.domain})
    for count, floor, cap, what in (
        (len(labels.case), options.video_floor, options.video_cap, "videos"),
        (len(set(_cases(labels.case))), options.case_floor, options.case_cap, "cases"),
    ):
        if floor > cap:
            raise ValueError(f"the floor of {what}, {floor:g}, is above their cap, {cap:g}")
        if cap * count < 1 - 1e-9:
            raise ValueError(
                f"{count} {what} with shares of at most {cap:g} together cannot have 1: raise the cap"
            )


def segment_weights(
    segments: SegmentTable,
    kept: ArrayLike,
    labels: Labels,
    clusters: Sequence[ArrayLike],
    options: BalanceOptions,
    within: Sequence[Label] = ("domain",),
) -> NDArray[np.float64]:
    """Probability of each segment, float64 [n], adding up to 1; 0 for those not kept.

    Args:
        kept: bool [n]. A segment that is not kept counts nowhere.
        clusters: the cluster tree, outermost level first, integer [n] for each level; used by the scheme
            hierarchical alone. Labels of segments that are not kept are not looked at.
        within: labels that are levels above the clusters.

    Raises:
        ValueError: nothing is kept, no clusters for the scheme hierarchical, a prior for a domain that does
            not exist, or bounds that cannot be met.
    """
    keep = np.asarray(kept, bool)
    if not keep.any():
        raise ValueError("no segment is kept: nothing can be drawn. Loosen what excludes them")
    video = segments.video[keep]
    frames = (segments.end - segments.start)[keep].astype(np.float64)
    domain = numbers_of(labels.domain)[video]
    dataset = numbers_of([f"{d}/{s}" for d, s in zip(labels.domain, labels.dataset, strict=True)])[video]
    shares = options.shares
    if options.scheme == "uniform-frames":
        found = tree_probabilities([], frames, [1.0])
    elif options.scheme == "uniform-videos":
        found = tree_probabilities([video], frames, [0.0, 1.0])
    elif options.scheme == "dataset":
        exponents = [shares.domain, shares.dataset, shares.video, shares.segment]
        found = tree_probabilities([domain, dataset, video], frames, exponents)
    else:
        if not clusters:
            raise ValueError("the scheme hierarchical needs clusters: run the stage cluster first")
        outer = outer_levels(labels, within)
        levels = [level[video] for level in outer.values()]
        levels += [np.asarray(level)[keep] for level in clusters]
        by_label = {"domain": shares.domain, "dataset": shares.dataset, "case": shares.video}
        exponents = [*(by_label[name] for name in outer), *[options.cluster] * len(clusters), 1.0]
        found = tree_probabilities(levels, frames, exponents)
    found = _with_priors(found, labels.domain, video, options.priors)
    found = _bounded(found, video, labels.case, options)
    weights = np.zeros(len(segments))
    weights[keep] = found / found.sum()
    return weights


def numbers_of(names: Sequence[str]) -> NDArray[np.int32]:
    """A number for each distinct name, in the order of the names."""
    return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].astype(np.int32)


def outer_levels(labels: Labels, within: Sequence[Label]) -> dict[str, NDArray[np.int32]]:
    """For each label named, from the outside in, the group of each video: int32 [V]. Groups of a level lie
    within those of the one above: case 1 of one data set is not case 1 of another.

    Raises ValueError for a label named twice.
    """
    if len(set(within)) < len(within):
        raise ValueError(f"cluster.within names a label twice: {', '.join(within)}")
    found: dict[str, NDArray[np.int32]] = {}
    paths = [""] * len(labels.domain)
    for name in within:
        own = _cases(labels.case) if name == "case" else getattr(labels, name)
        paths = [f"{path}\n{label}" for path, label in zip(paths, own, strict=True)]
        found[name] = numbers_of(paths)
    return found


def _cases(cases: Sequence[str]) -> list[str]:
    """A name for the case of each video."""
    return [f"case {case}" if case else f"video {number}" for number, case in enumerate(cases)]


def _with_priors(
    found: NDArray[np.float64],
    domains: Sequence[str],
    video: NDArray[np.int32],
    priors: Mapping[str, float],
) -> NDArray[np.float64]:
    """Shares of domains set to `priors`; those without one keep their proportions in what is left."""
    if not priors:
        return found
    names = np.array([name or UNLABELLED for name in domains], dtype=str)[video]
    check_priors(priors, set(names.tolist()))
    total = sum(priors.values())
    scaled = found.copy()
    rest = ~np.isin(names, list(priors))
    for name, prior in priors.items():
        own = names == name
        scaled[own] *= prior / found[own].sum()
    if rest.any():
        scaled[rest] *= max(0.0, 1 - total) / found[rest].sum()
    return scaled


def check_priors(priors: Mapping[str, float], there: Set[str]) -> None:
    """there: the domains of which segments may be drawn. Raises ValueError."""
    if not priors:
        return
    unknown = sorted(set(priors) - there)
    if unknown:
        raise ValueError(
            f"priors for {', '.join(unknown)}; segments to be drawn are of {', '.join(sorted(there))}"
        )
    for name, prior in priors.items():
        if not 0 <= prior <= 1:
            raise ValueError(f"the prior of {name} is {prior}; it is a share, between 0 and 1")
    total = sum(priors.values())
    others = there - set(priors)
    if total > 1 + 1e-9 or (not others and abs(total - 1) > 1e-9):
        rule = "at most 1" if others else "exactly 1, for every domain has one"
        raise ValueError(f"the priors add up to {total:g}; they must add up to {rule}")


def _bounded(
    found: NDArray[np.float64], video: NDArray[np.int32], cases: Sequence[str], options: BalanceOptions
) -> NDArray[np.float64]:
    """Shares of cases, and within each case of its videos, brought within their bounds."""
    unbounded = (options.video_floor, options.video_cap, options.case_floor, options.case_cap)
    if unbounded == (0.0, 1.0, 0.0, 1.0):
        return found
    case_of_video = numbers_of(_cases(cases))
    videos, place = np.unique(video, return_inverse=True)
    share = np.bincount(place, weights=found)
    cases_there, case = np.unique(case_of_video[videos], return_inverse=True)
    case_share = np.bincount(case, weights=share)
    least = np.full(len(cases_there), options.case_floor)
    most = np.full(len(cases_there), options.case_cap)
    # A case can hold no more, and needs no less, than its videos may have.
    counts = np.bincount(case)
    least, most = (
        np.maximum(least, counts * options.video_floor),
        np.minimum(most, counts * options.video_cap),
    )
    bounded_cases = clipped_shares(case_share, least, most, 1.0, "cases")
    bounded = np.empty(len(videos))
    for number in range(len(cases_there)):
        own = case == number
        count = int(own.sum())
        bounded[own] = clipped_shares(
            share[own],
            np.full(count, options.video_floor),
            np.full(count, options.video_cap),
            float(bounded_cases[number]),
            "videos",
        )
    return found * (bounded / np.where(share > 0, share, 1.0))[place]


def clipped_shares(
    shares: ArrayLike, least: ArrayLike, most: ArrayLike, total: float, what: str
) -> NDArray[np.float64]:
    """min(max(factor * share, least), most) with the factor for which they add up to `total`.

    shares, least, most: [n]. Shares of zero stay at zero, whatever the least is. what: names them in errors.

    Raises ValueError where bounds cross, or cannot be met.
    """
    share, low, high = (np.asarray(column, np.float64) for column in (shares, least, most))
    there = share > 0
    low, high = np.where(there, low, 0.0), np.where(there, high, 0.0)
    if (low > high * (1 + 1e-9)).any():
        k = int(np.argmax(low - high))
        raise ValueError(f"the floor of {what}, {low[k]:g}, is above their cap, {high[k]:g}")
    if low.sum() > total * (1 + 1e-9) or high.sum() < total * (1 - 1e-9):
        raise ValueError(
            f"{int(there.sum())} {what} with shares between {low.sum():g} and {high.sum():g} together cannot"
            f" have {total:g}: lower the floor, or raise the cap"
        )
    start, end = 0.0, float(np.max(np.where(there, high / np.where(there, share, 1.0), 0.0), initial=0.0))
    for _ in range(ROUNDS):
        middle = 0.5 * (start + end)
        if np.clip(middle * share, low, high).sum() < total:
            start = middle
        else:
            end = middle
    return np.clip(end * share, low, high)


@dataclass(frozen=True)
class MixMeasures:
    """How even a mix is. entropy: in nats. effective: exp(entropy), as many equal parts would have it. most:
    largest share.
    """

    entropy: float
    effective: float
    most: float


def mix_measures(weights: ArrayLike, labels: ArrayLike) -> MixMeasures:
    """Of the shares that labels, integer [n], have by weights float64 [n]."""
    share = np.bincount(np.unique(np.asarray(labels), return_inverse=True)[1], weights=np.asarray(weights))
    share = share[share > 0] / share.sum()
    entropy = float(-(share * np.log(share)).sum()) + 0.0  # no minus zero
    return MixMeasures(entropy, float(np.exp(entropy)), float(share.max()))
