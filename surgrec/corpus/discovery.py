"""Which videos are meant: folders, files, globs and manifests -> paths with labels."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

EXTENSIONS: Final = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".mkv",
        ".webm",
        ".avi",
        ".divx",
        ".mpg",
        ".mpeg",
        ".mpe",
        ".m1v",
        ".m2v",
        ".vob",
        ".ts",
        ".mts",
        ".m2ts",
        ".m2t",
        ".mxf",
        ".wmv",
        ".asf",
        ".flv",
        ".f4v",
        ".ogv",
        ".ogm",
        ".3gp",
        ".3g2",
        ".dv",
        ".rm",
        ".rmvb",
        ".y4m",
        ".h264",
        ".264",
        ".avc",
        ".h265",
        ".265",
        ".hevc",
        ".ivf",
        ".obu",
        ".mjpeg",
        ".mjpg",
        ".nut",
    ]
)
"""What is taken from a folder. A file named outright is taken whatever its name ends in."""
LABELS: Final = ("dataset", "domain", "case", "split")


class InputError(ValueError):
    """An input that is missing, empty or malformed; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A video to index: absolute path and labels."""

    path: str
    dataset: str
    domain: str = ""
    case: str = ""
    split: str = ""


def find_entries(
    inputs: Iterable[str], manifest: Path | None = None, dataset: str = "", domain: str = ""
) -> list[Entry]:
    """All videos that the inputs and the manifest name, each once, in their order, folders sorted by name.

    The manifest's labels go before others. `dataset` and `domain` fill in what it leaves open; the data set
    is otherwise the first folder below the input, the case the file's name without its ending. Raises
    InputError where an input is missing or holds no video.
    """
    found: dict[str, Entry] = {}
    if manifest is not None:
        for entry in read_manifest(manifest, dataset, domain):
            found.setdefault(os.path.realpath(entry.path), entry)
    for text in inputs:
        for path, default in _expand(text):
            entry = Entry(path, dataset or default, domain, Path(path).stem)
            found.setdefault(os.path.realpath(path), entry)
    if not found:
        raise InputError("nothing to index: name a folder, a file, a glob pattern or --manifest TABLE")
    return list(found.values())


def read_manifest(table: Path, dataset: str = "", domain: str = "") -> list[Entry]:
    """Entries of a CSV or Parquet table with a column `path`; other columns than the labels are ignored.

    A file that a row names need not exist: indexing says so in its row. Raises InputError where the table is
    missing, malformed or has no path in a row.
    """
    if not table.is_file():
        raise InputError(f"{table}: no such manifest; check the path")
    rows = _parquet_rows(table) if table.suffix.lower() in (".parquet", ".pq") else _csv_rows(table)
    folder = Path(os.path.abspath(table)).parent
    entries = []
    for number, row in enumerate(rows, 1):
        text = (row.get("path") or "").strip()
        if not text:
            raise InputError(f"{table}: row {number} has no path; the table needs a column `path`")
        path = os.path.abspath(folder / Path(text).expanduser())
        labels = {name: (row.get(name) or "").strip() for name in LABELS}
        entries.append(
            Entry(
                path,
                labels["dataset"] or dataset or Path(path).parent.name,
                labels["domain"] or domain,
                labels["case"] or Path(path).stem,
                labels["split"],
            )
        )
    if not entries:
        raise InputError(f"{table}: the manifest has no rows")
    return entries


def _csv_rows(table: Path) -> list[dict[str, str]]:
    try:
        # utf-8-sig: spreadsheets write a byte-order mark.
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "path" not in (reader.fieldnames or ()):
                raise InputError(
                    f"{table}: no column `path` among {', '.join(reader.fieldnames or ()) or 'no columns'}; "
                    "expected path, dataset, domain, case, split"
                )
            return [{name: value for name, value in row.items() if isinstance(value, str)} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: not a CSV table in UTF-8 ({error})") from error


def _parquet_rows(table: Path) -> list[dict[str, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(table)
        names = [name for name in ("path", *LABELS) if name in file.schema_arrow.names]
        if "path" not in names:
            raise InputError(f"{table}: no column `path` among {', '.join(file.schema_arrow.names)}")
        rows = file.read(columns=names).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{table}: not a Parquet table ({error})") from error
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]


def _expand(text: str) -> Iterator[tuple[str, str]]:
    """(absolute path, default data set) of each video that one input names."""
    plain = Path(text).expanduser()
    if plain.is_dir():
        yield from _folder(plain)
    elif plain.exists() or plain.is_symlink():
        yield _file(plain)
    elif glob.has_magic(text):
        matches = sorted(glob.glob(str(plain), recursive=True))
        if not matches:
            raise InputError(f"{text}: no file matches this pattern")
        count = 0
        for match in map(Path, matches):
            # A pattern such as ** matches folders and what lies in them.
            if match.is_dir():
                continue
            count += 1
            yield _file(match)
        if count == 0:
            for match in map(Path, matches):
                yield from _folder(match)
    else:
        raise InputError(f"{text}: no such file or folder; check the path, and that the disk is mounted")


def _file(path: Path) -> tuple[str, str]:
    absolute = os.path.abspath(path)
    return absolute, Path(absolute).parent.name


def _folder(root: Path) -> Iterator[tuple[str, str]]:
    absolute = Path(os.path.abspath(root))
    if not os.access(absolute, os.R_OK | os.X_OK):
        raise InputError(f"{root}: no permission to read this folder")
    count = 0
    for path in _walk(absolute):
        below = path.relative_to(absolute).parts
        count += 1
        yield str(path), below[0] if len(below) > 1 else absolute.name
    if count == 0:
        raise InputError(
            f"{root}: no video file in this folder or below it; files of another ending than the usual ones "
            "(.mp4, .mkv, .avi, .mpg, ...) must be named one by one or by a pattern"
        )


def _walk(root: Path) -> Iterator[Path]:
    """Video files below `root`, sorted; links to folders are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield Path(folder) / name
