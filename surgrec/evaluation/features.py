"""The feature file: what a frozen network makes of each row of a manifest, in HDF5, mapped into memory.

Row r of the manifest has S samples, its clips times their views; sample s of it is entry r * S + s of the
columns, which are contiguous and uncompressed, so that a batch is read without the rest of the file:

    pooled   float16 [R * S, D]
    tokens   float16 [R * S, N, D']   where they were asked for
    missing/rows  int64 [m], ascending; missing/reasons  m texts

Attributes say what the features are of, and a digest of each column. Texts are of fixed length: HDF5 keeps
others in a heap without a checksum, and damage there can hang it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from surgrec.evaluation.manifest import SplitManifest
from surgrec.evaluation.take_rows import take_finite
from surgrec.loaders.whole_file import replacing

FORMAT_NAME: Final = "surgrec-features"
FORMAT_VERSION: Final = 2
BLOCK: Final = 2**26
"""Bytes of a column that are digested at a time."""

Column = Literal["pooled", "tokens"]

_DAMAGE: Final = (LookupError, OSError, ValueError, TypeError, AttributeError, RuntimeError)
"""What h5py, JSON and NumPy raise for bytes that are not what they were."""
_MAKE_IT: Final = "write it with `python -m surgrec.extract`"

Half = NDArray[np.float16]


class FeatureError(ValueError):
    """Features that cannot be made or used; the message names file, cause and remedy."""


@dataclass(frozen=True)
class About:
    """What features are of.

    dataset, manifest_digest: of the manifest. model: as it was asked for. identity: plain text that differs
    where the network's output would. geometry: of a clip (frames, stride or fps, size). clips: of a row,
    spread over its time. views: of a clip, by name; `centre` is the largest square at the picture's centre.
    """

    dataset: str
    manifest_digest: str
    model: str
    identity: str
    geometry: dict[str, Any]
    clips: int
    views: tuple[str, ...]

    @property
    def samples(self) -> int:
        """Samples of a row, S."""
        return self.clips * len(self.views)


@dataclass(frozen=True)
class Chunk:
    """Features of k rows that follow one another. pooled: float16 [k * S, D], tokens: float16 [k * S, N, D'];
    rows that are missing are 0 there. None where none of the rows has any. missing: number in the chunk ->
    reason."""

    count: int
    pooled: Half | None
    tokens: Half | None
    missing: dict[int, str]


def write_features(out: Path, about: About, rows: int, chunks: Iterable[Chunk], with_tokens: bool) -> str:
    """Writes the file, whole or not at all, holding one chunk in memory at a time; returns its digest.

    Raises FeatureError where all rows are missing, or there is no room on the disk; OSError.
    """
    missing: dict[int, str] = {}
    columns: dict[str, h5py.Dataset] = {}
    names = ("pooled", "tokens") if with_tokens else ("pooled",)
    states = {name: xxhash.xxh3_128() for name in names}
    first, samples = 0, about.samples
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary, h5py.File(temporary, "w", libver="latest") as file:
        for chunk in chunks:
            missing |= {first + row: reason for row, reason in chunk.missing.items()}
            given = {name: getattr(chunk, name) for name in names}
            if chunk.pooled is not None:
                if not columns:
                    shapes = {name: (rows * samples, *value.shape[1:]) for name, value in given.items()}
                    _check_room(out, list(shapes.values()))
                    columns = {name: file.create_dataset(name, shape, "f2") for name, shape in shapes.items()}
                here = np.repeat([row not in chunk.missing for row in range(chunk.count)], samples)
                for name, value in given.items():
                    columns[name][first * samples : (first + chunk.count) * samples] = value
                    # Of rows that are there alone, so that the digest does not depend on the chunks.
                    states[name].update(np.ascontiguousarray(value[here]).data)
            first += chunk.count
        if first != rows:
            raise ValueError(f"chunks of {first} rows for a manifest of {rows}")
        if len(missing) == rows:
            raise FeatureError(
                f"{out}: none of the {rows} rows could be read, the first one because: {missing[0]}. Check"
                " --data-root"
            )
        digests = {name: state.hexdigest() for name, state in states.items()}
        digest = _digest_of(about, rows, missing, digests)
        order = sorted(missing)
        group = file.create_group("missing")
        group["rows"] = np.array(order, np.int64)
        group["reasons"] = np.array([missing[row].encode() for row in order], np.bytes_)
        for name, own in digests.items():
            columns[name].attrs["xxh3"] = np.bytes_(own)
        _write_attributes(file, about, rows, digest)
    return digest


def _digest_of(about: About, rows: int, missing: dict[int, str], columns: dict[str, str]) -> str:
    """32 hex digits over what the file holds, but for the name that the model was given. columns: digest of
    each, by name."""
    plain = {name: value for name, value in vars(about).items() if name != "model"}
    plain |= {"missing": sorted(missing.items()), "rows": rows, **columns}
    return xxhash.xxh3_128_hexdigest(json.dumps(plain, sort_keys=True).encode())


def _write_attributes(file: h5py.File, about: About, rows: int, digest: str) -> None:
    file.attrs["format"] = np.bytes_(FORMAT_NAME)
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["about"] = np.bytes_(json.dumps(vars(about), sort_keys=True))
    file.attrs["rows"] = rows
    file.attrs["digest"] = np.bytes_(digest)


def _check_room(out: Path, shapes: list[tuple[int, ...]]) -> None:
    """HDF5 itself would crash where the disk is full."""
    needed = sum(2 * int(np.prod(shape, dtype=np.int64)) for shape in shapes)
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise FeatureError(
            f"{out}: the features need {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left. Free"
            " some"
            f" space and run the same command again: what is computed is kept"
        )


@dataclass(frozen=True)
class FeatureFile:
    """An opened feature file. present: bool [R], rows that are not missing. digests: of the columns, by
    name."""

    path: Path
    about: About
    digest: str
    present: NDArray[np.bool_]
    missing: dict[int, str]
    digests: dict[str, str]
    _pooled: Half
    _tokens: Half | None

    @property
    def width(self) -> int:
        """Of the pooled features, D."""
        return self._pooled.shape[1]

    @property
    def token_shape(self) -> tuple[int, int] | None:
        """(N, D') of the token features; None where the file has none."""
        return None if self._tokens is None else (self._tokens.shape[1], self._tokens.shape[2])

    def verify(self, column: Column) -> None:
        """Reads a column once, and raises FeatureError where it is not what was written."""
        values = self._pooled if column == "pooled" else self._tokens
        if values is None:
            raise self._without_tokens()
        here = np.repeat(self.present, self.about.samples)
        step = max(1, BLOCK // max(1, values[:1].nbytes))
        state = xxhash.xxh3_128()
        for first in range(0, len(values), step):
            part, kept = values[first : first + step], here[first : first + step]
            state.update((part if kept.all() else part[kept]).data)
        if state.hexdigest() != self.digests[column]:
            raise FeatureError(
                f"{self.path}: damaged (its {column} features are not those that were written);"
                f" {_MAKE_IT} again"
            )

    def _without_tokens(self) -> FeatureError:
        return FeatureError(
            f"{self.path} has no token features, which an attentive probe reads; {_MAKE_IT} --tokens"
        )

    def pooled(self, rows: NDArray[np.int64], samples: NDArray[np.int64], room: Half | None = None) -> Half:
        """float16 [n, D] of one sample of each of n rows, in `room` where that is given. Raises FeatureError
        for values that are not finite."""
        return self._take(self._pooled, rows, samples, room)

    def tokens(self, rows: NDArray[np.int64], samples: NDArray[np.int64], room: Half | None = None) -> Half:
        """float16 [n, N, D'], likewise. Raises FeatureError where the file has no tokens, too."""
        if self._tokens is None:
            raise self._without_tokens()
        return self._take(self._tokens, rows, samples, room)

    def _take(
        self, column: Half, rows: NDArray[np.int64], samples: NDArray[np.int64], room: Half | None
    ) -> Half:
        if room is None:
            room = np.empty((len(rows), *column.shape[1:]), np.float16)
        bad = take_finite(column, rows * self.about.samples + samples, room)
        if bad is not None:
            raise FeatureError(
                f"{self.path}: the features of row {rows[bad] + 1} of the manifest are not finite;"
                f" {_MAKE_IT} again, by a network whose weights are sound"
            )
        return room


def open_features(path: Path, manifest: SplitManifest | None = None) -> FeatureFile:
    """Opens and maps a feature file; with a manifest, only one that was made for it. Columns are read later:
    `verify` tells whether they are whole.

    Raises FeatureError naming file, cause and remedy where it is gone, damaged, no feature file, of another
    format version, or of another manifest.
    """
    if not path.exists():
        raise FeatureError(f"{path}: no such file; {_MAKE_IT}")
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise FeatureError(f"{path}: not an HDF5 file, or a truncated one ({error}); {_MAKE_IT}") from error
    with file:
        try:
            _check_format(path, file)
            found = _read(path, file)
        except FeatureError:
            raise
        except _DAMAGE as error:
            raise FeatureError(f"{path}: damaged ({error}); {_MAKE_IT} again") from error
    if manifest is not None and found.about.manifest_digest != manifest.digest:
        raise FeatureError(
            f"{path}: these features were made for another split of {found.about.dataset!r} (manifest"
            f" {found.about.manifest_digest}), this manifest of {manifest.dataset!r} is {manifest.digest};"
            f" give that manifest, or {_MAKE_IT} for this one"
        )
    return found


def _check_format(path: Path, file: h5py.File) -> None:
    kind = file.attrs.get("format")
    # Texts of version 1 were of any length.
    if kind not in (FORMAT_NAME, FORMAT_NAME.encode()):
        raise FeatureError(f"{path}: HDF5, but no feature file; {_MAKE_IT}")
    version = int(file.attrs.get("format_version", -1))
    if version != FORMAT_VERSION:
        raise FeatureError(
            f"{path}: features of format version {version}, this program reads {FORMAT_VERSION}; {_MAKE_IT}"
            " again"
        )


def _read(path: Path, file: h5py.File) -> FeatureFile:
    """Raises one of _DAMAGE where parts do not fit together."""
    values = json.loads(file.attrs["about"])
    about = About(**(values | {"views": tuple(values["views"])}))
    rows, lost = int(file.attrs["rows"]), file["missing/rows"][:].tolist()
    reasons = [reason.decode() for reason in file["missing/reasons"][:].tolist()]
    missing = dict(zip(lost, reasons, strict=True))
    pooled = _map(path, file["pooled"], 2)
    tokens = _map(path, file["tokens"], 3) if "tokens" in file else None
    for column in (pooled, tokens):
        if column is not None and len(column) != rows * about.samples:
            raise ValueError(f"{len(column)} entries for {rows} rows of {about.samples} samples")
    names = ("pooled",) if tokens is None else ("pooled", "tokens")
    digests = {name: file[name].attrs["xxh3"].decode() for name in names}
    digest = file.attrs["digest"].decode()
    if digest != _digest_of(about, rows, missing, digests):
        raise ValueError("its digest is not that of what it holds")
    present = np.ones(rows, bool)
    present[lost] = False
    return FeatureFile(path, about, digest, present, missing, digests, pooled, tokens)


def _map(path: Path, dataset: h5py.Dataset, dimensions: int) -> Half:
    """Map a contiguous dataset; a mapping that ran past the end of the file would kill the process."""
    start = dataset.id.get_offset()
    if dataset.dtype != np.float16 or dataset.ndim != dimensions or start is None:
        raise ValueError(f"{dataset.name} is no contiguous float16 of {dimensions} dimensions")
    if start + dataset.size * 2 > path.stat().st_size:
        raise ValueError(f"{dataset.name} ends behind the file")
    return np.asarray(np.memmap(path, np.float16, "r", start, dataset.shape))
