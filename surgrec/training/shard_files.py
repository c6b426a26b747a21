"""Safetensors that many ranks write and any number reads, by torch.distributed.checkpoint (DCP).

DCP plans who writes and who reads which part of a tensor; its HuggingFace format is safetensors with the
place of each part in the header. It opens files through the two file systems below: when writing, for our
names and a checksum in the same pass; when reading, so that only files which a checkpoint lists count.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from surgrec.training.distributed import World
from surgrec.training.tensor_file import DigestedFile, FileDigest


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint, whole, however many files its parts are in."""

    shape: torch.Size
    dtype: torch.dtype


def write_shards(folder: Path, kind: str, tensors: dict[str, Tensor], world: World) -> dict[str, FileDigest]:
    """Write this rank's tensors to folder/KIND-shard-00001-of-00004.safetensors. All ranks call it together.

    tensors: on the host; DTensors, of which each rank has a part, and tensors that no other rank gives. A
    rank without any writes no file. Raises, on every rank, the OSError of the first that could not write.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    files = _WrittenFile(f"{kind}-shard-{world.rank + 1:05d}-of-{world.size:05d}.safetensors")
    writer.fs = files
    with _causes():
        save(dict(tensors), storage_writer=writer, process_group=world.control)
    return files.digests


def stored_tensors(folder: Path, names: Sequence[str]) -> dict[str, StoredTensor]:
    """What the safetensors files `names` of `folder` hold together, parts joined."""
    found = {}
    for name, entry in _reader(folder, names).read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        found[name] = StoredTensor(entry.size, entry.properties.dtype)
    return found


def read_shards(folder: Path, names: Sequence[str], targets: dict[str, Tensor], world: World) -> None:
    """Fill `targets` in place; of a DTensor, each rank its own part. All ranks call it together.

    targets: all of them stored in the files `names`, with the same shapes; on any device, of any dtype.
    """
    with _causes(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(
            targets,
            storage_reader=_reader(folder, names),
            process_group=world.control,
            no_dist=world.size == 1,
        )


def _reader(folder: Path, names: Sequence[str]) -> HuggingFaceStorageReader:
    reader = HuggingFaceStorageReader(str(folder))
    reader.fs = _ListedFiles(names)
    return reader


class _WrittenFile(FileSystem):
    """Gives the one file that DCP writes on a rank the name `name`, and keeps its checksum."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.digests: dict[str, FileDigest] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        # DCP fsyncs the file before it closes it.
        with DigestedFile(Path(path).with_name(self._name)) as file:
            yield file
        self.digests[self._name] = file.file_digest


class _ListedFiles(FileSystem):
    """A folder that holds the files `names` only."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        return [str(Path(path) / name) for name in self._names]


@contextmanager
def _causes() -> Generator[None, None, None]:
    """Raise what went wrong on the first rank that failed, in the place of DCP's list of all failures."""
    try:
        yield
    except CheckpointException as error:
        _, (cause, _) = min(error.failures.items())
        raise cause from error
