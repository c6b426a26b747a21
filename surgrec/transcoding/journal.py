"""The journal `proxies.h5.journal/`: a small record of each proxy that this run, or a killed one, finished.

A record is written under a temporary name and renamed; one that a power failure tore fails its checksum (zip)
and its proxy is made again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import xxhash

from surgrec.loaders.index_writer import sync
from surgrec.transcoding.record import FRAME_COLUMNS, ProxyRecord

RECORD_VERSION: Final = 1


class FolderBusyError(RuntimeError):
    """Another process is writing proxies to the same folder."""


class ProxyJournal:
    """Records of one folder of proxies. Workers only `write`; the run that owns it holds the lock."""

    def __init__(self, manifest: Path) -> None:
        self.folder = manifest.with_name(f"{manifest.name}.journal")

    def open(self) -> ProxyJournal:
        """Create the folder and lock it. Raises FolderBusyError while another run has it, OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise FolderBusyError(
                f"{self.folder.parent}: another run is writing proxies here; wait for it, or choose another "
                "--out"
            ) from error
        for left_over in self.folder.glob("*.tmp"):
            left_over.unlink()
        return self

    def close(self, remove: bool = False) -> None:
        """Give the lock back; `remove` deletes the journal, once its content is in the manifest."""
        if remove:
            shutil.rmtree(self.folder)
        os.close(self._lock)

    def write(self, record: ProxyRecord) -> None:
        """Store a record atomically. Raises OSError, on a full disk for example."""
        header = json.dumps({"version": RECORD_VERSION, "values": record.values}).encode()
        name = xxhash.xxh3_128_hexdigest(record.proxy.encode())
        temporary = self.folder / f"{name}.{os.getpid()}.tmp"
        try:
            with temporary.open("wb") as file:
                columns = {column: getattr(record, column) for column in FRAME_COLUMNS}
                np.savez(file, header=np.frombuffer(header, np.uint8), **columns)
            sync(temporary)
            os.replace(temporary, self.folder / f"{name}.npz")
        finally:
            temporary.unlink(missing_ok=True)

    def records(self) -> Iterator[ProxyRecord]:
        """All whole records; torn ones and those of other versions are removed."""
        for path in sorted(self.folder.glob("*.npz")):
            record = _read(path)
            if record is None:
                path.unlink()
            else:
                yield record


def _read(path: Path) -> ProxyRecord | None:
    try:
        with zipfile.ZipFile(path) as whole:
            if whole.testzip() is not None:
                return None
        with np.load(path, allow_pickle=False) as content:
            header = json.loads(content["header"].tobytes())
            if header.get("version") != RECORD_VERSION:
                return None
            record = ProxyRecord(header["values"], *(content[name] for name in FRAME_COLUMNS))
        record.check()
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, AttributeError):
        return None
    return record
