"""Writer of the packet index: from scanned videos to one `corpus.h5`, streaming, atomic.

docs/index.md describes the file; loaders/packet_index.py reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray
from surgrec.loaders.packet_index import (
    ERROR,
    FORMAT_NAME,
    FORMAT_VERSION,
    NUMBER_COLUMNS,
    PACKET_COLUMNS,
    TEXT_COLUMNS,
)
from surgrec.loaders.whole_file import replacing

LAYOUT_COLUMNS: Final = ("packet_start", "frame_start", "extradata_start")
"""Columns that the writer fills: they follow from the order of the rows."""
NOT_IN_DIGEST: Final = ("path", "mtime_ns", "verified", *LAYOUT_COLUMNS)
"""Columns that may change while the content, and what is known of it, stays the same."""


@dataclass(frozen=True, slots=True)
class Packets:
    """The packets of one video in decode order, columns as in PacketIndex, and its display order."""

    offset: NDArray[np.uint64]
    size: NDArray[np.uint32]
    pts: NDArray[np.int64]
    rank: NDArray[np.uint32]
    flags: NDArray[np.uint8]
    checksum: NDArray[np.uint32]
    display: NDArray[np.uint32]

    @staticmethod
    def empty() -> Packets:
        return Packets(
            **{name: np.empty(0, kind) for name, kind in PACKET_COLUMNS.items()}, display=np.empty(0, "u4")
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One video: its columns but those of the layout, and the bytes of its extradata."""

    values: dict[str, Any]
    extradata: bytes = b""

    @property
    def path(self) -> str:
        return str(self.values["path"])


@dataclass(frozen=True, slots=True)
class Source:
    """A row and the way to its packets: `load` is called once, when the row is written."""

    row: Row
    load: Callable[[], Packets] = field(default=Packets.empty)


def default_values(path: str) -> dict[str, Any]:
    """Columns of a video of which nothing is known yet: an ERROR row without packets."""
    values: dict[str, Any] = dict.fromkeys(TEXT_COLUMNS, "")
    for name, kind in NUMBER_COLUMNS.items():
        if name not in LAYOUT_COLUMNS:
            values[name] = 0.0 if kind == "f8" else 0
    values.update(path=path, sar_num=1, sar_den=1, time_base_num=1, time_base_den=1, stack=1, status=ERROR)
    return values


def write_index(
    out: Path,
    sources: Sequence[Source],
    attributes: dict[str, str] | None = None,
    scanner_version: int = 0,
) -> str:
    """Write `sources` in their order to `out` and return the digest of the content.

    Memory is bounded by the largest video. The file appears under its name only when it is complete and
    on disk. `attributes` are added to the root; scanner_version is
    that of loaders/packet_scan.py. Raises OSError where the disk is full or not writable;
    the temporary file is removed then.
    """
    with (
        replacing(out) as temporary,
        h5py.File(temporary, "w", libver="latest", locking=False) as file,
    ):
        digest = _fill(file, sources)
        file.attrs["format"] = FORMAT_NAME
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["scanner_version"] = scanner_version
        file.attrs["digest"] = digest
        file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        for name, value in (attributes or {}).items():
            file.attrs[name] = value
    return digest


def _fill(file: h5py.File, sources: Sequence[Source]) -> str:
    counts = {
        "packets": np.array([s.row.values["packet_count"] for s in sources], np.int64),
        "frames": np.array([s.row.values["frame_count"] for s in sources], np.int64),
        "extradata": np.array([len(s.row.extradata) for s in sources], np.int64),
    }
    starts = {
        name: np.concatenate(([0], np.cumsum(count)))[:-1].astype(np.int64) for name, count in counts.items()
    }
    totals = {name: int(count.sum()) for name, count in counts.items()}
    _write_videos(file, sources, starts)
    file.create_dataset("extradata", data=np.frombuffer(b"".join(s.row.extradata for s in sources), np.uint8))
    group = file.create_group("packets")
    columns = {
        name: _contiguous(group, name, totals["packets"], kind) for name, kind in PACKET_COLUMNS.items()
    }
    display = _contiguous(file, "display", totals["frames"], "u4")
    state = xxhash.xxh3_128()
    for number, source in enumerate(sources):
        packets = source.load()
        _check(source.row, packets)
        _digest_row(state, source.row, packets)
        start = int(starts["packets"][number])
        if len(packets.offset):
            for name, column in columns.items():
                column[start : start + len(packets.offset)] = getattr(packets, name)
        start = int(starts["frames"][number])
        if len(packets.display):
            display[start : start + len(packets.display)] = packets.display
    return str(state.hexdigest())


def _check(row: Row, packets: Packets) -> None:
    expected = (row.values["packet_count"], row.values["frame_count"])
    if (len(packets.offset), len(packets.display)) != expected:
        raise ValueError(f"{row.path}: the row says {expected} packets and frames, its columns hold others")


def _digest_row(state: xxhash.xxh3_128, row: Row, packets: Packets) -> None:
    values = {name: value for name, value in row.values.items() if name not in NOT_IN_DIGEST}
    state.update(json.dumps(values, sort_keys=True).encode())
    state.update(row.extradata)
    for name in (*PACKET_COLUMNS, "display"):
        state.update(np.ascontiguousarray(getattr(packets, name)).view(np.uint8).data)


def _write_videos(file: h5py.File, sources: Sequence[Source], starts: dict[str, NDArray[np.int64]]) -> None:
    group = file.create_group("videos")
    text = h5py.string_dtype("utf-8")
    for name in TEXT_COLUMNS:
        # Paths are bytes to the system: surrogateescape carries those that are not UTF-8 through unchanged.
        cells = [str(s.row.values[name]).encode("utf-8", "surrogateescape") for s in sources]
        group.create_dataset(name, data=np.array(cells, dtype=object), dtype=text, shape=(len(cells),))
    layout = {
        "packet_start": starts["packets"],
        "frame_start": starts["frames"],
        "extradata_start": starts["extradata"],
    }
    for name, kind in NUMBER_COLUMNS.items():
        column = layout.get(name)
        if column is None:
            numbers = [
                len(s.row.extradata) if name == "extradata_size" else s.row.values[name] for s in sources
            ]
            column = np.array(numbers, dtype=kind)
        group.create_dataset(name, data=column.astype(kind))


def _contiguous(group: h5py.Group, name: str, length: int, kind: str) -> h5py.Dataset:
    """A dataset whose bytes lie in one run of the file from the start, for readers that map it."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple((length,))
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(np.dtype(kind)), space, properties)
    return group[name]
