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


def check_workers(workers: int, timeout: float) -> None:
    """Raises InputError for a number of processes, or of seconds for a file, that makes no sense."""
    if workers < 0:
        raise InputError(f"--workers is {workers}; 0 takes the cores of this machine")
    if not timeout > 0:
        raise InputError(f"--timeout is {timeout:g}; a file needs more than 0 seconds")


def find_entries(
    inputs: Iterable[str],
    manifest: Path | None = None,
    dataset: str = "",
    domain: str = "",
    remarks: list[str] | None = None,
) -> list[Entry]:
    """All videos that the inputs and the manifest name, each once, in their order, folders sorted by name.

    The manifest's labels go before others. `dataset` and `domain` fill in what it leaves open; the data set
    is otherwise the first folder below the input, the case the file's name without its ending. `remarks`
    takes what was passed over: folders below the inputs that cannot be read, columns and rows of the
    manifest. Raises InputError where an input is missing or holds no video.
    """
    remarks = [] if remarks is None else remarks
    found: dict[str, Entry] = {}
    if manifest is not None:
        again = []
        for entry in read_manifest(manifest, dataset, domain, remarks):
            if found.setdefault(os.path.realpath(entry.path), entry) != entry:
                again.append(entry.path)
        if again:
            remarks.append(
                f"{manifest}: {len(again)} rows name a video of an earlier row with other labels, which were "
                f"passed over; the first is {again[0]}"
            )
    for text in inputs:
        for path, default in _expand(text, remarks):
            entry = Entry(path, dataset or default, domain, Path(path).stem)
            found.setdefault(os.path.realpath(path), entry)
    if not found:
        raise InputError("nothing to index: name a folder, a file, a glob pattern or --manifest TABLE")
    return list(found.values())


def read_manifest(
    table: Path, dataset: str = "", domain: str = "", remarks: list[str] | None = None
) -> list[Entry]:
    """Entries of a CSV or Parquet table with a column `path`; other columns than the labels are ignored.

    Names of columns may be in capitals and have spaces around them. A file that a row names need not exist:
    indexing says so in its row. `remarks` takes what was ignored. Raises InputError where the table is
    missing, malformed or has no path in a row.
    """
    if not table.is_file():
        raise InputError(f"{table}: no such manifest; check the path")
    parquet = table.suffix.lower() in (".parquet", ".pq")
    names, rows = _parquet_rows(table) if parquet else csv_rows(table)
    ignored = [name for name in names if name not in ("path", *LABELS)]
    if ignored and remarks is not None:
        remarks.append(f"{table}: columns ignored: {', '.join(ignored)}; known are path, {', '.join(LABELS)}")
    folder = Path(os.path.abspath(table)).parent
    entries = []
    for number, row in enumerate(rows, 1):
        text = (row.get("path") or "").strip()
        if not text:
            raise InputError(f"{table}: row {number} has no path; the table needs a column `path`")
        if any("\0" in (row.get(name) or "") for name in ("path", *LABELS)):
            raise InputError(f"{table}: row {number} holds a NUL character; write the table again without it")
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


Rows = list[dict[str, str]]


def csv_rows(table: Path) -> tuple[list[str], Rows]:
    """Names of the columns of a CSV table with a column `path`, in small letters, and its rows. Raises
    InputError where it is malformed."""
    try:
        # utf-8-sig: spreadsheets write a byte-order mark.
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            names = [name.strip().lower() for name in next(reader, [])]
            _check_names(table, names)
            rows = []
            for cells in filter(None, reader):
                if len(cells) > len(names):
                    raise InputError(
                        f"{table}: line {reader.line_num} has {len(cells)} cells, the table {len(names)} "
                        f"columns; put names that hold a comma in quotes"
                    )
                rows.append(dict(zip(names, cells, strict=False)))
            return names, rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: not a CSV table in UTF-8 ({error})") from error


def _parquet_rows(table: Path) -> tuple[list[str], Rows]:
    """As `csv_rows`."""
    import pyarrow
    import pyarrow.parquet

    try:
        content = pyarrow.parquet.ParquetFile(table)
        names = [name.strip().lower() for name in content.schema_arrow.names]
        _check_names(table, names)
        wanted = [
            stored
            for stored, name in zip(content.schema_arrow.names, names, strict=True)
            if name in ("path", *LABELS)
        ]
        rows = content.read(columns=wanted).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{table}: not a Parquet table ({error})") from error
    return names, [{name.strip().lower(): _text(table, value) for name, value in row.items()} for row in rows]


def _check_names(table: Path, names: list[str]) -> None:
    if "path" not in names:
        raise InputError(
            f"{table}: no column `path` among {', '.join(names) or 'no columns'}; expected path, "
            f"{', '.join(LABELS)}"
        )
    twice = sorted({name for name in names if names.count(name) > 1} & {"path", *LABELS})
    if twice:
        raise InputError(f"{table}: more than one column is called {', '.join(twice)}")


def _text(table: Path, value: object) -> str:
    """A cell of a Parquet table."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{table}: a cell holds bytes that are no UTF-8 text ({error})") from error
    return "" if value is None else str(value)


def _expand(text: str, remarks: list[str]) -> Iterator[tuple[str, str]]:
    """(absolute path, default data set) of each video that one input names."""
    plain = Path(text).expanduser()
    if plain.is_dir():
        yield from _folder(plain, remarks)
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
                yield from _folder(match, remarks)
    else:
        raise InputError(f"{text}: no such file or folder; check the path, and that the disk is mounted")


def _file(path: Path) -> tuple[str, str]:
    absolute = os.path.abspath(path)
    return absolute, Path(absolute).parent.name


def _folder(root: Path, remarks: list[str]) -> Iterator[tuple[str, str]]:
    absolute = Path(os.path.abspath(root))
    if not os.access(absolute, os.R_OK | os.X_OK):
        raise InputError(f"{root}: no permission to read this folder")
    count = 0
    for path in _walk(absolute, remarks):
        below = path.relative_to(absolute).parts
        count += 1
        yield str(path), below[0] if len(below) > 1 else absolute.name
    if count == 0:
        raise InputError(
            f"{root}: no video file in this folder or below it; files of another ending than the usual ones "
            "(.mp4, .mkv, .avi, .mpg, ...) must be named one by one or by a pattern"
        )


def _walk(root: Path, remarks: list[str]) -> Iterator[Path]:
    """Video files below `root`, sorted; links to folders are followed, each folder once."""
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        cause = f"this folder cannot be read ({error.strerror})"
        remarks.append(f"{error.filename}: left out, {cause}; allow it, and index again")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield Path(folder) / name
