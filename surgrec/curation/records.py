"""What curation has found so far: a record for each video and stage, and a table for each finished stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from surgrec.corpus.record_folder import TORN, RecordFolder, open_whole
from surgrec.loaders.whole_file import replacing

Arrays = dict[str, NDArray[Any]]


class CurationError(RuntimeError):
    """Curation cannot go on; the message names what, why and the remedy."""


def key_of(*parts: Any) -> str:
    """A digest of plain values: the same ones give the same key."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """A digest of arrays by name, their types and shapes included."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        column = np.ascontiguousarray(arrays[name])
        state.update(f"{name} {column.dtype.str} {column.shape} ".encode())
        state.update(column.tobytes())
    return state.hexdigest()


class VideoRecords(RecordFolder):
    """Records of one stage, by key. One run at a time has them open."""

    def busy(self) -> RuntimeError:
        """What `open` raises while another run has them."""
        return CurationError(
            f"{self.folder}: another run is curating into it; wait for it, or choose another --out"
        )

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Raises OSError, on a full disk for example."""
        self.store(key.encode(), {"key": key}, arrays)

    def has(self, key: str) -> bool:
        """Whether there is a record under a key. It may be torn, which `get` would tell."""
        return self.record_path(key.encode()).exists()

    def get(self, key: str) -> Arrays | None:
        """The arrays under a key; None where there are none, or not whole ones."""
        path = self.record_path(key.encode())
        if not path.exists():
            return None
        try:
            with open_whole(path) as content:
                header = json.loads(content["header"].tobytes())
                found = {name: content[name] for name in content.files if name != "header"}
        except TORN:
            return None
        return found if header.get("key") == key else None


@contextmanager
def hdf5_in_place(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file that takes the place of `path` once it is whole. Raises OSError, on a full disk too.

    It is made in memory: where the disk is full, HDF5 itself would crash when the process ends.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False, libver="latest") as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    with replacing(path) as temporary:
        temporary.write_bytes(image)


@dataclass(frozen=True)
class Found:
    """What a stage found. notes: what is to be known of videos, by path. complete: False where videos failed
    that may not fail the next time."""

    arrays: Arrays
    notes: dict[str, str] = field(default_factory=dict)
    complete: bool = True


def save_table(path: Path, key: str, found: Found) -> None:
    """Writes what a finished stage found, atomically. Raises OSError."""
    with hdf5_in_place(path) as file:
        for name, column in found.arrays.items():
            file.create_dataset(name, data=column)
        file.attrs["notes"] = json.dumps(found.notes)
        file.attrs["complete"] = found.complete
        file.attrs["key"] = key


def load_table(path: Path, key: str) -> Found | None:
    """What a stage found that was finished under this key; None where it was not."""
    if not path.exists():
        return None
    try:
        with h5py.File(path, "r", locking=False) as file:
            if str(file.attrs.get("key")) != key:
                return None
            arrays = {name: file[name][:] for name in file}
            return Found(arrays, json.loads(str(file.attrs["notes"])), bool(file.attrs["complete"]))
    except (OSError, KeyError, ValueError):
        return None  # a torn file: the stage is done again
