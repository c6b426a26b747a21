"""Checks of a finished proxy: every frame decodes, at its time, like its source, with random access."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from surgrec.loaders.demux import open_video
from surgrec.loaders.packet_index import KEY, OK, OPEN_KEY
from surgrec.loaders.packet_scan import scan_file
from surgrec.transcoding.frame_grid import FrameGrid
from surgrec.transcoding.picture import planes_of
from surgrec.transcoding.ssim import PictureYuv, ssim


class VerifyError(ValueError):
    """The proxy is not what it should be; the message says in what."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What the checks found: similarity of the compared frames (1 where none was), digest of the file."""

    ssim_mean: float
    ssim_min: float
    ssim_frames: int
    xxh3: str


def verify_proxy(
    path: Path,
    grid: FrameGrid,
    size: tuple[int, int],
    gop: int,
    samples: Mapping[int, PictureYuv],
    min_ssim: float,
    beat: Callable[[], None],
) -> Verified:
    """Decode the whole proxy and index it.

    size: height, width. samples: number of a frame in the proxy -> the picture that it should show. `beat`
    is called for each frame. Raises VerifyError, OSError, av.error.FFmpegError.
    """
    likeness: dict[int, float] = {}
    count = 0
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            if count == len(grid.times):
                raise VerifyError(f"the proxy has more than the {count} frames that were written")
            planned = int(grid.times[count]) * grid.time_base
            if frame.is_corrupt:
                raise VerifyError(f"frame {count} of the proxy does not decode")
            if frame.pts is None or frame.pts * stream.time_base != planned:
                raise VerifyError(
                    f"frame {count} of the proxy is at {frame.time} s, planned {float(planned)} s"
                )
            if (frame.height, frame.width) != size:
                raise VerifyError(f"the proxy is {frame.width}x{frame.height}, planned {size[1]}x{size[0]}")
            if count in samples:
                likeness[count] = ssim(planes_of(frame), samples[count])
                if likeness[count] < min_ssim:
                    raise VerifyError(
                        f"frame {count} of the proxy resembles its source too little: SSIM "
                        f"{likeness[count]:.3f}, {min_ssim:g} asked. Give a lower --quality or --min-ssim."
                    )
            count += 1
            beat()
    if count != len(grid.times):
        raise VerifyError(f"the proxy has {count} frames, {len(grid.times)} were written")
    values = list(likeness.values()) or [1.0]
    return Verified(float(np.mean(values)), min(values), len(likeness), _check_access(path, count, gop))


def _check_access(path: Path, frames: int, gop: int) -> str:
    """Index the proxy as the loader will: a closed key frame every `gop` frames. Returns its digest."""
    scanned = scan_file(path)
    values = scanned.row.values
    if values["status"] != OK or values["frame_count"] != frames:
        raise VerifyError(f"the proxy gives no random access: {values['reason'] or values['note']}")
    flags = scanned.packets.flags[scanned.packets.display]
    keys = np.flatnonzero(flags & KEY)
    if (flags & OPEN_KEY).any() or not np.array_equal(keys, np.arange(0, frames, gop)):
        raise VerifyError(f"the encoder did not place a closed key frame every {gop} frames, as asked")
    return str(values["xxh3"])
