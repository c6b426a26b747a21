"""Which videos become training proxies, what a proxy is like, and how it is checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class TranscodeConfig:
    """Write training proxies: small copies of videos, with only the frames that training reads.

    Each proxy is checked before it appears under its name. A second run takes up where a killed one stopped,
    and redoes only what changed: sources or options. The sources are not touched.
    """

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders (searched with all that is below them), files and glob patterns; or give --index."""
    out: Path = Path("proxies")
    """Folder of the proxies, of proxies.h5 (which source frame each proxy frame shows) and videos.csv."""
    index: Path | None = None
    """Packet index: all of its videos that can be decoded are taken, with their labels."""
    manifest: Path | None = None
    """CSV or Parquet table with a column path and any of dataset, domain, case, split; not with --index."""
    content_area: Path | None = None
    """CSV or Parquet table path,top,left,height,width: the rectangle of a video that is kept, in pixels of
    the upright picture. Videos that it does not name are kept whole."""
    short_side: int = 256
    """Shorter side of a proxy in pixels, a multiple of 16. A source that is smaller is not enlarged."""
    rate: float = 6.25
    """Frames per second; 0 keeps every frame at the source's own times."""
    gop: int = 0
    """Frames between key frames, a multiple of --stack; 0 takes 16, and from 4 stacked frames on the stack
    itself: each picture is a key frame then."""
    stack: int = 1
    """Frames in one coded picture, one above the other; 1 stacks none. For NVDEC, to which each picture is a
    fixed cost that small ones do not repay. Only this project reads such files as frames."""
    codec: Literal["h264", "hevc"] = "h264"
    """Codec of the proxies."""
    quality: float = 20.0
    """crf of x264 and x265, cq of NVENC: lower is better and larger."""
    preset: str = ""
    """The encoder's preset; by default medium, and p5 with NVENC."""
    encoder: Literal["auto", "cpu", "nvenc"] = "auto"
    """What encodes: x264 or x265, or the GPU's encoder. `auto` takes NVENC where it opens, and says so."""
    fields: Literal["first", "both"] = "first"
    """Of interlaced pictures, take one field (the top one), or both as they are stored."""
    ssim_frames: int = 16
    """Frames of each proxy that are compared with the scaled source; 0 compares none."""
    min_ssim: float = 0.8
    """Smallest structural similarity that such a frame may have. A proxy with a worse one is refused."""
    overwrite: Literal["stale", "all", "never"] = "stale"
    """What is written again: proxies whose source or options changed, all, or none that is there."""
    workers: int = 0
    """Processes that work side by side; 0 takes the cores of this machine."""
    timeout: float = 600.0
    """Seconds without a sign of life after which a video counts as hanging."""
