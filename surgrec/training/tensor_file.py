"""Writing safetensors in a stream: one pass gives the file, its fsync and its checksum.

The library's own writer reports a full disk as a bare text, and torch.distributed.checkpoint's puts a file
together in memory before it writes it. Here one tensor after the other goes to the file, and a failed write
stays an OSError with its errno.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class FileDigest:
    """What a file must be: its length in bytes and its xxh3-128 in hexadecimal."""

    bytes: int
    xxh3: str


class DigestedFile(io.FileIO):
    """A file that is being written, without a buffer, and the checksum of what was handed to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self._written = 0
        self._xxh3 = xxhash.xxh3_128()

    def write(self, data: Any, /) -> int:
        """All of `data`, anything with contiguous bytes. Raises OSError; the file may then be partial."""
        view = memoryview(data).cast("B")
        self._xxh3.update(view)
        done = 0
        while done < len(view):
            done += os.write(self.fileno(), view[done : done + (1 << 26)])
        self._written += done
        return done

    @property
    def file_digest(self) -> FileDigest:
        """What the file must be, also once it is closed."""
        return FileDigest(self._written, self._xxh3.hexdigest())


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str] | None = None) -> FileDigest:
    """Write `tensors` (any device, any layout) to `path` and fsync it. about: texts for the file's header.

    Raises OSError; the file may then be partial.
    """
    header: dict[str, object] = {} if about is None else {"__metadata__": about}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with DigestedFile(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            host = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
            file.write(host.numpy().data)
        os.fsync(file.fileno())
    return file.file_digest


def file_digest(path: Path) -> FileDigest:
    """Length and checksum of a file as it lies on disk."""
    digest = xxhash.xxh3_128()
    size = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
            size += len(block)
    return FileDigest(size, digest.hexdigest())


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
