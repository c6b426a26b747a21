"""Files of weights as they are stored, whoever wrote them. Tensors stay on the disk until they are used.

Safetensors and what torch.save wrote, whose pickles are read as plain data: code in them is refused and never
runs. A folder of Hugging Face's layout is read by its config.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from surgrec.training.tensor_file import file_digest
from surgrec.weights.errors import WeightsError

CONFIG: Final = "config.json"
PREPROCESSOR: Final = "preprocessor_config.json"
PREPROCESSORS: Final = (PREPROCESSOR, "video_preprocessor_config.json")
"""Of image and of video processors: a folder holds one."""
INDEX_SUFFIX: Final = ".index.json"
NAMES: Final = ("model.safetensors", "pytorch_model.bin")
"""Of the weights in a folder; those of many files have an index beside them."""
_SCALAR: Final[Any] = np.float64(0).__reduce__()[0]
PLAIN_CLASSES: Final[list[Any]] = [
    argparse.Namespace,
    np.dtype,
    np.float32,
    np.float64,
    np.int64,
    type(np.dtype("float32")),
    type(np.dtype("float64")),
    type(np.dtype("int64")),
    # What a NumPy number is made by again; NumPy 1 wrote another name than NumPy 2.
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]
"""What training scripts put beside their weights (options, losses): values without behaviour."""

DEEPEST: Final = 16
MOST: Final = 2_000_000
"""Levels of mappings in a file, and values in them, beyond which it is no checkpoint."""

_GLOBAL: Final = re.compile(r"GLOBAL ([\w.]+)")
_FETCH: Final = "fetch it again, and compare its size and checksum with what its source states"


@dataclass(frozen=True)
class Content:
    """What files hold. top: as stored, nested mappings of plain values and tensors (on the CPU, mapped from
    the file). config, preprocessor: of a folder's JSON files; None where there are none. about: texts in a
    safetensors header. files: that hold the tensors."""

    path: Path
    top: Mapping[str, Any]
    config: dict[str, Any] | None = None
    preprocessor: dict[str, Any] | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their path in `top`: "model/encoder.norm.weight"."""
        return dict(_tensors(self.path, self.top))

    def digest(self) -> str:
        """XXH3-128 of files and configuration, wherever these lie: 32 hex digits. Reads the files once.
        Raises WeightsError."""
        state = xxhash.xxh3_128(json.dumps([self.config, self.preprocessor], sort_keys=True).encode())
        try:
            for file in self.files:
                state.update(file_digest(file).xxh3.encode())
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return state.hexdigest()


def read_file(path: Path) -> Content:
    """path: a file of weights, or a folder with config.json and its weights.

    The tensors are views of the mapped file, which must stay as it is while they are used: to replace it,
    write another and rename it. Raises WeightsError for what is missing, empty, truncated, no weights, or has
    code in it.
    """
    # Unlike Path.is_dir, it answers for names that no file can have.
    if os.path.isdir(path):
        return _folder(path)
    top, about = _read(path)
    return Content(path, top, about=about, files=(path,))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises WeightsError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not JSON, or a truncated one ({error}); {_FETCH}") from error
    if not isinstance(document, dict):
        raise WeightsError(f"{path}: JSON of no object; {_FETCH}")
    return document


def _folder(path: Path) -> Content:
    if not (path / CONFIG).is_file():
        raise WeightsError(
            f"{path}: a folder without {CONFIG}; give a folder as transformers saves models, or a file of"
            " weights"
        )
    files, tensors, about = _weights_of(path)
    there = [path / name for name in PREPROCESSORS if (path / name).is_file()]
    preprocessor = read_json(there[0]) if there else None
    return Content(path, tensors, read_json(path / CONFIG), preprocessor, about, files)


def _weights_of(folder: Path) -> tuple[tuple[Path, ...], Mapping[str, Any], Mapping[str, str]]:
    """Files, top and header of a folder's weights, in one file or in many."""
    for name in NAMES:
        if (folder / name).is_file():
            top, about = _read(folder / name)
            return (folder / name,), top, about
        index = folder / f"{name}{INDEX_SUFFIX}"
        if index.is_file():
            return _shards(index)
    raise WeightsError(
        f"{folder}: a folder without weights; it needs {' or '.join(NAMES)}, or the {INDEX_SUFFIX} of many"
        " files"
    )


def _shards(index: Path) -> tuple[tuple[Path, ...], Mapping[str, Any], Mapping[str, str]]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise WeightsError(f"{index}: no `weight_map` from tensors to files; {_FETCH}")
    tensors: dict[str, Any] = {}
    files = []
    for name in sorted(set(where.values())):
        if Path(name).name != name:
            raise WeightsError(f"{index}: names {name!r}, which is not in its folder; {_FETCH}")
        top, _ = _read(index.parent / name)
        absent = [key for key, file in where.items() if file == name and key not in top]
        if absent:
            raise WeightsError(
                f"{index.parent / name}: has no tensor {absent[0]!r}, as its index says; {_FETCH}"
            )
        repeated = [key for key in top if key in tensors]
        if repeated:
            raise WeightsError(
                f"{index.parent / name}: holds {repeated[0]!r}, as another file does; {_FETCH}"
            )
        tensors |= top
        files.append(index.parent / name)
    return tuple(files), tensors, {}


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Top and header of one file, by what its first bytes say it is."""
    try:
        kind = path.stat().st_mode
        # To open a pipe would wait for someone who writes to it.
        special = not stat.S_ISREG(kind) and not stat.S_ISDIR(kind)
        first = b"" if special else _start(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if special:
        raise WeightsError(f"{path}: a device or a pipe, no file; save the weights in one, and give that")
    if not first:
        raise WeightsError(f"{path}: an empty file; {_FETCH}")
    if first.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: a pointer of Git LFS, not the file; run `git lfs pull` where it is from")
    if first.lstrip().startswith((b"<!", b"<html", b"<?xml")):
        raise WeightsError(f"{path}: a web page, not weights: the download led to a page; {_FETCH}")
    # A safetensors file begins with the length of its header, then a brace; no zip or pickle has one there.
    if first[8:9] == b"{" or path.suffix == ".safetensors":
        return _safetensors(path)
    return _torch(path, zipped=first.startswith(b"PK")), {}


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def _safetensors(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            about = dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: not a safetensors file, or a truncated one ({error}); {_FETCH}"
        ) from error
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors; {_FETCH}")
    return tensors, about


def _torch(path: Path, zipped: bool) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(PLAIN_CLASSES), warnings.catch_warnings():
            # Of bytes that are no pickle it says that their protocol is a rare one.
            warnings.simplefilter("ignore", UserWarning)
            # PyTorch before 1.6 wrote files that cannot be mapped.
            top = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # of pickle, zip, PyTorch, and of classes that are no longer there
        text = str(error)
        code = _GLOBAL.search(text)
        if code:
            raise WeightsError(
                f"{path}: a pickle with more than tensors and plain values in it ({code[1]}); nothing of it"
                " was run. Where you trust its source, load it there and save its state_dict() as safetensors"
            ) from error
        cause = _cause(text) or type(error).__name__
        raise WeightsError(
            f"{path}: not a file of weights, or a truncated one ({cause}); {_FETCH}"
        ) from error
    if not isinstance(top, Mapping) or not all(isinstance(key, str) for key in top):
        raise WeightsError(
            f"{path}: holds {type(top).__name__}, not a mapping of names to tensors; give a checkpoint, or a"
            " state_dict"
        )
    if not any(True for _ in _tensors(path, top)):
        raise WeightsError(f"{path}: holds no tensors ({', '.join(list(top)[:5])}); give a checkpoint")
    return top


def _tensors(path: Path, top: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """Names joined by `/` and tensors of nested mappings, in their order. Raises WeightsError for mappings
    that hold one another endlessly."""
    stack: list[tuple[str, Any, int]] = [("", top, 0)]
    seen = 0
    while stack:
        name, value, depth = stack.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST:
            raise WeightsError(f"{path}: mappings in mappings without an end; {_FETCH}")
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            before = f"{name}/" if name else ""
            stack += [(f"{before}{key}", inner, depth + 1) for key, inner in reversed(list(value.items()))]


def _unreadable(path: Path, error: OSError | ValueError) -> WeightsError:
    """error: ValueError of a name that no file can have."""
    cause = error.strerror if isinstance(error, OSError) else None
    return WeightsError(
        f"{path}: cannot be read ({cause or error}); give a file of weights, or a folder with {CONFIG}"
    )


def _cause(text: str) -> str:
    """Of a message of torch.load, which says much about how to run code all the same, what is wrong."""
    _, _, behind = text.rpartition("WeightsUnpickler error:")
    lines = [line.strip() for line in behind.splitlines() if line.strip()]
    said = [
        line for line in lines if not line.startswith(("Weights only load failed", "Check the documentation"))
    ]
    return said[0].rstrip(". ") if said else ""
