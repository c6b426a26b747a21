"""The journal `proxies.h5.journal/`: a small record of each proxy that this run, or a killed one, finished.

A killed run leaves whole records only; where a power failure tore one, its proxy is made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from surgrec.corpus.record_folder import TORN, RecordFolder, open_whole
from surgrec.transcoding.record import FRAME_COLUMNS, ProxyRecord

RECORD_VERSION: Final = 2


class FolderBusyError(RuntimeError):
    """Another process is writing proxies to the same folder."""


class ProxyJournal(RecordFolder):
    """Records of one folder of proxies. Workers only `write`; the run that owns it holds the lock."""

    def __init__(self, manifest: Path) -> None:
        super().__init__(manifest.with_name(f"{manifest.name}.journal"))

    def busy(self) -> FolderBusyError:
        """What `open` raises while another run writes proxies to this folder."""
        return FolderBusyError(
            f"{self.folder.parent}: another run is writing proxies here; wait for it, or choose another --out"
        )

    def write(self, record: ProxyRecord) -> None:
        """Store a record atomically. Raises OSError, on a full disk for example."""
        self.store(
            record.proxy.encode(),
            {"version": RECORD_VERSION, "values": record.values},
            {column: getattr(record, column) for column in FRAME_COLUMNS},
            durable=True,
        )

    def records(self) -> Iterator[ProxyRecord]:
        """All whole records; torn ones and those of other versions are removed."""
        return self.usable(_read)


def _read(path: Path) -> ProxyRecord | None:
    try:
        with open_whole(path) as content:
            header = json.loads(content["header"].tobytes())
            if header.get("version") != RECORD_VERSION:
                return None
            record = ProxyRecord(header["values"], *(content[name] for name in FRAME_COLUMNS))
        record.check()
    except (*TORN, AttributeError):
        return None
    return record
