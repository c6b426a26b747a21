"""A folder of small records, one `.npz` each, that one run at a time fills and a killed run leaves usable.

A record is written under a temporary name and renamed, so that a killed run leaves whole records only; one
that a power failure tore fails its checksum (zip).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import numpy as np
import xxhash
from numpy.lib.npyio import NpzFile

from surgrec.loaders.whole_file import sync

TORN: Final = (zipfile.BadZipFile, ValueError, KeyError, EOFError)
"""What reading a torn record raises."""

Record = TypeVar("Record")


class RecordFolder(ABC):
    """Locking, writing and listing. Workers only write; the run that owns the folder holds the lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def busy(self) -> RuntimeError:
        """The error that `open` raises while another run has the folder open."""

    def open(self) -> Self:
        """Create the folder, lock it, and drop unfinished records. Raises `busy()`, or OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise self.busy() from error
        for left_over in self.folder.glob("*.tmp"):
            left_over.unlink()
        return self

    def close(self, remove: bool = False) -> None:
        """Give the lock back; `remove` deletes the folder, once its content is stored elsewhere."""
        if remove:
            shutil.rmtree(self.folder)
        os.close(self._lock)

    def record_path(self, key: bytes) -> Path:
        """The file of the record with this key, whether it exists or not."""
        return self.folder / f"{xxhash.xxh3_128_hexdigest(key)}.npz"

    def store(
        self, key: bytes, header: Mapping[str, Any], arrays: Mapping[str, Any], durable: bool = False
    ) -> None:
        """Store a record atomically: `header` as JSON in uint8 [bytes], then `arrays` under their names.

        `durable` has it on the disk before it gets its name. Raises OSError, on a full disk for example.
        """
        path = self.record_path(key)
        encoded = np.frombuffer(json.dumps(header).encode(), np.uint8)
        temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, header=encoded, **arrays)
            if durable:
                sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def usable(self, read: Callable[[Path], Record | None]) -> Iterator[Record]:
        """What `read` makes of each record, by file name; those that it answers None for are removed."""
        for path in sorted(self.folder.glob("*.npz")):
            record = read(path)
            if record is None:
                path.unlink()
            else:
                yield record


@contextmanager
def open_whole(path: Path) -> Iterator[NpzFile]:
    """The arrays of a record, every checksum tested. Raises one of TORN where the record is not whole."""
    with zipfile.ZipFile(path) as archive:
        torn = archive.testzip()
        if torn is not None:
            raise zipfile.BadZipFile(f"{path}: {torn} fails its checksum; remove the record to make it again")
    with np.load(path, allow_pickle=False) as content:
        yield content
