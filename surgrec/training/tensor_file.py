"""Writing safetensors in a stream: one pass gives the file, its fsync and its checksum.

The library's own writer wants all tensors on the host at once and reports a full disk as a bare text. Here
one tensor at a time is brought to the host, and a failed write stays an OSError with its errno.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from safetensors.torch import load_file
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


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileDigest:
    """Write `tensors` (any device, any layout) to `path` and fsync it.

    Raises OSError; the file may then be partial.
    """
    header: dict[str, object] = {}
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
    digest = xxhash.xxh3_128()
    written = 0
    with open(path, "wb", buffering=0) as file:
        for part in (len(text).to_bytes(8, "little"), text):
            written += _write_all(file.fileno(), memoryview(part), digest)
        for tensor in tensors.values():
            host = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
            written += _write_all(file.fileno(), host.numpy().data, digest)
        os.fsync(file.fileno())
    return FileDigest(written, digest.hexdigest())


def _write_all(descriptor: int, data: memoryview, digest: xxhash.xxh3_128) -> int:
    digest.update(data)
    done = 0
    while done < len(data):
        done += os.write(descriptor, data[done : done + (1 << 26)])
    return done


def file_digest(path: Path) -> FileDigest:
    """Length and checksum of a file as it lies on disk."""
    digest = xxhash.xxh3_128()
    size = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
            size += len(block)
    return FileDigest(size, digest.hexdigest())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    return load_file(path)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
