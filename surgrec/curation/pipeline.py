"""The stages in their order, each from what the one before has found: from an index to a plan.

    segments --> quality --> dedup --> decontaminate --> embed --> cluster --> balance --> plan.h5 --> report

A stage's table in OUT.work/ has a key, a digest of all that it depends on. A table with the right key is
taken as it is; of a stage that was stopped the records of single videos are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, compress
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from surgrec.configs.curate import CurateConfig, Stage
from surgrec.curation.balance import Labels, check_options, outer_levels, segment_weights
from surgrec.curation.cluster_stage import cluster_key, cluster_segments, device_of, levels_for
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
from surgrec.curation.embed_stage import Embedding, embed_key, embed_segments, start_embedding
from surgrec.curation.local_workers import LocalWorkers
from surgrec.curation.per_video import Workers
from surgrec.curation.plan_file import write_plan
from surgrec.curation.quality_stage import find_quality, judged, quality_key
from surgrec.curation.ray_workers import RayWorkers
from surgrec.curation.records import Arrays, CurationError, Found, VideoRecords, load_table, save_table
from surgrec.curation.report_stage import make_report, page_of
from surgrec.curation.scenes import choose_detector
from surgrec.curation.segment_stage import find_segments, segments_key
from surgrec.curation.segment_video import seconds_of
from surgrec.loaders.packet_index import OK, SEQUENTIAL, PacketIndex
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
    digest: of the plan, if one was written. page: the report, if one was written.
    """

    reused: list[Stage] = field(default_factory=list)
    notes: dict[Stage, dict[str, str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    segments: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    page: Path | None = None


def stages_of(names: Sequence[str]) -> tuple[Stage, ...]:
    """The stages named, in their order; `all` is every one. Raises CurationError for other names."""
    unknown = [name for name in names if name not in (*STAGES, "all")]
    if unknown or not names:
        raise CurationError(f"no stage {', '.join(unknown) or 'given'}: choose from all, {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if "all" in names or stage in names)


def curate(config: CurateConfig, workers: int, progress: Progress) -> Report | None:
    """Runs the stages of the configuration, writes the plan if `balance` is one of them, and then the report.
    Of several ranks all call it; those that help rank 0 have no report.

    Raises CurationError where an earlier stage is missing or a process dies, PacketIndexError, ValueError for
    options that make no sense, UserError for a device that is not there, and OSError.
    """
    stages = stages_of(config.stages)
    index = PacketIndex.open(config.index)
    work = config.out.with_name(f"{config.out.name}.work")
    page = page_of(config.report, config.out)
    with start_embedding(config, workers) as embedding:
        if not embedding.ranks.world.first:
            embedding.help(index, VideoRecords(work / "videos"))
            return None
        return _lead(config, index, work, page, workers, progress, stages, embedding)


def _lead(
    config: CurateConfig,
    index: PacketIndex,
    work: Path,
    page: Path,
    processes: int,
    progress: Progress,
    stages: tuple[Stage, ...],
    embedding: Embedding,
) -> Report:
    with workers_of(config, processes) as workers, _records(work / "videos") as records:
        # This run has the lock: what is left unfinished is that of a killed one.
        written = (path.parent.glob(f".{path.name}.*.tmp") for path in (config.out, page))
        for left_over in chain(work.glob(".*.tmp"), *written):
            left_over.unlink()
        run = _Run(config, index, work, workers, processes, progress, stages, records, embedding)
        if stages != ("report",):  # a report needs no more than the plan
            run.check()
            run.all()
        if "report" in stages:
            shown = run.shown("report")
            notes = make_report(index, config.out, page, work, config.report, records, workers, shown)
            run.report.page, run.report.notes["report"] = page, notes
        return run.report


@contextmanager
def workers_of(config: CurateConfig, processes: int) -> Iterator[Workers]:
    """What looks at videos. Raises CurationError for a Ray that is not installed."""
    if config.engine == "local":
        yield LocalWorkers(processes)
    else:
        with RayWorkers(config.address, processes) as workers:
            yield workers


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
    workers: Workers
    processes: int
    progress: Progress
    stages: tuple[Stage, ...]
    records: VideoRecords
    embedding: Embedding
    report: Report = field(default_factory=Report)
    compared: dict[str, Any] = field(default_factory=dict)
    """Downstream clips that segments were compared with, for the plan's record."""

    @property
    def labels(self) -> Labels:
        """Of the index's videos."""
        videos = self.index.videos
        return Labels(videos.domain, videos.dataset, videos.case)

    def check(self) -> None:
        """What is wrong with options of late stages is said before the first one begins. Raises as `all`."""
        config = self.config
        usable = np.isin(self.index.videos.status, (OK, SEQUENTIAL))
        if "decontaminate" in self.stages and config.decontaminate.videos:
            counted(find_clips(config.decontaminate.videos), config.decontaminate)
        if "cluster" in self.stages:
            device_of(config.cluster)
            levels_for(len(self.index), config.cluster.levels)
        if "balance" in self.stages and usable.any():
            labels = self.labels
            columns = (labels.domain, labels.dataset, labels.case)
            own = Labels(*(list(compress(column, usable)) for column in columns))
            check_options(own, config.balance, config.cluster.within)

    def all(self) -> Report:
        """Runs the stages."""
        config, index, records = self.config, self.index, self.records
        key = segments_key(index, config.segments)
        segments = self._stage(
            "segments",
            key,
            lambda: find_segments(index, config.segments, records, self.workers, self.shown("segments")),
        )
        self.report.segments = len(segments["video"])
        if self.stages == ("segments",):
            return self.report
        key = quality_key(index, segments)
        seen = self._stage(
            "quality",
            key,
            lambda: find_quality(index, segments, records, self.workers, self.shown("quality")),
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
                self.shown("dedup"),
            ),
        )
        if self.stages[-1] == "dedup":
            return self.report
        contaminated = self._contaminated(segments)
        if self.stages[-1] == "decontaminate":
            return self.report
        key = embed_key(index, segments, seen["crop"], self.embedding.identity)
        embedded = self._stage(
            "embed",
            key,
            lambda: embed_segments(
                index, segments, seen["crop"], self.embedding, records, self.workers, self.shown("embed")
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
        outer = outer_levels(self.labels, config.cluster.within)
        innermost = (list(outer.values()) or [np.zeros(len(index), np.int32)])[-1]
        group = innermost[segments["video"]]
        clustered: Arrays = {}
        if config.balance.scheme == "hierarchical" or "cluster" in self.stages:
            key = cluster_key(embedded["vectors"], kept, group, config.cluster, config.seed)
            clustered = self._stage(
                "cluster",
                key,
                lambda: Found(
                    cluster_segments(
                        embedded["vectors"], kept, group, config.cluster, config.seed, self.shown("cluster")
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
        clips = counted(find_clips(config.decontaminate.videos), config.decontaminate)
        downstream = index_downstream(clips, self.work, self.processes)
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
                self.records,
                self.workers,
                config.seed,
                self.shown("decontaminate"),
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

    def shown(self, stage: Stage) -> Callable[[int, int], None]:
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
        config = self.config
        reasons = ["", *sorted(set(why) - {""})]
        number = {text: place for place, text in enumerate(reasons)}
        reason = np.array([number[text] for text in why], np.int32)
        within = config.cluster.within
        weight = segment_weights(segments, reason == 0, self.labels, clusters, config.balance, within)
        outer = outer_levels(self.labels, within if clusters else ("domain",))
        levels: dict[str, NDArray[Any]] = {
            **{name: groups[segments.video] for name, groups in outer.items()},
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
            _record(config, self.embedding) | self.compared,
        )


def _record(config: CurateConfig, embedding: Embedding) -> dict[str, Any]:
    """What a plan was made with: all but where things lie and how many worked. `auto` is what it came to."""
    record = asdict(config)
    record["segments"]["detector"] = choose_detector(config.segments.detector)
    record["embed"] = embedding.identity
    record["cluster"]["device"] = device_of(config.cluster)
    for name in ("stages", "index", "out", "workers", "engine", "address", "report"):
        del record[name]
    for name in ("videos", "go_on"):
        del record["decontaminate"][name]
    return record
