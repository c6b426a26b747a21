"""From a list of videos to `corpus.h5`: scan what is new, keep what did not change, mark what is gone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

import surgrec
from surgrec.corpus.discovery import LABELS, Entry
from surgrec.corpus.journal import Journal
from surgrec.corpus.workers import Done, Job, ScanAborted, run_jobs
from surgrec.loaders.index_writer import Packets, Row, Source, default_values, write_index
from surgrec.loaders.packet_index import (
    ERROR,
    NUMBER_COLUMNS,
    PACKET_COLUMNS,
    REMOVED,
    STATUS_NAMES,
    TEXT_COLUMNS,
    OtherVersionError,
    PacketIndex,
    PacketIndexError,
)
from surgrec.loaders.packet_scan import SCANNER_VERSION, WHOLE_DIGEST_BYTES, Scanned, failed_scan

BYTES_PER_PACKET: Final = 33  # offset, size, pts, rank, flags, checksum, display
BYTES_PER_VIDEO: Final = 4096


class BuildError(RuntimeError):
    """The index could not be written; the message names the cause and the remedy. The journal is kept."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A video that is not fully usable, or of which something is to be noted (status OK)."""

    path: str
    status: int
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did. `counts` by status name; packets, frames and hours of what can be decoded."""

    counts: dict[str, int]
    scanned: int
    reused: int
    packets: int
    frames: int
    hours: float
    problems: list[Problem]
    written: bool
    digest: str

    @property
    def usable(self) -> int:
        return self.counts["OK"] + self.counts["SEQUENTIAL"]


def build_index(
    entries: Sequence[Entry],
    out: Path,
    workers: int = 0,
    timeout: float = 600.0,
    verify: bool = False,
    rescan: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Index `entries` into `out`. progress(done, of) is called after each file.

    verify: whether FFmpeg decodes all of each of their videos once; what an earlier run verified is not
    decoded again. rescan: whether they are scanned even where nothing about them seems to have changed.

    Videos keep their numbers from run to run: rows of an earlier index come first, in their order, new ones
    behind them. Raises BuildError, JournalBusyError, OSError.
    """
    out = Path(os.path.abspath(out))
    old = _open_old(out)
    try:
        journal = Journal(out).open()
    except OSError as error:
        raise BuildError(f"{out}: cannot be written: {error.strerror or error}") from error
    try:
        report = _build(list(entries), out, old, journal, workers, timeout, verify, rescan, progress)
    except BaseException:
        journal.close()
        raise
    journal.close(remove=True)
    return report


def _open_old(out: Path) -> PacketIndex | None:
    """The index of an earlier run, None where it is of another format version: that one is replaced."""
    if not out.exists():
        return None
    try:
        return PacketIndex.open(out)
    except OtherVersionError:
        return None
    except PacketIndexError as error:
        raise BuildError(
            f"{out}: this file is no index that can be read, and is left as it is ({error.cause}). "
            "Move it away, or choose another --out."
        ) from error


def _build(
    entries: list[Entry],
    out: Path,
    old: PacketIndex | None,
    journal: Journal,
    workers: int,
    timeout: float,
    verify: bool,
    rescan: bool,
    progress: Callable[[int, int], None] | None,
) -> Report:
    numbers = {path: number for number, path in enumerate(old.videos.path)} if old else {}
    current = old is not None and old.scanner_version == SCANNER_VERSION
    known = {path: _old_row(old, number) for path, number in numbers.items()} if old else {}
    wanted = {entry.path: entry for entry in entries}
    paths = list(known) + [path for path in wanted if path not in known]
    recorded = {row.path: row for row in journal.rows()}
    fresh: dict[str, Row] = {}
    reused: dict[str, Row] = {}
    jobs = []
    unseen: dict[str, str] = {}
    for path in paths:
        gone = False
        try:
            status = _stat(path)
            gone = status is None
        except OSError as error:
            if current and path in known and known[path].values["status"] not in (ERROR, REMOVED):
                unseen[path] = (
                    f"cannot be looked at ({error.strerror}), check disk and permissions; its row is kept"
                )
                reused[path] = known[path]
                continue
            status = None
        if gone and path in known and (known[path].values["status"] != ERROR or path not in wanted):
            continue
        checked = verify and path in wanted
        trusted = known.get(path) if current and not (rescan and path in wanted) else None
        if path in recorded and _same_time(recorded[path], status, checked):
            fresh[path] = recorded[path]
        elif trusted is not None and _same_time(trusted, status, checked):
            reused[path] = trusted
        else:
            size = status.st_size if status else 0
            jobs.append(Job(path, _telling_digest(trusted, size, checked), size, checked))
    total, done = len(paths), len(fresh) + len(reused)
    if progress:
        progress(done, total)
    try:
        for answer in run_jobs(jobs, out, workers or len(os.sched_getaffinity(0)), timeout):
            if answer.crash:
                journal.write(_what_is_left(journal, answer))
            if answer.unchanged:
                status = os.stat(answer.path)
                row = known[answer.path]
                reused[answer.path] = Row(row.values | {"mtime_ns": status.st_mtime_ns}, row.extradata)
            else:
                found = journal.row(answer.path)
                if found is None:
                    raise BuildError(
                        f"{journal.folder}: the record of {answer.path} is gone; run the index again"
                    )
                fresh[answer.path] = found
            done += 1
            if progress:
                progress(done, total)
    except ScanAborted as error:
        raise BuildError(f"{error}. Free some space and run the same command again: it resumes.") from error
    except OSError as error:
        raise BuildError(
            f"{journal.folder}: {error.strerror or error}. Run the same command again: it resumes."
        ) from error
    sources = []
    for path in paths:
        row = fresh.get(path) or reused.get(path) or _removed(known[path])
        sources.append(
            _source(_labelled(row, wanted.get(path), known.get(path)), path, fresh, old, numbers, journal)
        )
    same = old is not None and current and [s.row for s in sources] == list(known.values())
    same = same and all(_same_packets(old, numbers[path], journal.packets(path)) for path in fresh)
    digest = old.digest if same and old else _write(out, sources)
    return _report(sources, len(fresh), len(reused), not same, digest, unseen)


def _stat(path: str) -> os.stat_result | None:
    """None for a file that is gone. Raises OSError where the system does not say."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _usable(row: Row, verify: bool) -> bool:
    """Whether a scan that this row came from is as good as a new one."""
    return row.values["status"] not in (ERROR, REMOVED) and row.values["verified"] >= verify


def _same_time(row: Row, status: os.stat_result | None, verify: bool) -> bool:
    """Whether size and time of change are those of the row. Files that failed are always tried again."""
    if status is None or not _usable(row, verify):
        return False
    return (row.values["file_size"], row.values["mtime_ns"]) == (status.st_size, status.st_mtime_ns)


def _telling_digest(row: Row | None, size: int, verify: bool) -> str:
    """The digest by which a file of another time of change is known to be the one of the row, or nothing.

    That of a large file is of samples, so that a sound copy of a damaged one may have it, too.
    """
    if row is None or row.values["file_size"] != size or not _usable(row, verify):
        return ""
    if size > WHOLE_DIGEST_BYTES and (verify or row.values["note"] or row.values["reason"]):
        return ""
    return str(row.values["xxh3"])


def _what_is_left(journal: Journal, answer: Done) -> Scanned:
    """The record of a file whose worker died or was killed: its scan, where only verifying it failed."""
    found = journal.row(answer.path)
    with suppress(OSError):
        if found is not None and not _same_time(found, _stat(answer.path), False):
            found = None
    if found is None:
        return failed_scan(answer.path, answer.crash)
    note = "; ".join(filter(None, (found.values["note"], f"not verified: {answer.crash}")))
    return Scanned(Row(found.values | {"note": note}, found.extradata), journal.packets(answer.path))


def _old_row(old: PacketIndex, number: int) -> Row:
    table = old.videos
    values: dict[str, Any] = {name: getattr(table, name)[number] for name in TEXT_COLUMNS}
    for name, kind in NUMBER_COLUMNS.items():
        if not name.endswith("_start"):
            value = getattr(table, name)[number]
            values[name] = float(value) if kind == "f8" else int(value)
    return Row(values, old.video(number).extradata)


def _removed(row: Row) -> Row:
    """The row of a file that is gone: labels and description stay, packets go."""
    if row.values["status"] == REMOVED:
        return row
    kept = ("path", *LABELS, "codec", "container", "file_size", "mtime_ns", "xxh3")
    values = default_values(row.path) | {name: row.values[name] for name in kept}
    return Row(values | {"status": REMOVED, "reason": "the file is gone since the last run"})


def _labelled(row: Row, entry: Entry | None, known: Row | None) -> Row:
    if entry is not None:
        labels = {name: getattr(entry, name) for name in LABELS}
    elif known is not None:
        labels = {name: known.values[name] for name in LABELS}
    else:
        return row
    return Row(row.values | labels, row.extradata)


def _source(
    row: Row,
    path: str,
    fresh: dict[str, Row],
    old: PacketIndex | None,
    numbers: dict[str, int],
    journal: Journal,
) -> Source:
    if row.values["packet_count"] == 0:
        return Source(row)
    if path in fresh:
        return Source(row, lambda: journal.packets(path))
    assert old is not None
    opened, number = old, numbers[path]
    return Source(row, lambda: _old_packets(opened, number))


def _old_packets(old: PacketIndex, number: int) -> Packets:
    part = old.packets(number)
    return Packets(
        **{name: getattr(old, name)[part] for name in PACKET_COLUMNS},
        display=old.frames(number),
    )


def _same_packets(old: PacketIndex | None, number: int, packets: Packets) -> bool:
    assert old is not None
    before = _old_packets(old, number)
    return all(np.array_equal(getattr(before, f.name), getattr(packets, f.name)) for f in fields(packets))


def _write(out: Path, sources: list[Source]) -> str:
    packets = sum(source.row.values["packet_count"] for source in sources)
    needed = packets * BYTES_PER_PACKET + len(sources) * BYTES_PER_VIDEO
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise BuildError(
            f"{out}: the disk has {free / 1e9:.2f} GB left, the index needs {needed / 1e9:.2f} GB. "
            "Free some space and run the same command again: the scans are kept."
        )
    attributes = {"surgrec_version": surgrec.__version__}
    try:
        return write_index(out, sources, attributes, SCANNER_VERSION)
    except (OSError, RuntimeError) as error:  # h5py reports failed writes as either
        raise BuildError(
            f"{out}: cannot be written: {error}. Run the same command again: the scans are kept."
        ) from error


def _report(
    sources: list[Source], scanned: int, reused: int, written: bool, digest: str, unseen: dict[str, str]
) -> Report:
    counts = dict.fromkeys(STATUS_NAMES, 0)
    packets = frames = 0
    hours = 0.0
    problems = []
    for source in sources:
        values = source.row.values
        counts[STATUS_NAMES[values["status"]]] += 1
        packets += values["packet_count"]
        frames += values["frame_count"]
        hours += values["duration"] / 3600
        remarks = "; ".join(filter(None, (unseen.get(values["path"]), values["reason"], values["note"])))
        if remarks:
            problems.append(Problem(values["path"], values["status"], remarks))
    return Report(counts, scanned, reused, packets, frames, hours, problems, written, digest)
