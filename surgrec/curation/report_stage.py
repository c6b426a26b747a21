"""Stage `report`: chooses what is pictured, gets the thumbnails, and writes the page."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from surgrec.configs.curate import ReportOptions
from surgrec.curation.per_video import Progress, Workers
from surgrec.curation.records import CurationError, VideoRecords
from surgrec.curation.report_numbers import duplicates_of, exclusions
from surgrec.curation.report_page import Chosen, Content, read_matches, write_page
from surgrec.curation.report_thumbnails import find_thumbnails
from surgrec.curation.report_tree import Tree, examples, make_tree
from surgrec.curation.segment_video import seconds_of
from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.packet_index import PacketIndex

PER_REASON: Final = 6
"""Examples of segments that are not drawn for one reason, at most."""
MOST_DRAWN: Final = 12
"""Segments drawn most that are pictured, at most."""


def page_of(options: ReportOptions, plan: Path) -> Path:
    """Where the page of a plan goes.

    Raises CurationError where that is the plan itself, ValueError for options that make no sense.
    """
    if options.thumbnails < 0 or options.samples < 1:
        raise ValueError(
            f"report.thumbnails is {options.thumbnails} and report.samples {options.samples}: at least 0"
            f" thumbnails, and a run of at least 1 clip, are needed"
        )
    page = options.page or plan.with_suffix(".html")
    if page.resolve() == plan.resolve():
        raise CurationError(f"{page}: the report would take the plan's place; give another --report.page")
    return page


def make_report(
    index: PacketIndex,
    plan_path: Path,
    page: Path,
    work: Path,
    options: ReportOptions,
    records: VideoRecords,
    workers: Workers,
    progress: Progress,
) -> dict[str, str]:
    """Writes the page of the plan at `plan_path`; the reasons why videos have no thumbnail, by path.

    Of `work`, the list of matches with downstream sets is taken where there is one; thumbnails are made from
    the videos.

    Raises CurationError, CorpusPlanError for a plan of another index, and OSError.
    """
    plan = CorpusPlan.open(plan_path, index)
    seconds = seconds_of(index, plan.segments)
    tree, duplicates = make_tree(index, plan, seconds), duplicates_of(plan)
    chosen = choose(plan, seconds, tree, duplicates, options.thumbnails)
    found = find_thumbnails(index, plan.segments, chosen.rows(), records, workers, progress)
    matches = read_matches(work / "decontaminated.csv")
    content = Content(index, plan, seconds, tree, chosen, found, duplicates, matches, options.samples)
    write_page(page, content)
    return {
        index.videos.path[int(plan.segments.video[row])]: f"no thumbnail: {each.reason}"
        for row, each in found.items()
        if not each.jpeg
    }


def choose(
    plan: CorpusPlan,
    seconds: NDArray[np.float64],
    tree: Tree,
    duplicates: NDArray[np.int64],
    budget: int,
) -> Chosen:
    """Which segments are pictured, `budget` at most: an eighth each for those not drawn and for pairs of
    duplicates, some for those drawn most, and the tree has the rest.
    """
    left = budget
    most_drawn = np.argsort(-plan.weight, kind="stable")[: min(MOST_DRAWN, left // 8)].tolist()
    left -= len(most_drawn)
    copies = np.flatnonzero(duplicates >= 0)
    pairs = [(row, int(duplicates[row])) for row in _evenly(copies, left // 16)]
    left -= 2 * len(pairs)
    excluded: dict[str, list[int]] = {}
    room = budget // 8
    for each in exclusions(plan, seconds):
        rows = _evenly(each.rows, min(PER_REASON, room))
        if rows:
            excluded[each.reason] = rows
            room -= len(rows)
            left -= len(rows)
    return Chosen(excluded, examples(tree, left), pairs, most_drawn)


def _evenly(rows: NDArray[np.int64], count: int) -> list[int]:
    """`count` of them at most, evenly spread."""
    count = min(count, len(rows))
    found: list[int] = rows[(np.arange(count) * len(rows) + len(rows) // 2) // max(1, count)].tolist()
    return found
