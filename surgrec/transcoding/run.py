"""A run: which proxies must be made, making them, and the manifest of all."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from surgrec.configs.transcode import TranscodeConfig
from surgrec.corpus.discovery import InputError
from surgrec.transcoding.content_area import Area, read_content_areas
from surgrec.transcoding.encoder import CPU_ENCODERS, NVENC_ENCODERS
from surgrec.transcoding.journal import ProxyJournal
from surgrec.transcoding.manifest import MANIFEST_NAME, open_manifest, write_manifest
from surgrec.transcoding.options import ProxyOptions
from surgrec.transcoding.proxy_file import PARTIAL, Task
from surgrec.transcoding.record import ProxyRecord
from surgrec.transcoding.sources import Wanted, find_wanted
from surgrec.transcoding.workers import TranscodeAborted, run_tasks, why_no_encoder

FAILURES_NAME: Final = "failures.jsonl"

Progress = Callable[[float, int], None]


class TranscodeError(RuntimeError):
    """The run cannot begin or go on; the message names cause and remedy. Finished proxies are kept."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A video without a proxy, or whose proxy is not up to date."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did.

    made, unchanged, kept (out of date, but --overwrite never): numbers of videos. bytes and source_bytes: of
    all proxies of this run's videos that are there, and of their sources. encoders: proxies made, by encoder.
    no_nvenc: why NVENC was not used, where it was looked for.
    """

    made: int
    unchanged: int
    kept: int
    failures: list[Failure]
    frames: int
    bytes: int
    source_bytes: int
    seconds: float
    encoders: dict[str, int]
    notes: list[Failure]
    no_nvenc: str

    @property
    def usable(self) -> int:
        return self.made + self.unchanged + self.kept


def transcode(config: TranscodeConfig, progress: Progress | None = None) -> Report:
    """Make the proxies that `config` asks. progress(done, of) counts videos, parts of them included.

    Raises OptionError, InputError, PacketIndexError, ManifestError, FolderBusyError, TranscodeError.
    """
    options = ProxyOptions.of(config)
    out = Path(os.path.abspath(config.out))
    areas = read_content_areas(config.content_area) if config.content_area else {}
    wanted = find_wanted(config)
    unknown = set(areas) - {os.path.realpath(video.path) for video in wanted}
    if areas and len(unknown) == len(areas):
        raise InputError(f"{config.content_area}: none of its {len(areas)} paths is a video of this run")
    journal = ProxyJournal(out / MANIFEST_NAME)
    try:
        journal.open()
    except OSError as error:
        raise TranscodeError(f"{out}: cannot be written: {error.strerror or error}") from error
    try:
        run = _Run(config, out, options, areas, wanted, journal)
        report = run.carry_out(progress)
    except BaseException:
        journal.close()
        raise
    journal.close(remove=True)
    return report


class _Run:
    def __init__(
        self,
        config: TranscodeConfig,
        out: Path,
        options: ProxyOptions,
        areas: dict[str, Area],
        wanted: list[Wanted],
        journal: ProxyJournal,
    ) -> None:
        self._config = config
        self._out = out
        self._options = options
        self._areas = areas
        self._wanted = wanted
        self._journal = journal
        self._failures: list[Failure] = []

    def carry_out(self, progress: Progress | None) -> Report:
        for left_over in self._out.rglob(f".*{PARTIAL}"):
            left_over.unlink(missing_ok=True)
        known = self._known()
        tasks, unchanged, kept = self._plan(known)
        encoder, no_nvenc = self._choose_encoder() if tasks else ("cpu", "")
        workers = self._config.workers or len(os.sched_getaffinity(0))
        spare = max(1, len(os.sched_getaffinity(0)) // max(1, min(workers, len(tasks))))
        index = os.path.abspath(self._config.index) if self._config.index else ""
        ready = [replace(task, encoder=encoder, threads=spare, index=index) for task in tasks]
        made: list[str] = []
        touched: list[str] = []
        total, done = len(self._wanted), len(self._wanted) - len(tasks)
        shares: dict[str, float] = {}

        def tell(path: str = "", share: float = 0.0) -> None:
            if path:
                shares[path] = share
            if progress:
                progress(done + sum(shares.values()), total)

        tell()
        try:
            for answer in run_tasks(ready, workers, self._config.timeout, tell):
                shares.pop(answer.task.wanted.path, None)
                done += 1
                if answer.kind == "failed":
                    self._fail(answer.task.wanted.path, answer.reason)
                else:
                    (made if answer.kind == "made" else touched).append(answer.task.wanted.proxy)
                tell()
        except TranscodeAborted as error:
            raise TranscodeError(
                f"{error}. Free some space, or make the folder writable, and run the same command again: "
                "it resumes."
            ) from error
        return self._finish(made, unchanged + len(touched), kept, set(touched), no_nvenc)

    def _known(self) -> dict[str, ProxyRecord]:
        """Records of earlier runs by proxy; those of a run that was killed go before the manifest's."""
        records: dict[str, ProxyRecord] = {}
        if (self._out / MANIFEST_NAME).exists():
            manifest = open_manifest(self._out)
            records = {record.proxy: record for record in map(manifest.record, range(len(manifest)))}
        records |= {record.proxy: record for record in self._journal.records()}
        return {name: record for name, record in records.items() if _is_there(self._out, record)}

    def _plan(self, known: dict[str, ProxyRecord]) -> tuple[list[Task], int, int]:
        """(tasks, videos that are up to date, videos that are out of date and stay)."""
        tasks: list[Task] = []
        unchanged = kept = 0
        names: dict[str, str] = {}
        for wanted in self._wanted:
            # Some file systems do not tell upper from lower case.
            other = names.setdefault(wanted.proxy.casefold(), wanted.path)
            if other != wanted.path:
                self._fail(
                    wanted.path, f"its proxy would have the name of that of {other}; rename one of the two"
                )
                continue
            options = self._options_of(wanted)
            record = known.get(wanted.proxy)
            same_options = record is not None and record.values["options_digest"] == options.digest
            digest = ""
            if record is not None and same_options and self._config.overwrite != "all":
                state = _source_state(record, wanted.path)
                if state == "same":
                    unchanged += 1
                    continue
                digest = record.values["source_xxh3"] if state == "perhaps" else ""
            if self._config.overwrite == "never" and (self._out / wanted.proxy).exists():
                kept += 1
                continue
            tasks.append(Task(wanted, str(self._out), options, "cpu", known_digest=digest))
        return tasks, unchanged, kept

    def _options_of(self, wanted: Wanted) -> ProxyOptions:
        area = self._areas.get(os.path.realpath(wanted.path))
        return self._options if area is None else replace(self._options, area=area)

    def _choose_encoder(self) -> tuple[str, str]:
        """(cpu or nvenc, why not nvenc where it was looked for): one that was seen to work here."""
        no_nvenc = ""
        if self._options.encoder != "cpu":
            no_nvenc = why_no_encoder(NVENC_ENCODERS[self._options.codec], self._options)
            if not no_nvenc:
                return "nvenc", ""
            if self._options.encoder == "nvenc":
                raise TranscodeError(
                    f"--encoder nvenc: NVENC cannot be used here ({no_nvenc}). Take --encoder auto or cpu."
                )
        problem = why_no_encoder(CPU_ENCODERS[self._options.codec], self._options)
        if problem:
            raise TranscodeError(f"{problem}. Look at --preset and --quality, or take another --codec.")
        return "cpu", no_nvenc

    def _fail(self, path: str, reason: str) -> None:
        """Remember a failure, and append it to failures.jsonl at once: a run may be killed."""
        self._failures.append(Failure(path, reason))
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        # ASCII with escapes keeps paths that are no valid UTF-8.
        line = json.dumps({"time": time, "path": path, "reason": reason}) + "\n"
        try:
            with (self._out / FAILURES_NAME).open("a", encoding="ascii") as file:
                file.write(line)
        except OSError as error:
            raise TranscodeError(
                f"{self._out / FAILURES_NAME}: {error.strerror or error}. Free some space, or make the "
                "folder writable, and run the same command again: it resumes."
            ) from error

    def _finish(self, made: list[str], unchanged: int, kept: int, touched: set[str], no_nvenc: str) -> Report:
        records = self._known()
        for name in touched & set(records):
            # The content is the same, the time of change is not: the next run need not read it again.
            path = records[name].values["source"]
            records[name] = records[name].with_values(source_mtime_ns=os.stat(path).st_mtime_ns)
        labels = {wanted.proxy: wanted for wanted in self._wanted}
        for name in set(labels) & set(records):
            now = labels[name]
            records[name] = records[name].with_values(
                dataset=now.dataset, domain=now.domain, case=now.case, split=now.split
            )
        try:
            write_manifest(self._out, [records[name] for name in sorted(records)])
        except (OSError, RuntimeError) as error:  # h5py reports failed writes as either
            raise TranscodeError(
                f"{self._out / MANIFEST_NAME}: cannot be written: {error}. The proxies are kept; free some "
                "space and run the same command again."
            ) from error
        mine = [records[name].values for name in labels if name in records]
        fresh = [records[name].values for name in made if name in records]
        return Report(
            made=len(made),
            unchanged=unchanged,
            kept=kept,
            failures=self._failures,
            frames=sum(v["frame_count"] for v in mine),
            bytes=sum(v["bytes"] for v in mine),
            source_bytes=sum(v["source_bytes"] for v in mine),
            seconds=sum(_seconds(records[name]) for name in labels if name in records),
            encoders=dict(Counter(v["encoder"] for v in fresh)),
            notes=[Failure(v["source"], v["note"]) for v in fresh if v["note"]],
            no_nvenc=no_nvenc,
        )


def _seconds(record: ProxyRecord) -> float:
    last = int(record.time[-1]) if len(record.time) else 0
    return last * record.values["time_base_num"] / record.values["time_base_den"]


def _is_there(out: Path, record: ProxyRecord) -> bool:
    """Whether the proxy of a record is on disk as the record describes it."""
    try:
        status = (out / record.proxy).stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (record.values["bytes"], record.values["mtime_ns"])


def _source_state(record: ProxyRecord, path: str) -> str:
    """Whether the source is the one that the proxy was made of: "same", "perhaps" (another time of change
    only), or "other"."""
    try:
        status = os.stat(path)
    except OSError:
        return "other"
    if status.st_size != record.values["source_bytes"]:
        return "other"
    return "same" if status.st_mtime_ns == record.values["source_mtime_ns"] else "perhaps"
