"""`proxies.h5`: which source frame every frame of every proxy shows.

    manifest = open_manifest("proxies")
    manifest.source_frame("lap/case7-0a1b2c3d4e5f.mp4", 120)   # path, position, pts, seconds

docs/transcode.md describes the file.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

import surgrec
from surgrec.loaders.whole_file import replacing
from surgrec.transcoding.record import FRAME_COLUMNS, NUMBER_COLUMNS, TEXT_COLUMNS, ProxyRecord

MANIFEST_NAME: Final = "proxies.h5"
TABLE_NAME: Final = "videos.csv"
TABLE_COLUMNS: Final = ("path", "dataset", "domain", "case", "split")
FORMAT_NAME: Final = "surgrec-proxy-manifest"
FORMAT_VERSION: Final = 1
LATER_COLUMNS: Final = {"stack": 1}
"""Columns that older manifests lack, and what holds for their proxies."""


class ManifestError(RuntimeError):
    """The manifest cannot be read; the message names the file, the cause and the remedy."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path}: {cause}. Run `python -m surgrec.transcode` again, or move the file away.")


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """The source of a proxy frame: file, display position in it, pts in units of `time_base` seconds."""

    path: str
    position: int
    pts: int
    time_base: tuple[int, int]

    @property
    def seconds(self) -> float:
        return self.pts * self.time_base[0] / self.time_base[1]


@dataclass(frozen=True, slots=True)
class Manifest:
    """An opened manifest. Frames of proxy number p: [frame_start[p], +columns["frame_count"][p]).

    columns: those of a ProxyRecord by name, lists of str and NumPy arrays, one entry a proxy. position, pts,
    time: int64, one entry a frame, as in ProxyRecord.
    """

    path: Path
    columns: dict[str, Any]
    frame_start: NDArray[np.int64]
    position: NDArray[np.int64]
    pts: NDArray[np.int64]
    time: NDArray[np.int64]
    surgrec_version: str

    def __len__(self) -> int:
        return len(self.columns["proxy"])

    def number(self, proxy: str | Path) -> int:
        """Number of a proxy by its path: as in the manifest, or of the file. Raises KeyError."""
        text = os.fspath(proxy)
        names = self.columns["proxy"]
        if text not in names:
            text = os.path.relpath(os.path.realpath(text), os.path.realpath(self.path.parent))
        if text not in names:
            raise KeyError(f"{self.path} knows no proxy {os.fspath(proxy)}")
        return int(names.index(text))

    def source_frame(self, proxy: int | str | Path, frame: int) -> SourceFrame:
        """What frame number `frame` (display position) of a proxy shows. Raises KeyError, IndexError."""
        number = proxy if isinstance(proxy, int) else self.number(proxy)
        count = int(self.columns["frame_count"][number])
        if not 0 <= frame < count:
            raise IndexError(f"{self.columns['proxy'][number]} has {count} frames, frame {frame} asked")
        at = int(self.frame_start[number]) + frame
        base = tuple(int(self.columns[f"source_time_base_{part}"][number]) for part in ("num", "den"))
        return SourceFrame(
            self.columns["source"][number], int(self.position[at]), int(self.pts[at]), (base[0], base[1])
        )

    def record(self, number: int) -> ProxyRecord:
        """All that is known of one proxy, as plain values."""
        values: dict[str, Any] = {name: self.columns[name][number] for name in TEXT_COLUMNS}
        for name, kind in NUMBER_COLUMNS.items():
            value = self.columns[name][number]
            values[name] = float(value) if kind == "f8" else int(value)
        start = int(self.frame_start[number])
        part = slice(start, start + values["frame_count"])
        return ProxyRecord(values, self.position[part], self.pts[part], self.time[part])


def open_manifest(path: str | Path) -> Manifest:
    """Read the manifest at `path`, or in the folder `path`. Raises ManifestError."""
    path = Path(path)
    if path.is_dir():
        path = path / MANIFEST_NAME
    if not path.is_file():
        raise ManifestError(path, "no such manifest")
    try:
        with h5py.File(path, "r", locking=False) as file:
            found, version = file.attrs.get("format"), int(file.attrs.get("format_version", -1))
            if (found, version) != (FORMAT_NAME, FORMAT_VERSION):
                raise ManifestError(
                    path,
                    f"format {found!r} of version {version}, not {FORMAT_NAME} of version {FORMAT_VERSION}",
                )
            columns: dict[str, Any] = {
                name: [text.decode("utf-8", "surrogateescape") for text in file["proxies"][name][:]]
                for name in TEXT_COLUMNS
            }
            stored = [name for name in NUMBER_COLUMNS if name in file["proxies"] or name not in LATER_COLUMNS]
            columns |= {name: file["proxies"][name][:] for name in stored}
            frames = {name: file["frames"][name][:] for name in FRAME_COLUMNS}
            made_by = str(file.attrs["surgrec_version"])
    except (OSError, KeyError, ValueError) as error:
        raise ManifestError(path, f"damaged, or no HDF5 file ({error})") from error
    counts = columns["frame_count"]
    for name in NUMBER_COLUMNS.keys() - columns.keys():
        columns[name] = np.full(len(counts), LATER_COLUMNS[name], NUMBER_COLUMNS[name])
    if {len(column) for column in frames.values()} != {int(counts.sum())}:
        raise ManifestError(path, "damaged: columns of unequal length")
    starts = np.concatenate(([0], np.cumsum(counts)))[:-1].astype(np.int64)
    return Manifest(path, columns, starts, **frames, surgrec_version=made_by)


def write_manifest(folder: Path, records: Sequence[ProxyRecord]) -> None:
    """Write `proxies.h5` and `videos.csv` in `folder`, each whole or not at all.

    Raises OSError, or RuntimeError: HDF5 reports failed writes as either.
    """
    _write_table(folder / TABLE_NAME, records)
    with (
        replacing(folder / MANIFEST_NAME) as temporary,
        h5py.File(temporary, "w", libver="latest", locking=False) as file,
    ):
        file.attrs["format"] = FORMAT_NAME
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["surgrec_version"] = surgrec.__version__
        file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        group = file.create_group("proxies")
        for name in TEXT_COLUMNS:
            texts = [record.values[name].encode("utf-8", "surrogateescape") for record in records]
            group.create_dataset(name, data=texts, shape=(len(texts),), dtype=h5py.string_dtype())
        for name, kind in NUMBER_COLUMNS.items():
            group.create_dataset(name, data=np.array([record.values[name] for record in records], kind))
        frames = file.create_group("frames")
        for name in FRAME_COLUMNS:
            parts = [getattr(record, name) for record in records]
            joined = np.concatenate(parts) if parts else np.empty(0)
            frames.create_dataset(name, data=joined.astype(np.int64))


def _write_table(path: Path, records: Sequence[ProxyRecord]) -> None:
    """The labels, as surgrec.index reads them; paths are relative to the table."""
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(TABLE_COLUMNS)
        for record in records:
            writer.writerow([record.proxy, *(record.values[name] for name in TABLE_COLUMNS[1:])])
