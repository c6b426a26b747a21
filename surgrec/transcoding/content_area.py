"""Table of the rectangle of each video that is kept: columns path, top, left, height, width."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, Final

from surgrec.corpus.discovery import InputError

EDGES: Final = ("top", "left", "height", "width")

Area = tuple[int, int, int, int]


def read_content_areas(table: Path) -> dict[str, Area]:
    """Absolute real path -> (top, left, height, width), in pixels of the upright stored picture.

    Paths are relative to the table, which is CSV, or Parquet by its ending. Raises InputError.
    """
    if not table.is_file():
        raise InputError(f"{table}: no such table of content areas")
    rows = _parquet(table) if table.suffix.lower() in (".parquet", ".pq") else _csv(table)
    folder = Path(os.path.abspath(table)).parent
    areas: dict[str, Area] = {}
    for number, row in enumerate(rows, 1):
        try:
            text = str(row["path"]).strip()
            area = tuple(_whole(row[name]) for name in EDGES)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{table}: row {number} needs path, {', '.join(EDGES)}; whole numbers but the path ({error})"
            ) from error
        path = os.path.realpath(folder / Path(text).expanduser())
        rectangle = (area[0], area[1], area[2], area[3])
        if areas.setdefault(path, rectangle) != rectangle:
            raise InputError(f"{table}: row {number} gives {text} a second rectangle")
    return areas


def _whole(value: Any) -> int:
    number = float(value)
    if number != int(number):
        raise ValueError(f"{value} is not a whole number")
    return int(number)


def _csv(table: Path) -> list[dict[str, Any]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: not a CSV table in UTF-8 ({error})") from error


def _parquet(table: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(table).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{table}: not a Parquet table ({error})") from error
    return rows
