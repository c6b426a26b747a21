"""The journal `OUT.journal/`: what a run has scanned so far, one small file per video.

A killed run leaves whole records only; one that a power failure tore is scanned again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from surgrec.corpus.record_folder import TORN, RecordFolder, open_whole
from surgrec.loaders.index_writer import Packets, Row
from surgrec.loaders.packet_index import FORMAT_VERSION, PACKET_COLUMNS
from surgrec.loaders.packet_scan import SCANNER_VERSION, Scanned

VERSIONS: Final = {"format_version": FORMAT_VERSION, "scanner_version": SCANNER_VERSION}


class JournalBusyError(RuntimeError):
    """Another process is writing the same index."""


class Journal(RecordFolder):
    """Records of one index under construction. Workers only `write`; the run that owns it holds the lock."""

    def __init__(self, out: Path) -> None:
        super().__init__(out.with_name(f"{out.name}.journal"))

    def busy(self) -> JournalBusyError:
        """What `open` raises while another run writes this index."""
        return JournalBusyError(
            f"{self.folder}: another run is writing this index; wait for it or choose another --out"
        )

    def write(self, scanned: Scanned) -> None:
        """Store a record atomically. Raises OSError, on a full disk for example."""
        columns = {name: getattr(scanned.packets, name) for name in (*PACKET_COLUMNS, "display")}
        self.store(
            os.fsencode(scanned.row.path),
            {**VERSIONS, "values": scanned.row.values},
            {"extradata": np.frombuffer(scanned.row.extradata, np.uint8), **columns},
        )

    def rows(self) -> Iterator[Row]:
        """The row of each record; torn records and those of other versions are removed."""
        return self.usable(_read_row)

    def row(self, path: str) -> Row | None:
        """The row of one video, None where there is no whole record."""
        record = self.record_path(os.fsencode(path))
        return _read_row(record) if record.exists() else None

    def packets(self, path: str) -> Packets:
        """The packets of a video that has a record."""
        with np.load(self.record_path(os.fsencode(path)), allow_pickle=False) as record:
            return Packets(**{name: record[name] for name in (*PACKET_COLUMNS, "display")})


def _read_row(record: Path) -> Row | None:
    try:
        with open_whole(record) as content:
            header: dict[str, Any] = json.loads(content["header"].tobytes())
            extradata = content["extradata"].tobytes()
    except TORN:
        return None
    if {name: header.get(name) for name in VERSIONS} != VERSIONS:
        return None
    return Row(header["values"], extradata)
