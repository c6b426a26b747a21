"""The manifest of a split: which clip is in train, val or test, with its label and its group."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, get_args

import xxhash

from surgrec.loaders.whole_file import replacing

FORMAT_NAME: Final = "surgrec-split"
FORMAT_VERSION: Final = 1

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

_MAKE_IT: Final = "write it with `python -m surgrec.benchmark import`"


class ManifestError(ValueError):
    """A manifest, or a row of one, that cannot be used; the message names file, cause and remedy."""


@dataclass(frozen=True, slots=True)
class Row:
    """A clip.

    path: of its file, relative to the data root, with forward slashes. label: number of its class. group:
    what must not be in two splits (a patient, an operation, a source video). start, end: seconds [start, end)
    of the file, None for the whole file.
    """

    path: str
    label: int
    split: Split
    group: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class SplitManifest:
    """The clips of a data set and their splits; `rules` says in words what made it."""

    dataset: str
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    rules: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """XXH3-128 over the data set's name, the classes and the rows in their order: 32 hex digits."""
        content = json.dumps([self.dataset, list(self.classes), _plain(self.rows)], separators=(",", ":"))
        return xxhash.xxh3_128_hexdigest(content.encode())

    def of(self, split: Split) -> tuple[Row, ...]:
        """The rows of a split, in their order."""
        return tuple(row for row in self.rows if row.split == split)


def path_fault(path: str) -> str | None:
    """Why a path may not stand in a manifest, None where it may: it must lie below the data root."""
    if not path:
        return "the path is empty"
    if any(character < " " for character in path):
        return "the path holds a control character"
    if not _is_text(path):
        return "the path is not UTF-8"
    if path.startswith(("/", "~")) or PurePosixPath(path).is_absolute():
        return "the path is absolute; paths are relative to the data root"
    if ".." in PurePosixPath(path).parts:
        return "the path leaves the data root by `..`"
    return None


def resolve(root: Path, row: Row) -> Path:
    """The file of a row below the data root; it need not be there.

    Raises ManifestError for an absolute path, for `..`, and for links that lead out of the root.
    """
    fault = path_fault(row.path)
    if fault:
        raise ManifestError(f"{row.path!r}: {fault}; it is refused")
    top = root.expanduser().resolve()
    try:
        found = (top / row.path).resolve()
    except (OSError, RuntimeError) as error:
        raise ManifestError(f"{row.path!r}: links that lead nowhere ({error}); it is refused") from error
    if not found.is_relative_to(top):
        raise ManifestError(f"{row.path!r}: a link leads to {found}, outside of {top}; it is refused")
    return found


def read_manifest(path: Path) -> SplitManifest:
    """Read and check a manifest. Raises ManifestError naming the file, the cause and the remedy."""
    try:
        document = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: no such manifest; check the path, or {_MAKE_IT}") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not a JSON file in UTF-8 ({error}); {_MAKE_IT}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT_NAME:
        raise ManifestError(f"{path}: not a split manifest (no `format` {FORMAT_NAME!r}); {_MAKE_IT}")
    if document.get("format_version") != FORMAT_VERSION:
        raise ManifestError(
            f"{path}: format version {document.get('format_version')!r}, this program reads {FORMAT_VERSION};"
            f" {_MAKE_IT} again"
        )
    try:
        manifest = SplitManifest(
            _text(document.get("dataset"), "dataset"),
            _texts(document.get("classes"), "classes"),
            tuple(_row(number, cells) for number, cells in enumerate(_list(document.get("rows"), "rows"), 1)),
            _texts(document.get("rules"), "rules"),
        )
        check(manifest)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}; {_MAKE_IT} again") from error
    if document.get("digest") != manifest.digest:
        raise ManifestError(
            f"{path}: its digest is {document.get('digest')!r}, its rows have {manifest.digest!r}: it was "
            f"changed by hand or is damaged; {_MAKE_IT} again"
        )
    return manifest


def write_manifest(path: Path, manifest: SplitManifest) -> None:
    """Write a manifest, whole or not at all, a line a row; the same one has the same bytes.

    Raises ManifestError for rows that `read_manifest` would refuse, OSError where it cannot be written.
    """
    check(manifest)
    head = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "dataset": manifest.dataset,
        "classes": list(manifest.classes),
        "rules": list(manifest.rules),
        "digest": manifest.digest,
    }
    lines = ",\n".join(json.dumps(row) for row in _plain(manifest.rows))
    text = json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def check(manifest: SplitManifest) -> None:
    """Raises ManifestError for the first row that cannot be used, or where there is none."""
    if not manifest.dataset:
        raise ManifestError("the data set has no name")
    if not manifest.rows:
        raise ManifestError("the manifest has no rows")
    count = len(manifest.classes)
    for number, row in enumerate(manifest.rows, 1):
        fault = path_fault(row.path) or _span_fault(row)
        if row.split not in SPLITS:
            fault = f"split {row.split!r}; expected {', '.join(SPLITS)}"
        if not 0 <= row.label < count:
            fault = f"label {row.label}, and there are {count} classes, numbered from 0"
        if not row.group or not _is_text(row.group):
            fault = "the group is empty, or not UTF-8"
        if fault:
            raise ManifestError(f"row {number} ({row.path!r}): {fault}")


def _is_text(text: str) -> bool:
    """JSON can hold halves of UTF-16 pairs, which no file name or hash takes."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _span_fault(row: Row) -> str | None:
    start = 0.0 if row.start is None else row.start
    end = math.inf if row.end is None else row.end
    if math.isfinite(start) and 0 <= start < end and (row.end is None or math.isfinite(end)):
        return None
    return f"seconds {row.start} to {row.end} are no clip"


def _plain(rows: Iterable[Row]) -> list[list[Any]]:
    """Rows as JSON lists. Seconds are floats, so that 3 and 3.0 are the same manifest."""
    return [
        [row.path, row.label, row.split, row.group, _seconds(row.start), _seconds(row.end)] for row in rows
    ]


def _seconds(value: float | None) -> float | None:
    return None if value is None else float(value)


def _row(number: int, cells: Any) -> Row:
    if not isinstance(cells, list) or len(cells) != 6:
        raise ManifestError(f"row {number} is not [path, label, split, group, start, end]")
    path, label, split, group, start, end = cells
    texts = all(isinstance(value, str) for value in (path, split, group))
    numbers = all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        for value in (start, end)
    )
    if not texts or not numbers or not isinstance(label, int) or isinstance(label, bool):
        raise ManifestError(f"row {number} is not [path, label, split, group, start, end]: {cells!r}")
    return Row(path, label, split, group, _seconds(start), _seconds(end))


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ManifestError(f"`{name}` is not a list")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ManifestError(f"`{name}` is not a text")
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    return tuple(_text(item, name) for item in _list(value, name))
