"""Reader of the packet index `corpus.h5`: where every packet of every video lies, mapped into memory.

The packet columns are contiguous and uncompressed, so a clip costs a few array look-ups: no HDF5 call and
no Python object per packet. docs/index.md describes the file; loaders/index_writer.py writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

FORMAT_NAME: Final = "surgrec-packet-index"
FORMAT_VERSION: Final = 3

# Flags of a packet.
KEY: Final = 1  # random access that needs nothing before it: IDR, VP8/VP9/AV1 key frame, intra-only codec
OPEN_KEY: Final = 2  # random access whose leading pictures (rank below its own) need the key before it
DISPOSABLE: Final = 4  # no other frame refers to this one
DISCARD: Final = 8  # decoded but not shown, as an edit list says
HIDDEN: Final = 16  # gives no frame: VP8/VP9 alt-ref, leading pictures at the start of the stream
BROKEN: Final = 32  # bytes outside the file, or a size that lies
FAULTY: Final = 64  # FFmpeg reports it damaged, or gives no frame for it

NO_RANK: Final = 0xFFFFFFFF
"""Rank of a packet that has no frame on display."""

# Status of a video.
OK: Final = 0  # random access through the index
SEQUENTIAL: Final = 1  # decodable from the start only
ERROR: Final = 2  # nothing can be decoded
REMOVED: Final = 3  # was in an earlier index, the file is gone
STATUS_NAMES: Final = ("OK", "SEQUENTIAL", "ERROR", "REMOVED")

TEXT_COLUMNS: Final = (
    "path",
    "dataset",
    "domain",
    "case",
    "split",
    "codec",
    "container",
    "pix_fmt",
    "color_range",
    "color_space",
    "color_primaries",
    "color_transfer",
    "field_order",
    "reason",
    "note",
    "xxh3",
)
NUMBER_COLUMNS: Final[dict[str, str]] = {
    "packet_start": "i8",
    "packet_count": "i8",
    "frame_start": "i8",
    "frame_count": "i8",
    "extradata_start": "i8",
    "extradata_size": "i4",
    "stream": "i4",
    "width": "i4",
    "height": "i4",
    "coded_width": "i4",
    "coded_height": "i4",
    "sar_num": "i4",
    "sar_den": "i4",
    "rotation": "i4",
    "bit_depth": "i4",
    "reorder_depth": "i4",
    "nal_length_size": "i4",
    "time_base_num": "i8",
    "time_base_den": "i8",
    "rate": "f8",
    "duration": "f8",
    "start_pts": "i8",
    "stack": "i4",
    "frame_ticks": "i8",
    "file_size": "i8",
    "mtime_ns": "i8",
    "status": "u1",
    "verified": "u1",
}
PACKET_COLUMNS: Final[dict[str, str]] = {
    "offset": "u8",
    "size": "u4",
    "pts": "i8",
    "rank": "u4",
    "flags": "u1",
    "checksum": "u4",
}


class PacketIndexError(RuntimeError):
    """The index cannot be read: missing, not an index, truncated, or of another format version."""

    def __init__(self, path: Path, cause: str, remedy: str = "") -> None:
        """remedy: by default that the index command writes it."""
        write = f"Write it again with `python -m surgrec.index INPUTS --out {path}`."
        super().__init__(f"{path}: {cause}. {remedy or write}")
        self.path = path
        self.cause = cause


class OtherVersionError(PacketIndexError):
    """An index of another format version."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """One video of the index, as plain Python values.

    `width` and `height` are the picture as decoded, before rotation. `rotation` is the turn in degrees
    clockwise (0, 90, 180, 270) that makes the picture upright. `sar` is the shape of a pixel, width to
    height, (1, 1) where the file says nothing. `rate` is frames per second, `duration` seconds.
    `start_pts` is the pts of display position 0, in units of `time_base` seconds. `nal_length_size` is 0
    for Annex B start codes and for codecs without NAL units. `reorder_depth` is the number of frames that
    FFmpeg's probing says the decoder must hold back (has_b_frames).

    `stack` frames stand in one coded picture, one above the other; 1 but for stacked proxies. `height` and
    `width` are those of a frame. Frames within a picture are `frame_ticks` of the time base apart, 0 where
    `stack` is 1. `verified` is 1 where FFmpeg has decoded all of the video once, to find FAULTY packets.
    """

    path: str
    dataset: str
    domain: str
    case: str
    split: str
    status: int
    verified: int
    reason: str
    note: str
    container: str
    stream: int
    codec: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    sar: tuple[int, int]
    rotation: int
    pix_fmt: str
    bit_depth: int
    reorder_depth: int
    color_range: str
    color_space: str
    color_primaries: str
    color_transfer: str
    field_order: str
    time_base: tuple[int, int]
    rate: float
    duration: float
    start_pts: int
    stack: int
    frame_ticks: int
    packet_start: int
    packet_count: int
    frame_start: int
    frame_count: int
    nal_length_size: int
    extradata: bytes
    file_size: int
    mtime_ns: int
    xxh3: str

    @property
    def picture_height(self) -> int:
        """Lines of a decoded picture: of all frames that are stacked in it."""
        return self.height * self.stack


@dataclass(frozen=True, slots=True)
class VideoTable:
    """The videos of an index by column, one entry a video: NumPy arrays and lists of str."""

    path: list[str]
    dataset: list[str]
    domain: list[str]
    case: list[str]
    split: list[str]
    codec: list[str]
    container: list[str]
    pix_fmt: list[str]
    color_range: list[str]
    color_space: list[str]
    color_primaries: list[str]
    color_transfer: list[str]
    field_order: list[str]
    reason: list[str]
    note: list[str]
    xxh3: list[str]
    packet_start: NDArray[np.int64]
    packet_count: NDArray[np.int64]
    frame_start: NDArray[np.int64]
    frame_count: NDArray[np.int64]
    extradata_start: NDArray[np.int64]
    extradata_size: NDArray[np.int32]
    stream: NDArray[np.int32]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    coded_width: NDArray[np.int32]
    coded_height: NDArray[np.int32]
    sar_num: NDArray[np.int32]
    sar_den: NDArray[np.int32]
    rotation: NDArray[np.int32]
    bit_depth: NDArray[np.int32]
    reorder_depth: NDArray[np.int32]
    nal_length_size: NDArray[np.int32]
    time_base_num: NDArray[np.int64]
    time_base_den: NDArray[np.int64]
    rate: NDArray[np.float64]
    duration: NDArray[np.float64]
    start_pts: NDArray[np.int64]
    stack: NDArray[np.int32]
    frame_ticks: NDArray[np.int64]
    file_size: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    status: NDArray[np.uint8]
    verified: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PacketIndex:
    """An opened index. Read-only, cheap to share between threads; a forked or spawned worker opens its own.

    `offset` u64, `size` u32, `pts` i64, `rank` u32, `flags` u8 and `checksum` u32 hold one entry per packet
    of the whole corpus, in decode order within a video: those of video v are [packet_start[v],
    +packet_count[v]). See loaders/checksum.py for `checksum`.
    `display` u32 holds, for video v, at [frame_start[v], +frame_count[v]), the packet number within the
    video of the n-th frame that a full FFmpeg decode from the start gives. Of a stacked proxy, frames
    stack * k to stack * k + stack - 1 are those in the k-th picture, from its top, and have its packet.
    """

    path: Path
    videos: VideoTable
    offset: NDArray[np.uint64]
    size: NDArray[np.uint32]
    pts: NDArray[np.int64]
    rank: NDArray[np.uint32]
    flags: NDArray[np.uint8]
    checksum: NDArray[np.uint32]
    display: NDArray[np.uint32]
    extradata: NDArray[np.uint8]
    digest: str
    created: str
    scanner_version: int

    @staticmethod
    def open(path: str | Path) -> PacketIndex:
        """Open and map the index at `path`.

        Raises PacketIndexError with the file, the cause and the remedy where it is missing, not an index,
        truncated, or of another format version.
        """
        return _open(Path(path))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the file again, no column travels."""
        return PacketIndex.open, (self.path,)

    def __len__(self) -> int:
        return len(self.videos.path)

    def packets(self, video: int) -> slice:
        """The entries of the packet columns that belong to `video`."""
        start = int(self.videos.packet_start[video])
        return slice(start, start + int(self.videos.packet_count[video]))

    def frames(self, video: int) -> NDArray[np.uint32]:
        """uint32 [frame_count]: packet number of each frame of `video`, in display order."""
        start = int(self.videos.frame_start[video])
        return self.display[start : start + int(self.videos.frame_count[video])]

    def frame_pts(self, video: int) -> NDArray[np.int64]:
        """int64 [frame_count]: pts of each frame of `video` in display order, in units of its time base."""
        times = self.pts[self.packets(video)][self.frames(video)]
        stack, ticks = int(self.videos.stack[video]), int(self.videos.frame_ticks[video])
        return times if stack == 1 else times + np.arange(len(times)) % stack * ticks

    def video(self, number: int) -> VideoInfo:
        """All that the index knows of one video but its packets."""
        if not 0 <= number < len(self):
            raise ValueError(f"video {number} is outside the index {self.path}: it holds {len(self)} videos")
        t = self.videos
        values: dict[str, Any] = {name: getattr(t, name)[number] for name in TEXT_COLUMNS}
        for name, kind in NUMBER_COLUMNS.items():
            value = getattr(t, name)[number]
            values[name] = float(value) if kind == "f8" else int(value)
        start = values.pop("extradata_start")
        return video_info(values, self.extradata[start : start + values["extradata_size"]].tobytes())


def video_info(values: dict[str, Any], extradata: bytes) -> VideoInfo:
    """From a video's columns but extradata_start, by name, and its extradata."""
    values = dict(values) | {"extradata": extradata}
    values.pop("extradata_size")
    for name in ("sar", "time_base"):
        values[name] = values.pop(f"{name}_num"), values.pop(f"{name}_den")
    return VideoInfo(**values)


def _open(path: Path) -> PacketIndex:
    other_file = "Give the path of an index, as `python -m surgrec.index INPUTS --out corpus.h5` writes it."
    remove = f"Remove it, and write it with `python -m surgrec.index INPUTS --out {path}`."
    if not path.exists():
        raise PacketIndexError(path, "no such index")
    if not path.is_file():
        raise PacketIndexError(path, "not a file", other_file)
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        if h5py.is_hdf5(path):
            raise PacketIndexError(path, f"a truncated or damaged index ({error})", remove) from error
        raise PacketIndexError(path, f"not an HDF5 file ({error})", other_file) from error
    with file:
        found = file.attrs.get("format")
        if found != FORMAT_NAME:
            raise PacketIndexError(path, f"HDF5, but not a packet index (format is {found!r})", other_file)
        version = int(file.attrs.get("format_version", -1))
        if version != FORMAT_VERSION:
            raise OtherVersionError(
                path, f"index of format version {version}, this SurgRec reads version {FORMAT_VERSION}"
            )
        try:
            return _read(path, file)
        except (KeyError, OSError, ValueError) as error:
            raise PacketIndexError(path, f"damaged index ({error})", remove) from error


def _read(path: Path, file: h5py.File) -> PacketIndex:
    columns: dict[str, Any] = {}
    group = file["videos"]
    for name in TEXT_COLUMNS:
        columns[name] = [text.decode("utf-8", "surrogateescape") for text in group[name][:]]
    for name in NUMBER_COLUMNS:
        columns[name] = group[name][:]
    videos = VideoTable(**columns)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of unequal length: {lengths}")
    if (videos.stack < 1).any():
        raise ValueError("a picture without frames in the column stack")
    file_bytes = path.stat().st_size
    maps = {
        name: _map(path, file["packets"][name], kind, file_bytes) for name, kind in PACKET_COLUMNS.items()
    }
    display = _map(path, file["display"], "u4", file_bytes)
    packets = {len(column) for column in maps.values()}
    if packets != {int(videos.packet_count.sum())} or len(display) != int(videos.frame_count.sum()):
        raise ValueError(f"the packet columns hold {packets} packets, the videos say otherwise")
    return PacketIndex(
        path=path,
        videos=videos,
        display=display,
        extradata=file["extradata"][:],
        digest=str(file.attrs["digest"]),
        created=str(file.attrs["created"]),
        scanner_version=int(file.attrs["scanner_version"]),
        **maps,
    )


def _map(path: Path, dataset: h5py.Dataset, kind: str, file_bytes: int) -> NDArray[Any]:
    """Map one contiguous dataset; a mapping that ran past the end of the file would kill the process."""
    dtype = np.dtype(kind)
    if dataset.dtype != dtype or dataset.ndim != 1:
        raise ValueError(f"{dataset.name} is {dataset.dtype}[{dataset.ndim}-d], expected {dtype}")
    if dataset.shape[0] == 0:
        return np.empty(0, dtype)
    start = dataset.id.get_offset()
    if start is None:
        raise ValueError(f"{dataset.name} is not contiguous")
    if start + dataset.shape[0] * dtype.itemsize > file_bytes:
        raise ValueError(f"{dataset.name} ends behind the file: truncated")
    # A plain view: slicing np.memmap itself costs a microsecond each time, and numba does not know it.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=start, shape=dataset.shape))
