"""All frames of a file in display order, each with what FFmpeg says of damage before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from surgrec.loaders.demux import open_video, packets_of


def decode_frames(path: Path, stream: int, threads: int) -> Iterator[tuple[Any, str]]:
    """(av.VideoFrame, damage) of every frame that a decode from the start gives.

    `damage` is what FFmpeg reported, on every frame from there to the next key frame that came behind it, or
    empty. Raises OSError or av.error.FFmpegError where the file cannot be opened or read.
    """
    with open_video(path) as container:
        chosen = container.streams[stream]
        chosen.codec_context.thread_count = threads
        chosen.codec_context.thread_type = "AUTO"
        for other in container.streams:
            if other.index != stream:
                other.discard = av.stream.Discard.all
        keys: dict[int | None, int] = {}  # pts of key packets that are not on display yet -> their number
        damage, damaged_at, number = "", 0, 0
        for packet in packets_of(container, chosen):
            if packet.size == 0 and packet.dts is not None:  # would end the stream; the real end has no dts
                continue
            number += 1
            if packet.is_keyframe:
                keys[packet.pts] = number
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                damage, damaged_at = error.strerror or str(error), number
                continue
            for frame in frames:
                if frame.is_corrupt:
                    damage, damaged_at = "a frame is marked as damaged", number
                if frame.key_frame and keys.pop(frame.pts, 0) > damaged_at:
                    damage = ""
                yield frame, damage
