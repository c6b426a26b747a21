"""Clips of videos that can be decoded from the start only: a position is the frame's number in the output.

Correct, but slow: a clip costs the decoding of all that lies before it. A file stays open where the last
clip ended, so that clips in ascending order cost one pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from surgrec.loaders.checksum import checksum_of
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.demux import open_video, packets_of
from surgrec.loaders.engines.base import BadClip, DecodedClip
from surgrec.loaders.engines.clip_reader import changed_packet
from surgrec.loaders.engines.pixels import ClipPictures, PictureWriter
from surgrec.loaders.packet_index import VideoInfo

MAX_OPEN = 4


class SequentialReader:
    """Open files of one thread, each with its position."""

    def __init__(self, writer: PictureWriter) -> None:
        self._writer = writer
        self._open: OrderedDict[str, _Cursor] = OrderedDict()

    def decode(
        self, request: ClipRequest, info: VideoInfo, checksums: NDArray[np.uint32] | None
    ) -> DecodedClip:
        """The clip. Raises BadClip where the file gives fewer frames, or damaged or stacked ones.

        checksums: of the video's packets, where they are to be compared.
        """
        if info.stack > 1:
            raise BadClip("stacked frames cannot be decoded from the start; transcode the source again")
        cursor = self._open.pop(info.path, None)
        if cursor is not None and (cursor.position > request.frames[0] or cursor.version != _version(info)):
            cursor.close()
            cursor = None
        pictures: ClipPictures = self._writer.start((0,) * len(request.frames), 1, info.rotation)
        before = 0 if cursor is None else cursor.position
        try:
            if cursor is None:
                cursor = _Cursor(info, checksums)
            rows: dict[int, list[int]] = {}
            for row, position in enumerate(request.frames):
                rows.setdefault(position, []).append(row)
            for position, wanted in rows.items():
                frame = cursor.frame(position)
                pictures.add(frame, wanted)
        except av.FFmpegError as error:
            raise BadClip(f"FFmpeg cannot read it: {error}") from error
        except BadClip:
            if cursor is not None:
                cursor.close()
            raise
        clip = pictures.finish()
        assert clip is not None
        self._open[info.path] = cursor
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        decoded = cursor.position - before
        frames = cast(NDArray[np.uint8], clip)  # as CpuWorker does it
        return DecodedClip(request, frames, decoded, cursor.take_packets(), cursor.take_bytes())


def _version(info: VideoInfo) -> tuple[int, int]:
    return info.file_size, info.mtime_ns


class _Cursor:
    """One file, decoded from the start; `position` is the number of the next frame."""

    def __init__(self, info: VideoInfo, checksums: NDArray[np.uint32] | None) -> None:
        self.position = 0
        self._checksums = checksums
        self.version = _version(info)
        self._number = 0
        self._packets = 0
        self._bytes = 0
        self._damaged = ""
        self._container: InputContainer = open_video(Path(info.path))
        self._stream = self._container.streams[info.stream]
        self._stream.codec_context.thread_count = 1
        self._frames = self._decode()

    def frame(self, position: int) -> VideoFrame:
        """The frame at a display position not before `self.position`."""
        for frame in self._frames:
            self.position += 1
            if self.position > position:
                if self._damaged:
                    raise BadClip(f"FFmpeg reports damaged data before frame {position}: {self._damaged}")
                return frame
        raise BadClip(f"the file ends after {self.position} frames, the index promises frame {position}")

    def close(self) -> None:
        self._frames.close()
        self._container.close()

    def take_packets(self) -> int:
        """Packets fed since this was last asked."""
        packets, self._packets = self._packets, 0
        return packets

    def take_bytes(self) -> int:
        """Bytes fed since this was last asked."""
        count, self._bytes = self._bytes, 0
        return count

    def _decode(self) -> Generator[VideoFrame, None, None]:
        """All frames of the stream; goes on after damaged packets, as FFmpeg does, but remembers them."""
        keys: dict[int | None, int] = {}  # pts of key packets that are not on display yet -> their number
        damaged_at = 0
        for packet in packets_of(self._container, self._stream):
            if packet.size == 0 and packet.dts is not None:  # would end the stream; the real end has no dts
                continue
            self._compare(packet)
            self._packets += 1
            self._bytes += packet.size
            number = self._number = self._number + 1
            if packet.is_keyframe:
                keys[packet.pts] = number
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                self._damaged, damaged_at = str(error), number
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self._damaged, damaged_at = "FFmpeg marks a frame as damaged", number
                # All after a key frame is sound again, if that came after the damage.
                if frame.key_frame and keys.pop(frame.pts, 0) > damaged_at:
                    self._damaged = ""
                yield frame

    def _compare(self, packet: Packet) -> None:
        """Raises BadClip where the next packet is not the one that was indexed."""
        if self._checksums is None or packet.size == 0:
            return
        number = self._number
        if number >= len(self._checksums) or checksum_of(memoryview(packet)) != self._checksums[number]:
            raise BadClip(changed_packet(number))
