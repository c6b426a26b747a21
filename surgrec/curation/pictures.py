"""The pictures of a segment that curation looks at: key frames first, few of them, luma whole and RGB small.

A key frame costs one packet. Where a segment holds fewer than three, which do not tell whether anything
moves, frames behind the first one are taken as well, so that two seconds of the segment are spanned:

    |........K...x...x.....................|      one key frame: it, and two frames within two seconds of it
    |..K.......K.......K.......K.......K...|      many: four of them, evenly spread, and nothing in between
    |x...x...x.............................|      none: its start, decoded from the key frame before
    |x.................................K.xx|      one near the end: the segment's first frame, too
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.base import BadClip, ClipFailure
from surgrec.loaders.engines.clip_reader import ClipReader
from surgrec.loaders.engines.cpu import CpuWorker
from surgrec.loaders.engines.pixels import ClipPictures, by_place, part_of, plane_lines
from surgrec.loaders.file_cache import FileCache
from surgrec.loaders.packet_index import BROKEN, FAULTY, KEY, OPEN_KEY, PacketIndex

KEYS: Final = 4
"""Key frames of a segment that are looked at, at most."""
SPAN_SECONDS: Final = 2.0
"""Time that the pictures of a segment with few key frames span, where it goes on for that long."""
SMALL_SIDE: Final = 320
"""Longest side of the small RGB pictures, in pixels; smaller videos are not enlarged."""
DETAIL_SIDE: Final = 640
"""Longest side of the pictures in which lettering is sought."""

_LIMITED_TO_FULL: Final = np.clip((np.arange(256) - 16) * (255 / 219) + 0.5, 0, 255).astype(np.uint8)
_LUMA_FIRST: Final = ("yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p", "nv12")
_FULL_RANGE: Final = 2


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of one stretch of video, upright.

    frames: display positions, int64 [T], ascending. luma: uint8 [T, H, W], stored pixels, 0 black to 255
    white whatever range the file uses. rgb: uint8 [T, h, w, 3], the same pictures with a longest side of
    SMALL_SIDE at most. detail: uint8 [T, y, x, 3], likewise with DETAIL_SIDE. fed_packets: packets that were
    decoded for them.
    """

    frames: NDArray[np.int64]
    luma: NDArray[np.uint8]
    rgb: NDArray[np.uint8]
    detail: NDArray[np.uint8]
    fed_packets: int = 0

    def __post_init__(self) -> None:
        arrays = self.frames, self.luma, self.rgb, self.detail
        if [array.ndim for array in arrays] != [1, 3, 4, 4] or len({len(array) for array in arrays}) > 1:
            raise ValueError(
                f"pictures of unlike shapes: frames {self.frames.shape} (it is T), luma {self.luma.shape}"
                f" (T H W), rgb {self.rgb.shape} (T h w 3), detail {self.detail.shape} (T y x 3)"
            )
        if not self.luma.size:
            raise ValueError("there is no picture to look at")


@dataclass(frozen=True, slots=True)
class NoPictures:
    """Why a segment gave no picture, with the file's path and a remedy where there is one."""

    path: str
    reason: str


def choose_frames(index: PacketIndex, video: int, start: int, end: int) -> tuple[int, ...]:
    """Display positions of the frames of segment [start, end) of a video that are looked at, ascending.

    Key frames that the index marks as damaged are passed over. Raises ValueError for a segment that is not
    within the video.
    """
    count = int(index.videos.frame_count[video])
    if not 0 <= start < end <= count:
        raise ValueError(
            f"{index.videos.path[video]}: segment [{start}, {end}) is not within its {count} frames"
        )
    base = int(index.videos.frame_start[video])
    packets = index.display[base + start : base + end].astype(np.int64)
    flags = index.flags[index.packets(video)][packets]
    key = (flags & (KEY | OPEN_KEY) != 0) & (flags & (BROKEN | FAULTY) == 0)
    key[1:] &= packets[1:] != packets[:-1]  # of the frames stacked in one picture the first
    keys = start + np.flatnonzero(key)
    if len(keys) > KEYS:
        keys = keys[(np.arange(KEYS) * len(keys) + len(keys) // 2) // KEYS]
    found = {int(at) for at in keys} or {start}
    place = np.arange(start, end) % int(index.videos.stack[video])
    times = index.pts[index.packets(video)][packets] + place * int(index.videos.frame_ticks[video])
    second = int(index.videos.time_base_den[video]) / int(index.videos.time_base_num[video])
    first = min(found)
    origin = int(times[first - start])
    if len(found) < 3:
        room = min(SPAN_SECONDS * second, float(times[-1]) - origin)
        for part in (0.5, 1.0):
            at = int(np.searchsorted(times, origin + part * room - 0.5))
            found.add(start + min(at, end - start - 1))
        if room < 0.5 * SPAN_SECONDS * second:  # the key frame is near the end: a moment is no evidence
            found.add(start)
    return tuple(sorted(found))


class PictureReader:
    """Decodes chosen frames in the calling thread. One per thread; close it, it holds files open."""

    def __init__(self, index: PacketIndex, open_files: int = 64) -> None:
        self.index = index
        self._files = FileCache(open_files)
        self._worker = CpuWorker(ClipReader(index, self._files), SmallWriter(), "curation")

    def read(self, video: int, frames: Sequence[int]) -> Pictures | NoPictures:
        """The pictures at these display positions, ascending; NoPictures where the data is at fault.

        Raises ValueError for positions outside the video.
        """
        outcome = self._worker.run(ClipRequest(0, video, tuple(frames)))
        if isinstance(outcome, ClipFailure):
            return NoPictures(outcome.path, outcome.reason)
        clip = cast(Any, outcome.frames)
        return Pictures(np.array(frames, np.int64), clip.luma, clip.rgb, clip.detail, outcome.fed_packets)

    def segment(self, video: int, start: int, end: int) -> Pictures | NoPictures:
        """The pictures of segment [start, end) of a video."""
        return self.read(video, choose_frames(self.index, video, start, end))

    def close(self) -> None:
        """Closes the files."""
        self._files.close()


class SmallWriter:
    """The engine's picture writer that keeps luma and small RGB. One per thread: it holds scalers."""

    def __init__(self) -> None:
        self._small = VideoReformatter()
        self._detail = VideoReformatter()
        self._grey = VideoReformatter()

    def start(self, places: Sequence[int], stack: int, rotation: int) -> ClipPictures:
        return _SmallClip(self, places, stack, rotation)

    def convert(self, frame: VideoFrame) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        """Luma, small RGB and detail of Pictures, of one frame, not turned."""
        name = frame.format.name
        if name in _LUMA_FIRST:
            luma = plane_lines(frame.planes[0], frame.height, frame.width, np.uint8)
            if not (name.startswith("yuvj") or int(frame.color_range) == _FULL_RANGE):
                luma = _LIMITED_TO_FULL[luma]
        else:
            grey = self._grey.reformat(frame, format="gray", dst_color_range=ColorRange.JPEG, threads=1)
            luma = plane_lines(grey.planes[0], grey.height, grey.width, np.uint8)
        return luma, _shrunk(self._small, frame, SMALL_SIDE), _shrunk(self._detail, frame, DETAIL_SIDE)


def _shrunk(scaler: VideoReformatter, frame: VideoFrame, side: int) -> NDArray[np.uint8]:
    """RGB uint8 [h, w, 3] with a longest side of `side` at most, in FFmpeg's memory."""
    share = min(1.0, side / max(frame.width, frame.height))
    width, height = max(1, round(frame.width * share)), max(1, round(frame.height * share))
    small = scaler.reformat(frame, width, height, format="rgb24", interpolation=Interpolation.AREA, threads=1)
    return plane_lines(small.planes[0], height, width * 3, np.uint8).reshape(height, width, 3)


@dataclass(frozen=True, slots=True)
class _SmallFrames:
    luma: NDArray[np.uint8]
    rgb: NDArray[np.uint8]
    detail: NDArray[np.uint8]


class _SmallClip:
    def __init__(self, writer: SmallWriter, places: Sequence[int], stack: int, rotation: int) -> None:
        self._writer = writer
        self._places = places
        self._stack = stack
        self._turns = -rotation // 90
        self._clip: _SmallFrames | None = None

    def add(self, frame: VideoFrame, rows: list[int]) -> None:
        for place, shown in by_place(rows, self._places):
            part = frame if self._stack == 1 else part_of(frame, place, self._stack)
            images = [np.rot90(image, self._turns) for image in self._writer.convert(part)]
            if self._clip is None:
                count = len(self._places)
                self._clip = _SmallFrames(*(np.empty((count, *image.shape), np.uint8) for image in images))
            clip = self._clip
            if clip.luma.shape[1:] != images[0].shape:
                raise BadClip("the picture changes its size within the segment; cut the file where it does")
            for array, image in zip((clip.luma, clip.rgb, clip.detail), images, strict=True):
                array[shown] = image

    def finish(self) -> Any:
        """_SmallFrames, which only PictureReader sees."""
        return self._clip
