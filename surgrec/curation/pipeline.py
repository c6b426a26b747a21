"""The stages in their order, each from what the one before has found: from an index to a plan.

    segments --> quality --> dedup --> decontaminate --> embed --> cluster --> balance --> plan.h5

A stage's table in OUT.work/ has a key, a digest of all that it depends on. A table with the right key is
taken as it is; of a stage that was stopped the records of single videos are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from surgrec.configs.curate import CurateConfig, Stage
from surgrec.curation.balance import Labels, numbers_of, segment_weights
from surgrec.curation.cluster_stage import cluster_key, cluster_segments, device_of
from surgrec.curation.decontaminate_stage import (
    contacts_key,
    contacts_of,
    counted,
    find_contacts,
    index_downstream,
    reasons_of,
    record_of,
    write_report,
)
from surgrec.curation.dedup_stage import EXACT, NEAR, find_duplicates, find_footage, footage_key, matches_of
from surgrec.curation.downstream import find_clips
from surgrec.curation.embed_stage import embed_key, embed_segments
from surgrec.curation.plan_file import write_plan
from surgrec.curation.quality_stage import find_quality, judged, quality_key
from surgrec.curation.records import Arrays, CurationError, Found, VideoRecords, load_table, save_table
from surgrec.curation.scenes import choose_detector
from surgrec.curation.segment_stage import find_segments, segments_key
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable

STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
TOO_SHORT: Final = "shorter than segments.least_seconds"
UNSEEN: Final = "undecodable"
"""The flag of segments that gave no picture. One that gave them once, but not again, has it, too."""

Progress = Callable[[Stage, int, int], None]
"""(stage, done, of how many)."""


@dataclass
class Report:
    """What a run did. reused: stages that were finished before. notes: by stage, what is to be known of
    videos, by path. remarks: what stages say of all. excluded: segments that are not drawn, by reason.
    digest: of the plan, if one was written.
    """

    reused: list[Stage] = field(default_factory=list)
    notes: dict[Stage, dict[str, str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    segments: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    digest: str = ""


def stages_of(names: Sequence[str]) -> tuple[Stage, ...]:
    """The stages named, in their order; `all` is every one. Raises CurationError for other names."""
    unknown = [name for name in names if name not in (*STAGES, "all")]
    if unknown or not names:
        raise CurationError(f"no stage {', '.join(unknown) or 'given'}: choose from all, {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if "all" in names or stage in names)


def curate(config: CurateConfig, workers: int, progress: Progress) -> Report:
    """Runs the stages of the configuration, and writes the plan if `balance` is one of them.

    Raises CurationError where an earlier stage is missing or a process dies, PacketIndexError, ValueError for
    options that make no sense, and OSError.
    """
    stages = stages_of(config.stages)
    index = PacketIndex.open(config.index)
    work = config.out.with_name(f"{config.out.name}.work")
    run = _Run(config, index, work, workers, progress, stages)
    with _records(work / "videos") as records:
        # This run has the lock: what is left unfinished is that of a killed one.
        for left_over in (*work.glob(".*.tmp"), *config.out.parent.glob(f".{config.out.name}.*.tmp")):
            left_over.unlink()
        run.records = records
        return run.all()


@contextmanager
def _records(folder: Path) -> Iterator[VideoRecords]:
    records = VideoRecords(folder).open()
    try:
        yield records
    finally:
        records.close()


@dataclass
class _Run:
    config: CurateConfig
    index: PacketIndex
    work: Path
    workers: int
    progress: Progress
    stages: tuple[Stage, ...]
    report: Report = field(default_factory=Report)
    records: VideoRecords | None = None
    compared: dict[str, Any] = field(default_factory=dict)
    """Downstream clips that segments were compared with, for the plan's record."""

    def all(self) -> Report:
        """Runs the stages."""
        config, index = self.config, self.index
        assert self.records is not None
        records = self.records
        key = segments_key(index, config.segments)
        segments = self._stage(
            "segments",
            key,
            lambda: find_segments(index, config.segments, records, self.workers, self._shown("segments")),
        )
        self.report.segments = len(segments["video"])
        if self.stages == ("segments",):
            return self.report
        key = quality_key(index, segments)
        seen = self._stage(
            "quality",
            key,
            lambda: find_quality(index, segments, records, self.workers, self._shown("quality")),
        )
        if self.stages[-1] == "quality":
            return self.report
        key = footage_key(index, segments, config.segments, config.seed)
        footage = self._stage(
            "dedup",
            key,
            lambda: find_footage(
                index,
                segments,
                config.segments,
                records,
                self.workers,
                config.seed,
                self._shown("dedup"),
            ),
        )
        if self.stages[-1] == "dedup":
            return self.report
        contaminated = self._contaminated(segments)
        if self.stages[-1] == "decontaminate":
            return self.report
        key = embed_key(index, segments, seen["crop"])
        embedded = self._stage(
            "embed",
            key,
            lambda: embed_segments(
                index, segments, seen["crop"], records, self.workers, self._shown("embed")
            ),
        )
        if self.stages[-1] == "embed":
            return self.report
        table = SegmentTable(**segments)
        why = self._reasons(table, seen["numbers"], embedded["failed"])
        fine = np.array([not text for text in why], bool)
        copies = find_duplicates(index, table, fine, matches_of(footage), config.dedup.share)
        for k in np.flatnonzero(fine).tolist():
            of_copy = "" if copies.of[k] < 0 else EXACT if copies.exact[k] else NEAR
            why[k] = contaminated.get(k, of_copy)
        kept = np.array([not text for text in why], bool)
        domain = numbers_of(index.videos.domain)[segments["video"]]
        clustered: Arrays = {}
        if config.balance.scheme == "hierarchical" or "cluster" in self.stages:
            key = cluster_key(embedded["vectors"], kept, domain, config.cluster, config.seed)
            clustered = self._stage(
                "cluster",
                key,
                lambda: Found(
                    cluster_segments(
                        embedded["vectors"], kept, domain, config.cluster, config.seed, self._shown("cluster")
                    )
                ),
            )
        if "balance" in self.stages:
            self._write(
                table,
                why,
                copies.of,
                seen["crop"],
                [clustered[str(level)] for level in range(len(clustered))],
            )
        return self.report

    def _contaminated(self, segments: Arrays) -> dict[int, str]:
        """Why segments may not be drawn because of what models are tested on, by number."""
        config, index = self.config, self.index
        if not config.decontaminate.videos:
            if "decontaminate" in self.stages:
                self.report.remarks.append(
                    "decontaminate: not done, as --decontaminate.videos names no downstream videos"
                )
            return {}
        assert self.records is not None
        records = self.records
        clips = counted(find_clips(config.decontaminate.videos), config.decontaminate)
        downstream = index_downstream(clips, self.work, self.workers)
        found = self._stage(
            "decontaminate",
            contacts_key(index, segments, config.segments, downstream, clips, config.seed),
            lambda: find_contacts(
                index,
                segments,
                config.segments,
                downstream,
                clips,
                config.decontaminate,
                records,
                self.workers,
                config.seed,
                self._shown("decontaminate"),
            ),
        )
        table = SegmentTable(**segments)
        contacts = contacts_of(index, table, downstream, clips, found)
        notes = self.report.notes.get("decontaminate", {})
        report = self.work / "decontaminated.csv"
        write_report(report, index, table, contacts, clips, notes)
        reasons = reasons_of(contacts)
        self.report.remarks.append(
            f"decontaminate: {len(reasons)} segments show one of {len(clips)} downstream clips; {report}"
        )
        self.compared = {"downstream": record_of(clips, downstream)}
        return reasons

    def _shown(self, stage: Stage) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(stage, done, total)

    def _stage(self, stage: Stage, key: str, work: Callable[[], Found]) -> Arrays:
        """What a stage found: before, or now if it is one of those to be run. Where videos failed before,
        they are tried again."""
        path = self.work / f"{stage}.h5"
        found = load_table(path, key)
        if found is None or (stage in self.stages and not found.complete):
            if stage not in self.stages:
                raise CurationError(
                    f"stage {stage} was not run with these options: run `python -m surgrec.curate {stage}"
                    f" --index {self.config.index} --out {self.config.out}` first, or all"
                )
            found = work()
            save_table(path, key, found)
        elif stage in self.stages:
            self.report.reused.append(stage)
        if found.notes:
            self.report.notes[stage] = found.notes
        return found.arrays

    def _reasons(
        self, segments: SegmentTable, numbers: NDArray[np.float32], failed: NDArray[np.bool_]
    ) -> list[str]:
        """Why each segment is not drawn; empty for those that are."""
        flags, good = judged(numbers, self.config.quality)
        short = seconds_of(self.index, segments) < self.config.segments.least_seconds
        return [
            flag if not fine else UNSEEN if lost else TOO_SHORT if brief else ""
            for flag, fine, lost, brief in zip(flags, good, failed, short, strict=True)
        ]

    def _write(
        self,
        segments: SegmentTable,
        why: list[str],
        duplicate_of: NDArray[np.int64],
        crop: NDArray[np.int32],
        clusters: list[NDArray[Any]],
    ) -> None:
        config, videos = self.config, self.index.videos
        reasons = ["", *sorted(set(why) - {""})]
        number = {text: place for place, text in enumerate(reasons)}
        reason = np.array([number[text] for text in why], np.int32)
        labels = Labels(videos.domain, videos.dataset, videos.case)
        weight = segment_weights(segments, reason == 0, labels, clusters, config.balance)
        levels: dict[str, NDArray[Any]] = {
            "domain": numbers_of(videos.domain)[segments.video],
            **{f"cluster{depth}": numbers for depth, numbers in enumerate(clusters)},
        }
        counts = np.bincount(reason, minlength=len(reasons)).tolist()
        self.report.excluded = dict(zip(reasons[1:], counts[1:], strict=True))
        self.report.digest = write_plan(
            config.out,
            self.index.digest,
            segments,
            weight,
            reason,
            reasons,
            duplicate_of,
            levels,
            crop,
            _record(config) | self.compared,
        )


def seconds_of(index: PacketIndex, segments: SegmentTable) -> NDArray[np.float64]:
    """How long each segment is on display, by time stamps and, for its last frame, the mean of its others."""
    found = np.empty(len(segments))
    for video, own in segments.by_video().items():
        times = index.frame_pts(video)
        tick = int(index.videos.time_base_num[video]) / int(index.videos.time_base_den[video])
        start, last = segments.start[own], segments.end[own] - 1
        spans = (times[last] - times[start]) * tick
        steps = np.where(last > start, spans / np.maximum(last - start, 1), 0.0)
        found[own] = spans + steps
    return found


def _record(config: CurateConfig) -> dict[str, Any]:
    """What a plan was made with: all but where things lie and how many worked. `auto` is what it came to."""
    record = asdict(config)
    record["segments"]["detector"] = choose_detector(config.segments.detector)
    record["cluster"]["device"] = device_of(config.cluster)
    for name in ("stages", "index", "out", "workers"):
        del record[name]
    for name in ("videos", "go_on"):
        del record["decontaminate"][name]
    return record
