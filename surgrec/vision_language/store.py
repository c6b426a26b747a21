"""What was asked and answered: an append-only file of JSON lines, for one split, model and set of options.

The first line says of what the file is; each later one is a question with its reply, or why there is none.
A line is whole or not there: one that a killed run left torn at the end is cut off by the next run. Of
several lines of one question the last one counts.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from surgrec.loaders.whole_file import sync
from surgrec.vision_language.backend import UNREADABLE
from surgrec.vision_language.records import Asked, Question, Way
from surgrec.vision_language.stored_lines import StoreError, asked_of, line_of, object_of, text_of

FORMAT_NAME: Final = "surgrec-vlm-answers"
FORMAT_VERSION: Final = 1
SYNC_SECONDS: Final = 2.0
"""A power failure loses the answers of so many seconds at most; a killed run loses none."""

Place = tuple[int | None, str, str, tuple[int, ...], Way]
"""What there is one answer for: row, prompt, style, order, way."""


@dataclass(frozen=True)
class About:
    """What a store is of. model: as --model has it. settings: of the backend and the pictures, what decides
    the answers, as plain values."""

    dataset: str
    manifest_digest: str
    split: str
    model: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """A line: the key of its content, the seconds that it took of the run, and what it says."""

    key: str
    seconds: float
    asked: Asked


def place_of(question: Question, way: Way) -> Place:
    """The place of a question."""
    return question.row, question.prompt, question.style, question.order, way


def read_answers(path: Path) -> tuple[About, list[Asked]]:
    """What a store is of, and the last line of each question, in the order in which they were first asked; a
    torn line at the end is none. Raises StoreError naming file, line, cause and remedy."""
    about, kept, _ = _read(path)
    return about, [line.asked for line in kept.values()]


class AnswerStore:
    """A store that a run adds to. Use it in a `with` statement; several threads may add."""

    def __init__(self, path: Path, about: About) -> None:
        self.path, self.about = path, about
        self.kept: dict[Place, Kept] = {}
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        """Raises StoreError where the file is of something else, or another run has it, OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(
                    f"{self.path}: another run is writing it; wait for it, or choose another --out"
                ) from error
            if not os.fstat(self._file).st_size:
                self._write(_header(self.about))
                sync(self.path.parent)
            else:
                self._take_over()
        except BaseException:
            os.close(self._file)
            raise
        self._last = self._synced = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)

    def settled(self, question: Question, way: Way, key: str) -> bool:
        """Whether a question needs no asking. One that failed for the clip's sake is looked at again.

        Raises StoreError where it was answered with another wording or another file of its clip.
        """
        line = self.kept.get(place_of(question, way))
        if line is None or (line.asked.reply is None and line.key != key):
            return False
        if line.key != key:
            changed = "its wording" if line.asked.question != question else "the video"
            where = "the grey picture" if question.row is None else f"row {question.row}"
            raise StoreError(
                f"{self.path}: prompt {question.prompt!r} of {where} was answered already, and {changed} has"
                " changed since; choose another --out, or give the prompt another name"
            )
        failure = line.asked.failure
        return not failure or not (line.asked.passes or failure.startswith(UNREADABLE))

    def add(self, asked: Asked, key: str) -> None:
        """Appends an answer; a killed process has lost nothing once this returns. A failure that stands there
        already is not repeated. Raises OSError."""
        with self._guard:
            place = place_of(asked.question, asked.way)
            before = self.kept.get(place)
            if before is not None and before.key == key and asked.failure and before.asked == asked:
                return
            now = time.monotonic()
            kept = Kept(key, round(now - self._last, 6), asked)
            self._write(line_of(kept.key, kept.seconds, asked))
            self._last = now
            self.kept[place] = kept
            if now - self._synced > SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = now

    def begin(self) -> None:
        """Asking begins now: the seconds of the first answer are counted from here."""
        self._last = time.monotonic()

    def _take_over(self) -> None:
        found, self.kept, whole = _read(self.path)
        differs = [
            name
            for name, value in _plain(self.about).items()
            if name != "settings" and value != _plain(found)[name]
        ]
        for name in {**self.about.settings, **found.settings}:
            mine, theirs = self.about.settings.get(name), found.settings.get(name)
            if mine != theirs:
                differs.append(f"{name} ({theirs} there, {mine} now)")
        if differs:
            raise StoreError(
                f"{self.path}: holds answers of {found.model} on {found.dataset}, {found.split}; these"
                " differ:"
                f" {', '.join(differs)}. Choose another --out"
            )
        os.ftruncate(self._file, whole)

    def _write(self, line: str) -> None:
        """A line, or nothing."""
        size, data = os.fstat(self._file).st_size, line.encode("ascii")
        try:
            written = os.write(self._file, data)
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError as error:
            os.ftruncate(self._file, size)
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def _plain(about: About) -> dict[str, Any]:
    """As JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(about)))
    return plain


def _header(about: About) -> str:
    return json.dumps({"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **_plain(about)}) + "\n"


def _read(path: Path) -> tuple[About, dict[Place, Kept], int]:
    """What the store is of, its lines by place, and the length of those that are whole."""
    kept: dict[Place, Kept] = {}
    about: About | None = None
    whole = 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # a killed run left it torn
                whole += len(line)
                try:
                    document = json.loads(line.decode("utf-8"))
                    if about is None:
                        about = _about(document)
                        continue
                    key, seconds, asked = asked_of(document)
                except (ValueError, RecursionError) as error:
                    raise StoreError(
                        f"{path}, line {number}: {error}; "
                        + ("choose another --out" if about is None else "delete the line and run again")
                    ) from error
                kept[place_of(asked.question, asked.way)] = Kept(key, seconds, asked)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    if about is None:
        raise StoreError(f"{path}: holds no whole line; remove it, or choose another --out")
    return about, kept, whole


def _about(document: Any) -> About:
    if not isinstance(document, dict) or document.get("format") != FORMAT_NAME:
        raise StoreError(f"not a store of answers (no `format` {FORMAT_NAME!r})")
    if document.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"format version {document.get('format_version')!r}, this program reads {FORMAT_VERSION}"
        )
    dataset, digest, split, model = (
        text_of(document, name) for name in ("dataset", "manifest_digest", "split", "model")
    )
    return About(dataset, digest, split, model, object_of(document.get("settings"), "settings"))
