"""The journal `OUT.journal/`: what a run has scanned so far, one small file per video.

A record is written under a temporary name and renamed, so that a killed run leaves whole records only; one
that a power failure tore fails its checksum (zip) and is scanned again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from surgrec.loaders.index_writer import Packets, Row
from surgrec.loaders.packet_index import FORMAT_VERSION, PACKET_COLUMNS
from surgrec.loaders.packet_scan import SCANNER_VERSION, Scanned

VERSIONS: Final = {"format_version": FORMAT_VERSION, "scanner_version": SCANNER_VERSION}


class JournalBusyError(RuntimeError):
    """Another process is writing the same index."""


class Journal:
    """Records of one index under construction. Workers only `write`; the run that owns it holds the lock."""

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f"{out.name}.journal")

    def open(self) -> Journal:
        """Create the folder, lock it, and drop records of other versions and unfinished ones.

        Raises JournalBusyError while another run has it open, OSError where it cannot be created.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise JournalBusyError(
                f"{self.folder}: another run is writing this index; wait for it or choose another --out"
            ) from error
        for left_over in self.folder.glob("*.tmp"):
            left_over.unlink()
        return self

    def close(self, remove: bool = False) -> None:
        """Give the lock back; `remove` deletes the journal, once its content is in the index."""
        if remove:
            shutil.rmtree(self.folder)
        os.close(self._lock)

    def write(self, scanned: Scanned) -> None:
        """Store a record atomically. Raises OSError, on a full disk for example."""
        name = _name(scanned.row.path)
        header = json.dumps({**VERSIONS, "values": scanned.row.values}).encode()
        columns = {name: getattr(scanned.packets, name) for name in (*PACKET_COLUMNS, "display")}
        temporary = self.folder / f"{name}.{os.getpid()}.tmp"
        try:
            with temporary.open("wb") as file:
                np.savez(
                    file,
                    header=np.frombuffer(header, np.uint8),
                    extradata=np.frombuffer(scanned.row.extradata, np.uint8),
                    **columns,
                )
            os.replace(temporary, self.folder / f"{name}.npz")
        finally:
            temporary.unlink(missing_ok=True)

    def rows(self) -> Iterator[Row]:
        """The row of each record; torn records and those of other versions are removed."""
        for record in sorted(self.folder.glob("*.npz")):
            row = _read_row(record)
            if row is None:
                record.unlink()
            else:
                yield row

    def row(self, path: str) -> Row | None:
        """The row of one video, None where there is no whole record."""
        record = self.folder / f"{_name(path)}.npz"
        return _read_row(record) if record.exists() else None

    def packets(self, path: str) -> Packets:
        """The packets of a video that has a record."""
        with np.load(self.folder / f"{_name(path)}.npz", allow_pickle=False) as record:
            return Packets(**{name: record[name] for name in (*PACKET_COLUMNS, "display")})


def _name(path: str) -> str:
    return str(xxhash.xxh3_128_hexdigest(os.fsencode(path)))


def _read_row(record: Path) -> Row | None:
    try:
        with zipfile.ZipFile(record) as whole:
            if whole.testzip() is not None:
                return None
        with np.load(record, allow_pickle=False) as content:
            header: dict[str, Any] = json.loads(content["header"].tobytes())
            extradata = content["extradata"].tobytes()
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError):
        return None
    if {name: header.get(name) for name in VERSIONS} != VERSIONS:
        return None
    return Row(header["values"], extradata)
