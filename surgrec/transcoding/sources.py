"""Which videos get a proxy, what it is called, and what the transcoder must know of a source."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from surgrec.configs.transcode import TranscodeConfig
from surgrec.corpus.discovery import InputError, find_entries
from surgrec.loaders.packet_index import ERROR, OK, SEQUENTIAL, PacketIndex, VideoInfo
from surgrec.loaders.packet_scan import digest_file, info_of, scan_file
from surgrec.loaders.proxy_tag import read_tag

FOREIGN: Final = -1
"""Number of a source that is in no index."""
STEM_BYTES: Final = 100
WHOLE_TIMES: Final = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers that carry every time stamp, so that decoder and index must agree."""
COLOR_TEXT: Final = {"": 2, "gbr": 0, "bt709": 1, "fcc": 4, "bt470m": 4, "bt470bg": 5, "smpte170m": 6}
COLOR_TEXT_MORE: Final = {"smpte240m": 7, "ycgco": 8, "bt2020nc": 9, "bt2020c": 10}
PRIMARIES: Final = COLOR_TEXT | {"smpte240m": 7, "film": 8, "bt2020": 9, "smpte431": 11, "smpte432": 12}
TRANSFERS: Final = COLOR_TEXT | {
    "gamma22": 4,
    "gamma28": 5,
    "smpte240m": 7,
    "linear": 8,
    "iec61966-2-1": 13,
    "bt2020-10": 14,
    "bt2020-12": 15,
    "smpte2084": 16,
    "arib-std-b67": 18,
}


class SourceError(ValueError):
    """A video that no proxy can be made of; the message says why, without the path."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A video that is to get a proxy. `number` is that in the index, or FOREIGN."""

    path: str
    number: int
    dataset: str
    domain: str
    case: str
    split: str

    @property
    def proxy(self) -> str:
        """Path of the proxy, relative to the folder of all: data set, name, digest of the source's path.

        A function of the source's path and data set alone, so that a changed source replaces its proxy; the
        digest keeps videos of the same name apart.
        """
        digest = xxhash.xxh3_64_hexdigest(os.fsencode(self.path))[:12]
        return f"{plain_name(self.dataset) or 'videos'}/{plain_name(Path(self.path).stem)}-{digest}.mp4"


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """What the transcoder needs to know of a source. pts: int64 [frames], in display order."""

    path: Path
    info: VideoInfo
    pts: NDArray[np.int64]

    @property
    def time_base(self) -> Fraction:
        return Fraction(*self.info.time_base)

    @property
    def times_are_whole(self) -> bool:
        """Whether every frame comes out of the decoder with the time stamp that the index has for it."""
        return self.info.status == OK and self.info.container in WHOLE_TIMES and not self.info.note

    @property
    def colours(self) -> tuple[int, int, int]:
        """Matrix, primaries and transfer as FFmpeg's numbers."""
        names = (self.info.color_space, self.info.color_primaries, self.info.color_transfer)
        tables = (COLOR_TEXT | COLOR_TEXT_MORE, PRIMARIES, TRANSFERS)
        found = [_number(name, table) for name, table in zip(names, tables, strict=True)]
        return found[0], found[1], found[2]


def _number(name: str, table: dict[str, int]) -> int:
    return int(name) if name.isdecimal() else table.get(name, 2)


def plain_name(text: str) -> str:
    """A name that every file system takes: letters, digits and ._- only, not hidden, not too long."""
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in text)
    encoded = plain.encode("utf-8", "replace")[:STEM_BYTES]
    return encoded.decode("utf-8", "ignore").replace("?", "_").lstrip(".")


def find_wanted(config: TranscodeConfig) -> list[Wanted]:
    """The videos that the configuration names, proxies in `out` itself excepted.

    Raises InputError, and PacketIndexError where the index cannot be read.
    """
    if config.index is not None:
        if config.inputs or config.manifest is not None:
            raise InputError("give either --index or inputs (folders, files, --manifest), not both")
        return _outside(_of_index(PacketIndex.open(config.index)), config.out)
    if not config.inputs and config.manifest is None:
        raise InputError("nothing to transcode: give --index corpus.h5, or folders, or --manifest TABLE")
    entries = find_entries(config.inputs, config.manifest)
    found = [Wanted(e.path, FOREIGN, e.dataset, e.domain, e.case, e.split) for e in entries]
    return _outside(found, config.out)


def _of_index(index: PacketIndex) -> list[Wanted]:
    t = index.videos
    found = [
        Wanted(t.path[n], n, t.dataset[n], t.domain[n], t.case[n], t.split[n])
        for n in range(len(index))
        if t.status[n] in (OK, SEQUENTIAL)
    ]
    if not found:
        raise InputError(f"{index.path}: none of its {len(index)} videos can be decoded")
    return found


def _outside(found: Iterable[Wanted], out: Path) -> list[Wanted]:
    root = os.path.join(os.path.realpath(out), "")
    kept = [wanted for wanted in found if not os.path.realpath(wanted.path).startswith(root)]
    if not kept:
        raise InputError(f"all videos lie in {out}, where the proxies go; choose another --out")
    return kept


def describe_source(wanted: Wanted, index: Path | None) -> SourceVideo:
    """Look the video up in the index, and check that it is still the same file; or scan it.

    Raises SourceError, OSError.
    """
    path = Path(wanted.path)
    try:
        if path.is_file() and read_tag(path) is not None:
            raise SourceError("this file is a proxy itself; name the folder of the originals")
        if wanted.number == FOREIGN or index is None:
            return _scanned(path)
        opened = PacketIndex.open(index)
        info = opened.video(wanted.number)
        status = path.stat()
        same = status.st_size == info.file_size and (
            status.st_mtime_ns == info.mtime_ns or digest_file(path) == info.xxh3
        )
    except FileNotFoundError as error:
        raise SourceError("no such file") from error
    except PermissionError as error:
        raise SourceError("no permission to read the file") from error
    if info.path != wanted.path or not same:
        raise SourceError("the file is another version than the index was made for; write the index again")
    return SourceVideo(path, info, np.array(opened.frame_pts(wanted.number)))


def _scanned(path: Path) -> SourceVideo:
    scanned = scan_file(path)
    if scanned.row.values["status"] == ERROR:
        raise SourceError(scanned.row.values["reason"])
    return SourceVideo(path, info_of(scanned.row), scanned.packets.pts[scanned.packets.display])
