"""Writing H.264 as operating-room recorders do: long GOPs with B-frames."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import av

from surgrec.demo_data.texture import Picture

KEY_EVERY = 250


def write_h264(path: Path, pictures: Iterable[Picture], fps: int) -> int:
    """Encode uint8 RGB pictures [H, W, 3] (even sizes) to an MP4; returns how many.

    A key frame every 250, three B-frames in a pyramid, one thread, so that the same pictures give the same
    bytes. The file appears under its name when it is whole. Raises ValueError where there is no picture.
    """
    # A process whose parent was killed may still write the same file.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    count = 0
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        # No mbtree: its vector code reads memory beyond narrow pictures, and bytes then differ by chance.
        stream.options = {
            "preset": "veryfast",
            "crf": "23",
            "x264-params": f"keyint={KEY_EVERY}:min-keyint={KEY_EVERY}:scenecut=0:bframes=3:b-pyramid=normal"
            ":mbtree=0",
        }
        for picture in pictures:
            if count == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            count += 1
        if count == 0:
            raise ValueError(f"{path}: there is no picture to encode")
        container.mux(stream.encode(None))
    partial.replace(path)
    return count
