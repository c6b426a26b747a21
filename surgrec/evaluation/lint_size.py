"""What a test set can tell apart, and what is won on it without looking."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from surgrec.evaluation.baselines import baselines
from surgrec.evaluation.findings import Finding, LintOptions, percent
from surgrec.evaluation.lint_leaks import key_of
from surgrec.evaluation.manifest import SplitManifest

Z_95: Final = 1.959963984540054
"""Standard normal quantile of 0.975."""
LEAST_CLIPS: Final = 6
"""If two models differ on k clips, all in favour of one, the two-sided sign test (McNemar's, exact) has
p = 2 / 2**k: below 0.05 from six on."""
HOPELESS: Final = 0.2
"""Half width of an interval, in [0, 1], from which a test set measures nothing."""


def wilson(right: int, of: int) -> tuple[float, float]:
    """95 % interval of a share of `right` in `of`, by Wilson (1927), each in [0, 1]."""
    share, z2 = right / of, Z_95**2
    centre = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = Z_95 / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return max(0.0, centre - half), min(1.0, centre + half)


def widest_half(of: int) -> float:
    """Half the width of Wilson's interval of `of` clips where it is widest, at half of them right.

    The square root of z^2 / (4 (n + z^2)): its formula at a share of 1/2.
    """
    return Z_95 / (2 * math.sqrt(of + Z_95**2))


def smallest_difference(of: int) -> float:
    """Smallest difference of two accuracies on the same `of` clips that a paired test can find significant
    at 5 %, in the best case: none is worse on any clip. 1 and more: none can."""
    return LEAST_CLIPS / of


def size_faults(manifest: SplitManifest, options: LintOptions) -> Iterator[Finding]:
    """Whether the test set is large enough for the difference that is looked for."""
    test = manifest.of("test")
    if not test:
        return
    clips = len({key_of(row) for row in test})
    groups = len({row.group for row in test})
    half, least = widest_half(clips), smallest_difference(clips)
    figures = (("clips", clips), ("groups", groups), ("half_width", half), ("smallest_difference", least))
    seen = f"from {100 * least:.1f} points on, at best" if least <= 1 else "by no difference"
    text = (
        f"{clips:,} test clips of {groups:,} groups: 95 % intervals reach up to {100 * half:.1f} points to"
        f" either side, and two models differ significantly on the same clips {seen}"
    )
    if half > options.difference or least > options.difference:
        text += f"; too small to show a difference of {100 * options.difference:g} points"
        severity = "error" if half > HOPELESS else "warning"
        yield Finding("test-too-small", severity, text, clips, figures=figures)  # type: ignore[arg-type]
    else:
        yield Finding("test-size", "info", text, clips, figures=figures)


def without_looking(manifest: SplitManifest) -> Iterator[Finding]:
    """The accuracies of the two baselines that see no picture."""
    if not manifest.of("train") or not manifest.of("test"):
        return
    found = baselines(manifest)
    share = found.majority / found.test
    name = manifest.classes[found.majority_label]
    yield Finding(
        "majority",
        "info",
        f"always saying {found.majority_label} ({name}), the most frequent label of train, scores"
        f" {percent(share)} on test{_interval(found.majority, found.test)}",
        found.majority,
        figures=(("accuracy", share), ("right", found.majority), ("of", found.test)),
    )
    if not found.covered:
        return
    share = found.lookup / found.test
    inside = found.covered_right / found.covered
    yield Finding(
        "source-lookup",
        "info",
        f"looking up the group's label in train scores {percent(share)} on test"
        f"{_interval(found.lookup, found.test)}: {percent(inside)} of the {found.covered:,} rows whose group"
        f" is in train, and the majority for the others",
        found.lookup,
        figures=(
            ("accuracy", share),
            ("accuracy_of_covered", inside),
            ("covered", found.covered),
            ("covered_right", found.covered_right),
            ("of", found.test),
        ),
    )


def _interval(right: int, of: int) -> str:
    low, high = wilson(right, of)
    return f" (95 % interval {percent(low)} to {percent(high)})"
