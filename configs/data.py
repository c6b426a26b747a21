"""Where clips come from and what they look like."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class BalanceConfig:
    """Exponents of the shares at each level: 1 is natural (by duration), 0 is uniform."""

    domain: float = 0.0
    """Between domains (endoscopy, laparoscopy, cataract, robotic)."""
    dataset: float = 0.5
    """Between the data sets, or clusters, of a domain."""
    video: float = 0.5
    """Between the videos of a data set."""
    segment: float = 1.0
    """Between the segments of a video."""


@dataclass(frozen=True)
class DataConfig:
    """The corpus, the shape of a clip, its augmentation, and how it is decoded."""

    index: Path = Path("corpus.h5")
    """Packet index written by `python -m surgrec.index`."""
    plan: Path | None = None
    """Plan written by `python -m surgrec.curate`: which segments are drawn, and how often. Without one, every
    video is cut into segments of segment_seconds, drawn by `balance`."""
    frames: int = 16
    """Frames in a clip."""
    stride: int = 4
    """Distance between the frames of a clip, in frames of the video. Ignored where fps is set."""
    fps: float | None = None
    """Frames per second of a clip, by time stamps; overrides stride."""
    start: Literal["any", "key"] = "any"
    """Where clips start: at any frame, or at key frames only, so that no frame before the clip is decoded."""
    size: int = 224
    """Height and width of a clip, in pixels."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Smallest and largest share of the picture's area that a random-resized crop takes."""
    crop_aspect: tuple[float, float] = (0.75, 1.3333333333333333)
    """Smallest and largest width-to-height ratio of the crop, as displayed."""
    flip: bool = False
    """Mirror half of the clips left to right."""
    segment_seconds: float = 10.0
    """Length of the segments that the sampler draws from."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    engine: Literal["auto", "cpu", "nvdec", "dali", "hybrid"] = "auto"
    """What decodes: `cpu` is FFmpeg, `nvdec` the GPU's video decoders, `hybrid` both from one queue, `dali`
    DALI's video decoder. `auto` is hybrid where the frames go to a GPU with NVDEC, and cpu elsewhere."""
    threads: int = 0
    """Decoding threads of a rank, on a GPU host processes; 0 takes the cores of this machine divided among
    its ranks."""
    sessions: int = 0
    """NVDEC sessions that decode at a time; 0 takes four for each decoder that the GPU has."""
    session_mib: int = 2048
    """Memory of the GPU for NVDEC sessions of a rank, those in use and those kept for the next clip of their
    format, in MiB, about. Where it is full, fewer decode at a time; one always does."""
    decoder_timeout: float = 30.0
    """Seconds after which an NVDEC session or a decoding process that does not answer is replaced."""
    crop: Literal["auto", "fused", "dali"] = "auto"
    """What crops and resizes on a GPU: one kernel from the decoder's planes to the clip, or conversion to RGB
    and DALI's resize. `auto` takes the kernel."""
    picture_mib: int = 1024
    """Memory of a rank for pictures that are being decoded or wait for their crop, in MiB; of the GPU where
    there is one."""
    clips_per_decode: int = 1
    """Clips that are cut from one decoded stretch of video."""
    repeats: int = 1
    """Crops of each clip."""
    shuffle_mib: int = 0
    """Device memory, of all ranks together, of the pool that mixes the clips of one decode among others, in
    MiB; 0 mixes none. Too little gives an error that names the MiB needed."""
    prefetch: int = 2
    """Batches that are decoded ahead of the training step."""
    sequential: bool = False
    """Draw from videos without random access, too: their clips are decoded from the start of the file."""
    drop_disposable: bool = True
    """Leave out packets that no wanted frame depends on. The frames are the same either way."""
    max_failures: float = 0.1
    """Stop when more than this share of the clips of the last 1,000 could not be decoded."""
