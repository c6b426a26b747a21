"""Faults of a split by which test footage, or its like, is in train."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

from surgrec.evaluation.clip_spans import Placed, Sources, touching
from surgrec.evaluation.findings import Finding, LintOptions, describe, percent
from surgrec.evaluation.manifest import SPLITS, Row, Split, SplitManifest

Key = tuple[str, float | None, float | None]
PAIRS: Final[tuple[tuple[Split, Split], ...]] = (("train", "test"), ("train", "val"), ("val", "test"))


def key_of(row: Row) -> Key:
    """What makes two rows the same clip."""
    return row.path, row.start, row.end


def same_sets(manifest: SplitManifest) -> list[tuple[Split, Split]]:
    """Pairs of splits that hold the very same clips."""
    keys = {split: {key_of(row) for row in manifest.of(split)} for split in SPLITS}
    return [(one, other) for one, other in PAIRS if keys[one] and keys[one] == keys[other]]


def leaks(manifest: SplitManifest, sources: Sources, options: LintOptions) -> Iterator[Finding]:
    """Findings about pairs of splits."""
    same = same_sets(manifest)
    groups = [{row.group for row in manifest.of(split)} for split in SPLITS]
    if sum(map(len, groups)) == len(set.union(*groups)):
        counts = "/".join(str(len(group)) for group in groups)
        yield Finding("groups-disjoint", "info", f"no group is in two splits; {counts} train/val/test", 0)
    for pair in PAIRS:
        one, other = pair
        if pair in same:
            rows = manifest.of(other)
            yield Finding(
                f"{one}-is-{other}",
                "error",
                f"{one} and {other} are the same {len({key_of(row) for row in rows}):,} clips:"
                f" what is chosen on {one} is chosen on {other}",
                len(rows),
            )
            continue
        if pair == ("train", "val") and ("val", "test") in same:
            continue  # Said of train and test.
        yield from _shared_rows(manifest, one, other, options)
        yield from _shared_groups(manifest, one, other, options)
        yield from _near_in_time(sources, one, other, options)


def repeats(manifest: SplitManifest, options: LintOptions) -> Iterator[Finding]:
    """Clips that a split holds twice, and clips with two labels."""
    labels: dict[Key, set[int]] = defaultdict(set)
    seen: set[tuple[Split, Key]] = set()
    again = []
    for row in manifest.rows:
        labels[key_of(row)].add(row.label)
        if (row.split, key_of(row)) in seen:
            again.append(row)
        seen.add((row.split, key_of(row)))
    if again:
        splits = Counter(row.split for row in again)
        where = ", ".join(f"{splits[split]} in {split}" for split in SPLITS if splits[split])
        yield Finding(
            "duplicate-rows",
            "warning",
            f"{len(again):,} rows repeat one of their split ({where}): such clips count more than once",
            len(again),
            describe(again, options.examples),
        )
    torn = [row for row in manifest.rows if len(labels[key_of(row)]) > 1]
    if torn:
        count = len({key_of(row) for row in torn})
        yield Finding(
            "two-labels",
            "error",
            f"{count:,} clips have more than one label",
            count,
            describe(sorted(torn, key=lambda row: (row.path, row.start or 0.0)), options.examples),
        )


def _shared_rows(
    manifest: SplitManifest, one: Split, other: Split, options: LintOptions
) -> Iterator[Finding]:
    known = {key_of(row) for row in manifest.of(one)}
    shared = [row for row in manifest.of(other) if key_of(row) in known]
    if shared:
        yield Finding(
            f"rows-in-{one}-and-{other}",
            "error",
            f"{len(shared):,} of {len(manifest.of(other)):,} {other} rows are clips of {one}",
            len(shared),
            describe(shared, options.examples),
        )


def _shared_groups(
    manifest: SplitManifest, one: Split, other: Split, options: LintOptions
) -> Iterator[Finding]:
    known = {row.group for row in manifest.of(one)}
    rows = manifest.of(other)
    shared = [row for row in rows if row.group in known]
    groups = len({row.group for row in shared})
    if shared:
        yield Finding(
            f"groups-in-{one}-and-{other}",
            "error",
            f"{groups:,} groups are in both {one} and {other}; they cover {len(shared):,} of {len(rows):,}"
            f" {other} rows ({percent(len(shared) / len(rows))})",
            len(shared),
            describe(shared, options.examples),
            (("groups", groups), ("rows", len(shared)), ("of", len(rows))),
        )


def _near_in_time(sources: Sources, one: Split, other: Split, options: LintOptions) -> Iterator[Finding]:
    overlapping: list[tuple[Placed, Placed]] = []
    adjacent: list[tuple[Placed, Placed]] = []
    for clips in sources.placed.values():
        there = [clip for clip in clips if clip.row.split == one]
        known = {key_of(clip.row) for clip in there}
        here = [clip for clip in clips if clip.row.split == other and key_of(clip.row) not in known]
        over, near = touching(here, there, sources.gap)
        overlapping += over
        adjacent += near
    unit = "units of the names" if sources.unit == "unknown" else sources.unit
    for code, pairs, words in (
        ("overlap", overlapping, "overlap a clip"),
        ("neighbours", adjacent, f"lie at most {sources.gap:g} {unit} from a clip"),
    ):
        if pairs:
            yield Finding(
                f"{code}-of-{one}-and-{other}",
                "error",
                f"{len(pairs):,} {other} rows {words} of the same video in {one}",
                len(pairs),
                tuple(
                    f"{clip.row.path} [{clip.start:g}, {clip.end:g}) and {partner.row.path}"
                    f" [{partner.start:g}, {partner.end:g})"
                    for clip, partner in pairs[: options.examples]
                ),
            )
