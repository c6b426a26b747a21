"""Ledger of what could not be decoded: one JSON object a line, appended, so that it survives a resume."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from surgrec.loaders.engines.base import ClipFailure

FIELDS = ("time", "sample", "video", "path", "frames", "engine", "reason")


REFUSED = -1
"""Sample of an entry for a whole video that no clip is drawn from."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A clip that could not be decoded, or with sample REFUSED a video that no clip is drawn from.

    `time` is UTC in ISO 8601, `video` the number in the index, `frames` display positions.
    """

    time: str
    sample: int
    video: int
    path: str
    frames: tuple[int, ...]
    engine: str
    reason: str


class Ledger:
    """Appends entries to a file and counts clips by reason, those of earlier runs included. Thread-safe.

    Each entry is one write to a file opened for appending, so that the ranks of a run may share the file, and
    is in the file when record returns; the disk is waited for only on close.
    """

    def __init__(self, path: str | Path) -> None:
        """Open or create `path`. A last line that a crash cut short is closed and not counted.

        Raises OSError where the file cannot be written, ValueError where it holds something else.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        self._reasons: Counter[str] = Counter()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        earlier = read_ledger(self.path) if self.path.exists() else []
        self._reasons.update(entry.reason for entry in earlier if entry.sample != REFUSED)
        self._refused = {(entry.path, entry.reason) for entry in earlier if entry.sample == REFUSED}
        self._file: int | None = os.open(
            self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def record(self, failure: ClipFailure) -> None:
        """Append one clip. Raises ValueError after close."""
        request = failure.request
        with self._lock:
            self._append(
                request.sample, request.video, failure.path, request.frames, failure.engine, failure.reason
            )
            self._reasons[failure.reason] += 1

    def record_refused(self, video: int, path: str, reason: str) -> None:
        """Append a video that no clip is drawn from, once. Raises ValueError after close."""
        with self._lock:
            if (path, reason) not in self._refused:
                self._append(REFUSED, video, path, (), "index", reason)
                self._refused.add((path, reason))

    def _append(
        self, sample: int, video: int, path: str, frames: Sequence[int], engine: str, reason: str
    ) -> None:
        if self._file is None:
            raise ValueError(f"{self.path}: the ledger is closed")
        values = (
            datetime.now(UTC).isoformat(timespec="milliseconds"),
            int(sample),
            int(video),
            path,
            [int(frame) for frame in frames],
            engine,
            reason,
        )
        # ASCII with escapes keeps paths that are no valid UTF-8.
        os.write(self._file, (json.dumps(dict(zip(FIELDS, values, strict=True))) + "\n").encode("ascii"))

    @property
    def count(self) -> int:
        """Clips in the file when it was opened, and those recorded since; refused videos do not count."""
        with self._lock:
            return self._reasons.total()

    def reasons(self) -> list[tuple[str, int]]:
        """Why clips failed and how often, the most frequent reason first."""
        with self._lock:
            return self._reasons.most_common()

    def close(self) -> None:
        """Wait until the entries are on the disk and close the file. May be called again."""
        with self._lock:
            if self._file is not None:
                os.fsync(self._file)
                os.close(self._file)
                self._file = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_ledger(path: str | Path) -> list[LedgerEntry]:
    """All entries of a ledger, oldest first.

    A line that a crash cut short is passed over. Raises ValueError, with the line's number, for any other
    line that is no entry.
    """
    entries = []
    with open(path, encoding="ascii", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                if line.startswith("{") or not line.strip():
                    continue
                raise ValueError(f"{path}, line {number}: no ledger entry; is this a ledger?") from None
            if not isinstance(value, dict) or set(value) != set(FIELDS):
                raise ValueError(
                    f"{path}, line {number}: no ledger entry; its fields are {', '.join(FIELDS)}"
                )
            entries.append(LedgerEntry(**{**value, "frames": tuple(value["frames"])}))
    return entries
