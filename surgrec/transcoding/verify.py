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
from surgrec.transcoding.options import ProxyOptions
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
    options: ProxyOptions,
    samples: Mapping[int, PictureYuv],
    beat: Callable[[], None],
) -> Verified:
    """Decode the whole proxy and index it.

    size: height, width of a frame. samples: number of a frame in the proxy -> the picture that it should
    show. `beat` is called for each coded picture. Raises VerifyError, OSError, av.error.FFmpegError.
    """
    likeness: dict[int, float] = {}
    height, width = size[0] * options.stack, size[1]
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
            if (frame.height, frame.width) != (height, width):
                raise VerifyError(f"the proxy is {frame.width}x{frame.height}, planned {width}x{height}")
            end = min(count + options.stack, len(grid.times))
            compared = samples.keys() & range(count, end)
            planes = planes_of(frame) if compared else None
            for number in sorted(compared):
                assert planes is not None
                likeness[number] = ssim(_cut(planes, number - count, options.stack), samples[number])
                if likeness[number] < options.min_ssim:
                    raise VerifyError(
                        f"frame {number} of the proxy resembles its source too little: SSIM "
                        f"{likeness[number]:.3f}, {options.min_ssim:g} asked. Give a lower --quality or "
                        "--min-ssim."
                    )
            count = end
            beat()
    if count != len(grid.times):
        raise VerifyError(f"the proxy has {count} frames, {len(grid.times)} were written")
    values = list(likeness.values()) or [1.0]
    return Verified(float(np.mean(values)), min(values), len(likeness), _check_access(path, grid, options))


def _cut(planes: PictureYuv, place: int, stack: int) -> PictureYuv:
    """The frame at a place in a stacked picture, counted from the top."""
    y, u, v = (plane[place * len(plane) // stack : (place + 1) * len(plane) // stack] for plane in planes)
    return y, u, v


def _check_access(path: Path, grid: FrameGrid, options: ProxyOptions) -> str:
    """Index the proxy as the loader will: a closed key frame every `gop` frames. Returns its digest."""
    scanned = scan_file(path)
    values = scanned.row.values
    frames = len(grid.times)
    if values["status"] != OK or values["frame_count"] != frames or values["stack"] != options.stack:
        raise VerifyError(f"the proxy gives no random access: {values['reason'] or values['note']}")
    flags = scanned.packets.flags[scanned.packets.display]
    keys = np.flatnonzero(flags[:: options.stack] & KEY)
    expected = np.arange(0, -(-frames // options.stack), options.gop_pictures)
    if (flags & OPEN_KEY).any() or not np.array_equal(keys, expected):
        raise VerifyError(
            f"the encoder did not place a closed key frame every {options.gop} frames, as asked"
        )
    return str(values["xxh3"])
