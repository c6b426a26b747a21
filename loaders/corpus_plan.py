"""Reader of the plan `plan.h5`: the segments of a corpus, the tree over them, and how often each is drawn.

`python -m surgrec.curate` writes it; docs/curation.md describes the file. A plan belongs to one index, by the
digest of its content: with another one its numbers of videos and frames would mean something else.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numba import njit
from numpy.typing import NDArray
from surgrec.loaders.clip_plan import frame_time
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable, Unusable, refusal

FORMAT_NAME: Final = "surgrec-plan"
FORMAT_VERSION: Final = 2

WEIGHT_TOLERANCE: Final = 1e-6
"""How far the weights may be from adding up to 1."""

_log = logging.getLogger(__name__)


class CorpusPlanError(ValueError):
    """A plan that cannot be used; the message names file, cause and remedy."""

    def __init__(self, path: Path, cause: str, remedy: str) -> None:
        super().__init__(f"{path}: {cause}. {remedy}")


@dataclass(frozen=True, slots=True)
class CorpusPlan:
    """What is drawn from the corpus, and how often.

    segments: n of them, in the order of the index's videos and of time; with gaps where nothing is kept.
    weight: float64 [n], probability of each, adding up to 1. reason: int32 [n], number in `reasons` of why a
    segment is not drawn; 0, whose text is empty, for those that are. level_names, levels: the tree from the
    outside in, int32 [n] for each level: the node that a segment belongs to, unique within the level.
    content_area: int32 [V, 4] for each video of the index, as ClipSource takes it. record: what the plan was
    made with, plain values as JSON. digest: of all this.
    """

    path: Path
    index_digest: str
    segments: SegmentTable
    weight: NDArray[np.float64]
    reason: NDArray[np.int32]
    reasons: tuple[str, ...]
    level_names: tuple[str, ...]
    levels: tuple[NDArray[np.int32], ...]
    content_area: NDArray[np.int32]
    record: str
    digest: str

    @staticmethod
    def open(path: str | Path, index: PacketIndex) -> CorpusPlan:
        """The plan at `path`, made for `index`.

        Raises CorpusPlanError where it is missing, no plan, damaged, or made for another index.
        """
        return _open(Path(path), index)

    def __len__(self) -> int:
        return len(self.segments)


def _open(path: Path, index: PacketIndex) -> CorpusPlan:
    write = f"Write it with `python -m surgrec.curate all --index {index.path} --out {path}`."
    if not path.is_file():
        raise CorpusPlanError(path, "not a file" if path.exists() else "no such plan", write)
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise CorpusPlanError(path, f"not an HDF5 file, or a truncated one ({error})", write) from error
    with file:
        found, version = file.attrs.get("format"), int(file.attrs.get("format_version", -1))
        if found != FORMAT_NAME:
            raise CorpusPlanError(path, f"HDF5, but not a plan (format is {found!r})", write)
        if version != FORMAT_VERSION:
            cause = f"plan of format version {version}, this SurgRec reads version {FORMAT_VERSION}"
            raise CorpusPlanError(path, cause, write)
        if str(file.attrs.get("index_digest")) != index.digest:
            cause = f"made for another index than {index.path}, or for an earlier content of it"
            raise CorpusPlanError(path, cause, write)
        try:
            plan = _read(path, file)
            _check(plan, index)
        except (KeyError, OSError, ValueError) as error:
            raise CorpusPlanError(path, f"damaged plan ({error})", write) from error
    return plan


def _read(path: Path, file: h5py.File) -> CorpusPlan:
    group = file["segments"]
    names = tuple(str(name) for name in file.attrs["level_names"])

    def column(name: str, kind: str) -> NDArray[Any]:
        return np.ascontiguousarray(group[name][:], kind)

    return CorpusPlan(
        path=path,
        index_digest=str(file.attrs["index_digest"]),
        segments=SegmentTable(column("video", "i4"), column("start", "i8"), column("end", "i8")),
        weight=column("weight", "f8"),
        reason=column("reason", "i4"),
        reasons=tuple(text.decode() for text in file["reasons"][:]),
        level_names=names,
        levels=tuple(np.ascontiguousarray(file["levels"][name][:], "i4") for name in names),
        content_area=np.ascontiguousarray(file["content_area"][:], "i4"),
        record=str(file.attrs["record"]),
        digest=str(file.attrs["digest"]),
    )


def _check(plan: CorpusPlan, index: PacketIndex) -> None:
    """Raises ValueError for numbers that do not fit each other or the index."""
    segments, count = plan.segments, len(plan)
    columns: tuple[NDArray[Any], ...] = (plan.weight, plan.reason, *plan.levels)
    if any(len(column) != count for column in columns):
        raise ValueError("columns of unequal length")
    if count == 0:
        raise ValueError("it holds no segment")
    if int(segments.video.max()) >= len(index):
        raise ValueError(f"a segment of video {segments.video.max()}; the index holds {len(index)}")
    if (segments.end > index.videos.frame_count[segments.video]).any():
        raise ValueError("a segment ends behind its video")
    bad = ~(np.isfinite(plan.weight) & (plan.weight >= 0))
    if bad.any() or abs(float(plan.weight.sum()) - 1) > WEIGHT_TOLERANCE:
        raise ValueError("weights that are no probabilities")
    if len(plan.reasons) == 0 or int(plan.reason.min()) < 0 or int(plan.reason.max()) >= len(plan.reasons):
        raise ValueError("a reason that it does not name")
    if plan.content_area.shape != (len(index), 4):
        raise ValueError(f"content areas {plan.content_area.shape} of {len(index)} videos")


def usable_segments(
    index: PacketIndex,
    plan: CorpusPlan,
    frames: int,
    stride: int | None = None,
    fps: float | None = None,
    allow_sequential: bool = False,
) -> tuple[SegmentTable, NDArray[np.float64], list[Unusable]]:
    """The segments of a plan that give a clip of this shape, and their weights float64 [m], above 0.

    Segments too short for a clip are left out, and the log says how much weight they have.

    Args:
        frames, stride, fps: shape of a clip as in clip_frames.
        allow_sequential: take videos without random access too.

    Returns:
        The segments, their weights, and the videos that the plan draws from of which none is left, with the
        reason.

    Raises:
        CorpusPlanError: no segment is left.
    """
    table = index.videos
    drawn = plan.weight > 0
    wanted = np.unique(plan.segments.video[drawn])
    refused: dict[int, str] = {}
    for video in wanted.tolist():
        reason = refusal(index, video, frames, stride, fps, allow_sequential)
        if reason is not None:
            refused[video] = reason
    keep = drawn & ~np.isin(plan.segments.video, list(refused))
    long_enough = _long_enough(index, plan.segments, frames, stride, fps)
    short = keep & ~long_enough
    keep &= long_enough
    for video in np.setdiff1d(plan.segments.video[short], plan.segments.video[keep]).tolist():
        refused[video] = "all its segments that the plan draws are shorter than a clip"
    if not keep.any():
        raise CorpusPlanError(
            plan.path,
            f"none of the {int(drawn.sum())} segments that it draws gives a clip of {frames} frames",
            "Shorten the clip (frames, stride, fps), or curate with longer segments.",
        )
    if short.any():
        _log.warning(
            "%s: %d segments, %.2f %% of its weight, are shorter than a clip and not drawn",
            plan.path,
            int(short.sum()),
            100 * float(plan.weight[short].sum()),
        )
    segments = SegmentTable(plan.segments.video[keep], plan.segments.start[keep], plan.segments.end[keep])
    unusable = [Unusable(video, table.path[video], reason) for video, reason in sorted(refused.items())]
    return segments, plan.weight[keep], unusable


def _long_enough(
    index: PacketIndex, segments: SegmentTable, frames: int, stride: int | None, fps: float | None
) -> NDArray[np.bool_]:
    """bool [n]: whether a clip fits into each segment, as clip_frames has it with `within`."""
    if fps is None:
        assert stride is not None
        fits: NDArray[np.bool_] = segments.end - segments.start > (frames - 1) * stride
        return fits
    table = index.videos
    span = (frames - 1) / fps * table.time_base_den / table.time_base_num  # of each video, in ticks
    found: NDArray[np.bool_] = _fit(
        index.pts,
        index.display,
        table.packet_start[segments.video],
        table.frame_start[segments.video],
        table.stack[segments.video],
        table.frame_ticks[segments.video],
        segments.start,
        segments.end,
        span[segments.video],
    )
    return found


@njit(cache=True)
def _fit(pts, display, packet_start, frame_start, stack, frame_ticks, start, end, span):
    fits = np.empty(len(start), np.bool_)
    for k in range(len(start)):
        video = (packet_start[k], frame_start[k], stack[k], frame_ticks[k])
        first = frame_time(pts, display, video[0], video[1], video[2], video[3], start[k])
        last = frame_time(pts, display, video[0], video[1], video[2], video[3], end[k] - 1)
        fits[k] = first + span[k] <= last + 0.5
    return fits
