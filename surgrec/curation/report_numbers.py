"""The corpus at a glance, and what is not drawn of it: what the report counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import h5py
import numpy as np
from numpy.typing import NDArray

from surgrec.curation.quality import FLAGS
from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.packet_index import OK, SEQUENTIAL, STATUS_NAMES, PacketIndex
from surgrec.loaders.sampler import UNLABELLED

SHOWS: Final = "shows "
"""How reasons begin of segments that show the footage of a downstream set."""

UNKNOWN: Final = "unknown"


@dataclass(frozen=True)
class Group:
    """Videos alike in something. share: of the hours of all."""

    name: str
    videos: int
    hours: float
    share: float


@dataclass(frozen=True)
class Unreadable:
    """A video that gives no frame, its status in the index, and why."""

    path: str
    status: str
    reason: str


@dataclass(frozen=True)
class Glance:
    """The corpus: of videos that can be read hours, frames and groups, by what they are alike in. drawn:
    segments that can be drawn, and drawn_hours their length. median_seconds: of a segment.
    """

    videos: int
    hours: float
    frames: int
    segments: int
    drawn: int
    drawn_hours: float
    median_seconds: float
    groups: dict[str, list[Group]]
    unreadable: list[Unreadable]


@dataclass(frozen=True)
class Exclusion:
    """Segments not drawn for one reason. rows: their numbers, int64. share: of the hours of all segments."""

    reason: str
    rows: NDArray[np.int64]
    hours: float
    share: float

    @property
    def downstream(self) -> bool:
        """Whether they show the footage of a downstream set."""
        return self.reason.startswith(SHOWS)


def glance(index: PacketIndex, plan: CorpusPlan, seconds: NDArray[np.float64]) -> Glance:
    """seconds: of each segment of the plan."""
    videos = index.videos
    readable = np.isin(videos.status, (OK, SEQUENTIAL)) & (videos.frame_count > 0)
    hours = np.where(np.isfinite(videos.duration), videos.duration, 0.0) / 3600
    drawn = plan.weight > 0
    columns: dict[str, Sequence[str]] = {
        "Domain": [name or UNLABELLED for name in videos.domain],
        "Data set": [name or UNLABELLED for name in videos.dataset],
        "Codec": [name or UNKNOWN for name in videos.codec],
        "Picture size": [f"{w} × {h}" for w, h in zip(videos.width, videos.height, strict=True)],
        "Frames per second": [f"{rate:.2f}".rstrip("0").rstrip(".") for rate in videos.rate.tolist()],
        "Access": [
            STATUS_NAMES[status] if status in (OK, SEQUENTIAL) else UNKNOWN
            for status in videos.status.tolist()
        ],
    }
    groups = {name: _groups(labels, hours, readable) for name, labels in columns.items()}
    unreadable = [
        Unreadable(
            videos.path[number],
            STATUS_NAMES[videos.status[number]],
            videos.reason[number] or "the index knows no frame of it",
        )
        for number in np.flatnonzero(~readable).tolist()
    ]
    return Glance(
        videos=len(index),
        hours=float(hours[readable].sum()),
        frames=int(videos.frame_count[readable].sum()),
        segments=len(plan),
        drawn=int(drawn.sum()),
        drawn_hours=float(seconds[drawn].sum()) / 3600,
        median_seconds=float(np.median(seconds)),
        groups=groups,
        unreadable=unreadable,
    )


def _groups(labels: Sequence[str], hours: NDArray[np.float64], readable: NDArray[np.bool_]) -> list[Group]:
    """Of the readable videos, the longest first."""
    names, place = np.unique(np.asarray(labels, dtype=str)[readable], return_inverse=True)
    sums = np.bincount(place, weights=hours[readable], minlength=len(names))
    counts = np.bincount(place, minlength=len(names))
    total = max(float(sums.sum()), np.finfo(float).tiny)
    order = np.lexsort((names, -sums)).tolist()
    return [Group(str(names[k]), int(counts[k]), float(sums[k]), float(sums[k] / total)) for k in order]


def exclusions(plan: CorpusPlan, seconds: NDArray[np.float64]) -> list[Exclusion]:
    """By the reasons of the plan, each segment in one of them, the longest first."""
    total = float(seconds.sum())
    order = np.argsort(plan.reason, kind="stable")
    starts = np.searchsorted(plan.reason[order], np.arange(len(plan.reasons) + 1))
    found = []
    for number, reason in enumerate(plan.reasons):
        rows = order[starts[number] : starts[number + 1]]
        if number and len(rows):
            length = float(seconds[rows].sum())
            found.append(Exclusion(reason, rows, length / 3600, length / total))
    return sorted(found, key=lambda each: (-each.hours, each.reason))


def by_flag(found: Sequence[Exclusion]) -> dict[str, float]:
    """Share of the hours of all segments that are not drawn and have each flag of quality: a segment may have
    several. Reasons that are no flags are left out."""
    shares: dict[str, float] = {}
    for each in found:
        flags = each.reason.split(",")
        if set(flags) <= set(FLAGS):
            for flag in flags:
                shares[flag] = shares.get(flag, 0.0) + each.share
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def duplicates_of(plan: CorpusPlan) -> NDArray[np.int64]:
    """int64 [n]: the segment that stands for each one, -1 where it stands for itself.

    Raises ValueError for a column that is missing, or does not fit the plan.
    """
    with h5py.File(plan.path, "r", locking=False) as file:
        if "segments/duplicate_of" not in file:
            raise ValueError(f"{plan.path}: segments/duplicate_of is missing; write the plan again")
        found: NDArray[np.int64] = file["segments/duplicate_of"][:].astype(np.int64)
    if found.shape != (len(plan),) or len(plan) == 0 or int(found.max()) >= len(plan):
        raise ValueError(f"{plan.path}: segments/duplicate_of names segments that the plan does not hold")
    return found
