"""The report: one HTML page that needs nothing else, from an index and a plan.

Names of files and reasons come from strangers. They are escaped where the page is written, put in as text
where its script adds them, and what the page may load or run is bounded by a policy (CSP) of hashes.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from surgrec.curation.readable import readable
from surgrec.curation.report_charts import mix_chart, repeats_chart
from surgrec.curation.report_mix import QUANTILES, LevelMix, expected_repeats, predicted_mixes
from surgrec.curation.report_numbers import Exclusion, by_flag, exclusions, glance
from surgrec.curation.report_thumbnails import Thumbnail
from surgrec.curation.report_tree import Tree
from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.whole_file import replacing

MOST_GROUPS: Final = 10
"""Rows of a table of groups; the rest is one row."""
MOST_ROWS: Final = 200
"""Rows of long tables."""
CHARTED: Final = ("case", "video")
"""Mixes that are in the table alone: there are too many parts, and no order in them."""

SECTIONS: Final = (
    ("glance", "At a glance"),
    ("excluded", "Not drawn"),
    ("duplicates", "Duplicates"),
    ("decontamination", "Downstream sets"),
    ("clusters", "Clusters"),
    ("mix", "Mix"),
    ("repeats", "Repeats"),
    ("record", "Record"),
)
"""Anchors and titles of the page's parts."""


@dataclass(frozen=True)
class Chosen:
    """Numbers of the plan's segments that have thumbnails. excluded: by reason. leaves: of the tree, by
    place. pairs: a duplicate, and the segment that stands for it. most_drawn: in order.
    """

    excluded: dict[str, list[int]]
    leaves: dict[int, list[int]]
    pairs: list[tuple[int, int]]
    most_drawn: list[int]

    def rows(self) -> list[int]:
        """All of them."""
        several: Iterable[Iterable[int]] = (*self.excluded.values(), *self.leaves.values(), *self.pairs)
        return sorted({*self.most_drawn, *(row for rows in several for row in rows)})


@dataclass(frozen=True)
class Shown:
    """A picture on the page: data is its address, empty where there is none, for `reason`."""

    data: str
    width: int
    height: int
    path: str
    time: str
    reason: str
    more: str = ""


@dataclass(frozen=True)
class Matches:
    """The list of matches with downstream sets: count of rows, of which the first are here."""

    columns: list[str]
    rows: list[list[str]]
    count: int


def times(expected: float) -> str:
    """A number of repeats, for people: three digits, or all before the point."""
    return f"{expected:,.0f}" if expected >= 100 else f"{expected:.3g}"


def folder_of(paths: Sequence[str]) -> str:
    """The innermost folder that all paths lie in; empty where there is none."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # absolute and relative ones
        return ""


def clock(seconds: float) -> str:
    """h:mm:ss."""
    whole = int(max(0.0, seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def read_matches(path: Path) -> Matches | None:
    """The table that stage decontaminate leaves; None where there is none. Raises OSError."""
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        lines = csv.reader(file)
        columns = next(lines, [])
        rows, count = [], 0
        for count, line in enumerate(lines, 1):
            if count <= MOST_ROWS:
                rows.append([readable(cell) for cell in line])
    return Matches([readable(name) for name in columns], rows, count)


@dataclass(frozen=True)
class Content:
    """What the page shows. seconds: float64 [n], length of each segment of the plan. thumbnails: of the
    segments chosen. duplicates: as duplicates_of gives them. samples: clips of the run whose repeats are
    expected.
    """

    index: PacketIndex
    plan: CorpusPlan
    seconds: NDArray[np.float64]
    tree: Tree
    chosen: Chosen
    thumbnails: dict[int, Thumbnail]
    duplicates: NDArray[np.int64]
    matches: Matches | None
    samples: int


def write_page(out: Path, content: Content) -> None:
    """Writes the page atomically; the same content has the same bytes. Raises OSError."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = environment.from_string(_asset("page.html")).render(_values(content))
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _values(content: Content) -> dict[str, Any]:
    """The template's variables."""
    index, plan, chosen, duplicates = content.index, content.plan, content.chosen, content.duplicates
    pictures = _Pictures(content)
    found = exclusions(plan, content.seconds)
    excluded = [_exclusion(each, pictures, chosen) for each in found]
    mixes = [_readable_mix(mix) for mix in predicted_mixes(index, plan)]
    repeats = expected_repeats(plan.weight, content.samples)
    style, script = _asset("page.css"), _asset("page.js")
    there = sum(1 for each in content.thumbnails.values() if each.jpeg)
    levels = content.tree.levels
    return {
        "name": readable(plan.path.name),
        "index_path": readable(str(index.path)),
        "plan_path": readable(str(plan.path)),
        "folder": readable(pictures.folder),
        "sections": SECTIONS,
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "glance": _readable_values(glance(index, plan, content.seconds)),
        "most_groups": MOST_GROUPS,
        "most_rows": MOST_ROWS,
        "excluded": excluded,
        "flags": by_flag(found),
        "duplicates": int((duplicates >= 0).sum()),
        "pairs": [
            (pictures.shown(copy, "not drawn"), pictures.shown(kept, "stands for it"))
            for copy, kept in chosen.pairs
        ],
        "downstream": [row for row, each in zip(excluded, found, strict=True) if each.downstream],
        "found_downstream": content.matches,
        "levels": ", ".join(f"{readable(level.name)} ({len(level.labels):,})" for level in levels),
        "mixes": mixes,
        "charts": [(mix, mix_chart(mix)) for mix in mixes if mix.name not in CHARTED and len(mix.labels) > 1],
        "repeats": repeats,
        "quantile_names": [
            {0.0: "least", 0.5: "median", 1.0: "most"}.get(part, f"{100 * part:g} %") for part in QUANTILES
        ],
        "repeats_chart": repeats_chart(repeats),
        "most_drawn": [
            pictures.shown(row, f"{times(float(plan.weight[row]) * content.samples)} times expected")
            for row in chosen.most_drawn
        ],
        "plan_digest": plan.digest,
        "index_digest": index.digest,
        "thumbnails": f"{there} of {len(content.thumbnails)} chosen segments",
        "record": json.dumps(json.loads(plan.record), indent=2, sort_keys=True),
        "data": _tree_data(content, pictures),
    }


class _Pictures:
    """Pictures with their captions."""

    def __init__(self, content: Content) -> None:
        index, plan, thumbnails = content.index, content.plan, content.thumbnails
        self._index, self._plan, self._thumbnails = index, plan, thumbnails
        self.folder = folder_of(index.videos.path)
        self._times: dict[int, str] = {}
        by_video: dict[int, list[int]] = {}
        for row in thumbnails:
            by_video.setdefault(int(plan.segments.video[row]), []).append(row)
        for video, rows in by_video.items():
            pts = index.frame_pts(video)
            tick = int(index.videos.time_base_num[video]) / int(index.videos.time_base_den[video])
            for row in rows:
                self._times[row] = clock(float(pts[thumbnails[row].frame] - pts[0]) * tick)

    def path(self, video: int) -> str:
        """Of a video, from the folder that all lie in."""
        path = self._index.videos.path[video]
        return readable(os.path.relpath(path, self.folder) if self.folder else path)

    def time(self, row: int) -> str:
        """Of the picture of a segment, from the start of its video."""
        return self._times[row]

    def shown(self, row: int, more: str = "") -> Shown:
        """The picture of a segment, with its address."""
        found = self._thumbnails[row]
        address = f"data:image/jpeg;base64,{_base64(found.jpeg)}" if found.jpeg else ""
        path = self.path(int(self._plan.segments.video[row]))
        return Shown(address, found.width, found.height, path, self.time(row), readable(found.reason), more)


def _exclusion(each: Exclusion, pictures: _Pictures, chosen: Chosen) -> dict[str, Any]:
    return {
        "reason": readable(each.reason),
        "segments": len(each.rows),
        "hours": each.hours,
        "share": each.share,
        "examples": [pictures.shown(row) for row in chosen.excluded.get(each.reason, [])],
    }


def _readable_mix(mix: LevelMix) -> LevelMix:
    labels = tuple(readable(label) for label in mix.labels)
    return LevelMix(readable(mix.name), labels, mix.natural, mix.drawn, mix.before, mix.after)


def _readable_values(value: Any) -> Any:
    """A frozen dataclass, or lists and dicts of them, as plain values with readable text."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, list):
        return [_readable_values(each) for each in value]
    if isinstance(value, dict):
        return {name: _readable_values(each) for name, each in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return {name: _readable_values(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def _tree_data(content: Content, pictures: _Pictures) -> Markup:
    """What the page's script reads, as JSON that is inert in HTML."""
    place: dict[int, int] = {}
    videos: dict[int, int] = {}
    thumbnails: list[list[Any]] = []
    for row in (row for rows in content.chosen.leaves.values() for row in rows):
        found, video = content.thumbnails[row], int(content.plan.segments.video[row])
        place[row] = len(thumbnails)
        number, time = videos.setdefault(video, len(videos)), pictures.time(row)
        thumbnails.append(
            [number, time, found.width, found.height, _base64(found.jpeg), readable(found.reason)]
        )
    leaves = sorted(content.chosen.leaves.items())
    data = {
        "levels": [
            {
                "labels": [readable(label) for label in level.labels],
                "parent": level.parent.tolist(),
                "natural": _short(level.natural),
                "drawn": _short(level.drawn),
                "segments": level.segments.tolist(),
                "hours": _short(level.hours),
            }
            for level in content.tree.levels
        ],
        "videos": [pictures.path(video) for video in videos],
        "thumbnails": thumbnails,
        "leaves": {str(leaf): [place[row] for row in rows] for leaf, rows in leaves},
    }
    text = json.dumps(data, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _short(values: NDArray[np.float64]) -> list[float]:
    """To four digits: 37,000 nodes are on the page."""
    return [float(f"{value:.4g}") for value in values.tolist()]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _hash(text: str) -> str:
    """As a content security policy has it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _asset(name: str) -> str:
    return files("surgrec.curation").joinpath("report_template", name).read_text(encoding="utf-8")
