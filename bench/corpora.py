"""Videos for benchmarks, made once and kept: tissue that breathes, a tool across it, and sensor noise.

Motion and noise are set so that 480g250 costs what a real laparoscopic recording costs (1280x720, H.264
High, 25 fps; as recorded, and scaled to 854x480 with the same encoder): 0.11 bits per pixel (real: 0.11 and
0.10), 48 % of frames disposable (49 and 49), each with 0.33 of the bits of another (0.35 and 0.27). A video
is one encoded stretch repeated packet by packet, so that minutes cost seconds to make; every stretch begins
with a key frame and is a closed group of pictures.

480g250n has the same size and key frames, but shows a plain moving texture with strong noise, as decoders are
often measured: its speeds can be compared with figures of others. Neither content is fitted to a result.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal, cast

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from numba import njit
from numpy.typing import NDArray
from surgrec.configs.transcode import TranscodeConfig
from surgrec.loaders.proxy_tag import make_tag
from surgrec.loaders.stacking import tag_values

from surgrec.transcoding.encoder import encoder_options
from surgrec.transcoding.options import ProxyOptions
from surgrec.transcoding.stack import Stacker

RATE: Final = 25
REACH: Final = 96  # pixels by which the textures are larger than the picture, on each side


@dataclass(frozen=True)
class VideoSpec:
    """One synthetic video."""

    width: int
    height: int
    key_every: int
    """Frames from one key frame to the next."""
    stretch: int
    """Frames that are encoded."""
    repeats: int
    """Times that they are repeated."""
    codec: str = "libx264"
    suffix: str = ".mp4"
    options: tuple[tuple[str, str], ...] = ()
    noise: float = 3.0
    """Standard deviation of the noise, in levels of 0..255."""
    swell: float = 10.0
    """How far the tissue moves as it breathes, in pixels."""
    seed: int = 0
    pix_fmt: str = "yuv420p"
    scene: Literal["tissue", "texture"] = "tissue"
    bt709: bool = False
    """Encode with the BT.709 matrix, and say so in the stream; else BT.601, unsaid."""
    stack: int = 1
    """Frames in a coded picture, as `surgrec.transcode --stack` has them; divides key_every and stretch."""


@dataclass(frozen=True)
class Corpus:
    """Videos, and the clips that are drawn from them."""

    videos: tuple[VideoSpec, ...]
    stride: int = 4


def _x264(width: int, height: int, key_every: int, stretch: int, repeats: int, seed: int) -> VideoSpec:
    return VideoSpec(width, height, key_every, stretch, repeats, seed=seed)


def _proxy(width: int, height: int, seed: int, gop: int = 16, stack: int = 1) -> VideoSpec:
    """Encoded as `python -m surgrec.transcode` encodes proxies."""
    options = encoder_options("libx264", ProxyOptions.of(TranscodeConfig(gop=gop, stack=stack)))
    return VideoSpec(width, height, gop, 480, 18, options=tuple(options.items()), seed=seed, stack=stack)


def _x265(
    width: int, height: int, key_every: int, repeats: int, seed: int, pix_fmt: str = "yuv420p"
) -> VideoSpec:
    # Closed groups of pictures: decord gives other frames for open ones.
    options = (("preset", "superfast"), ("x265-params", "log-level=none:open-gop=0"))
    stretch = 2 * key_every
    return VideoSpec(
        width, height, key_every, stretch, repeats, "libx265", options=options, seed=seed, pix_fmt=pix_fmt
    )


CORPORA: Final[dict[str, Corpus]] = {
    "480g250": Corpus(tuple(_x264(854, 480, 250, 500, 18, seed) for seed in (1, 2))),
    "480g250n": Corpus(
        tuple(VideoSpec(854, 480, 250, 500, 18, noise=6.0, seed=seed, scene="texture") for seed in (1, 2))
    ),
    "256g16": Corpus(tuple(_x264(340, 256, 16, 480, 18, seed) for seed in (1, 2))),
    # A training proxy has the training rate already: every frame is wanted.
    "proxy16": Corpus(tuple(_proxy(448, 256, seed) for seed in (1, 2)), stride=1),
    # The same frames, stacked; first with the same key frames, then with those that the transcoder chooses.
    "proxy16s4": Corpus(tuple(_proxy(448, 256, seed, stack=4) for seed in (1, 2)), stride=1),
    "proxy4s4": Corpus(tuple(_proxy(448, 256, seed, gop=4, stack=4) for seed in (1, 2)), stride=1),
    "proxy8s8": Corpus(tuple(_proxy(448, 256, seed, gop=8, stack=8) for seed in (1, 2)), stride=1),
    "1080g250": Corpus((_x264(1920, 1080, 250, 250, 12, 1),)),
    # 1080p, 720p and 480p, H.264 and HEVC, 8 and 10 bit, sizes that leave 0 to 14 lines or columns of the
    # coded picture to be cropped, one of them at the top, too. Each lasts as long as another: 2,400 frames.
    "mixed": Corpus(
        (
            VideoSpec(1920, 1080, 120, 120, 20, seed=1, bt709=True),
            _x265(1920, 1080, 50, 24, 2),
            _x264(1280, 720, 50, 100, 24, 3),
            _x265(1280, 720, 50, 24, 4, "yuv420p10le"),
            VideoSpec(1280, 720, 100, 100, 24, options=(("x264-params", "crop-rect=0,2,10,14"),), seed=5),
            _x264(854, 480, 240, 240, 10, 6),
            _x265(718, 478, 100, 12, 7),
            _x265(720, 480, 100, 12, 8, "yuv420p10le"),
        )
    ),
}


def make_corpora(names: Sequence[str], folder: Path) -> dict[str, list[Path]]:
    """The videos of several corpora, in `folder`; those that are not there are made, in parallel processes.

    KeyError for a name that is not in CORPORA.
    """
    found: dict[str, list[Path]] = {}
    missing: list[tuple[VideoSpec, Path]] = []
    for name in names:
        found[name] = []
        for spec in CORPORA[name].videos:
            digest = hashlib.blake2b(json.dumps(asdict(spec)).encode(), digest_size=6).hexdigest()
            path = folder / f"{name}-{spec.width}x{spec.height}-{digest}{spec.suffix}"
            found[name].append(path)
            if not path.exists():
                missing.append((spec, path))
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        # The longest first, so that none is left alone at the end.
        missing.sort(key=lambda made: -made[0].width * made[0].height * made[0].stretch)
        cores = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(min(cores, len(missing)), multiprocessing.get_context("spawn")) as processes:
            for _ in processes.map(_make, *zip(*missing, strict=True)):
                pass
    return found


def _make(spec: VideoSpec, path: Path) -> None:
    partial = path.with_stem(f"{path.stem}.{os.getpid()}.partial")
    try:
        write_video(spec, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def unchanged_priority() -> Iterator[None]:
    """SVT-AV1, opened by root, makes its thread a real-time one, before which nothing else runs."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def write_video(spec: VideoSpec, path: Path) -> None:
    """Encodes one video."""
    with unchanged_priority(), av.open(str(path), "w") as container:
        if spec.stack > 1:
            frames, seconds = spec.stretch * spec.repeats, Fraction(1, RATE)
            container.metadata["comment"] = make_tag(
                tag_values(spec.stack, frames, spec.height, spec.width, seconds)
            )
        # No key frames at scene cuts: the interval is what the corpus is about.
        options = {"g": str(spec.key_every // spec.stack), "sc_threshold": "0", **dict(spec.options)}
        if spec.bt709:
            options |= {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}
        stream = cast(Any, container.add_stream(cast(Any, spec.codec), rate=RATE, options=options))
        stream.width, stream.height, stream.pix_fmt = spec.width, spec.height * spec.stack, spec.pix_fmt
        stream.codec_context.thread_count = min(4, len(os.sched_getaffinity(0)))
        convert = VideoReformatter()
        stacker = Stacker(spec.stack)
        packets: list[Any] = []
        for number, image in enumerate(pictures(spec)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            matrix = Colorspace.ITU709 if spec.bt709 else Colorspace.ITU601
            frame = convert.reformat(frame, format=spec.pix_fmt, dst_colorspace=matrix, threads=1)
            whole = stacker.add(frame)
            if whole is not None:
                whole.pts = number // spec.stack
                whole.time_base = Fraction(1, RATE)
                packets += stream.encode(whole)
        packets += stream.encode(None)
        for packet in packets:  # the encoder is not told of the stack: as ProxyWriter does it
            packet.pts *= spec.stack
            packet.dts *= spec.stack
            packet.duration *= spec.stack
        ticks = int(spec.stretch / RATE / packets[0].time_base)
        for _ in range(spec.repeats):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base = stream, packet.time_base
                copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
                copy.is_keyframe = packet.is_keyframe
                container.mux(copy)
                packet.pts += ticks
                packet.dts += ticks


def pictures(spec: VideoSpec) -> Iterator[NDArray[np.uint8]]:
    """uint8 [H, W, 3] for each frame of the stretch; the array is used again."""
    yield from _tissue(spec) if spec.scene == "tissue" else _moving(spec)


def _moving(spec: VideoSpec) -> Iterator[NDArray[np.uint8]]:
    """A texture of blocks that drifts by 3 and 2 pixels a frame, with noise."""
    generator = np.random.default_rng(spec.seed)
    width, height = spec.width, spec.height
    coarse = generator.uniform(30, 220, (height // 8 + 2, width // 8 + 2, 3)).astype(np.float32)
    texture = np.kron(coarse, np.ones((8, 8, 1), np.float32))
    field = generator.normal(0, spec.noise, (height + 64, width + 64, 3)).astype(np.float32)
    for number in range(spec.stretch):
        dx, dy = generator.integers(0, 64, 2)
        moved = np.roll(texture, (2 * number, 3 * number), (0, 1))[:height, :width]
        noisy = moved + field[dy : dy + height, dx : dx + width]
        yield np.clip(noisy, 0, 255).astype(np.uint8)


def _tissue(spec: VideoSpec) -> Iterator[NDArray[np.uint8]]:
    """Tissue that breathes, a tool across it, and noise."""
    generator = np.random.default_rng(spec.seed)
    width, height = spec.width, spec.height
    tissue = _texture(generator, width + 2 * REACH, height + 2 * REACH)
    tool = _texture(generator, width + 2 * REACH, height + 2 * REACH)[:, :, ::-1] * 0.5 + 90
    field = generator.normal(0, spec.noise, (height + 64, width + 64, 3)).astype(np.float32)
    image = np.empty((height, width, 3), np.uint8)
    for number in range(spec.stretch):
        dx, dy = generator.integers(0, 64, 2)
        _draw(
            image, tissue, tool, field[dy:, dx:], 2 * np.pi * number / spec.stretch, number / RATE, spec.swell
        )
        yield image


@njit(cache=True)
def _draw(image, tissue, tool, noise, angle, seconds, swell):
    height, width = image.shape[0], image.shape[1]
    light = 1 + 0.02 * np.sin(7.3 * seconds)
    # The tool is a bar that swings across the picture.
    tool_x = width * (0.5 + 0.35 * np.sin(5 * angle))
    lean = 0.6 * np.sin(3 * angle)
    for y in range(height):
        for x in range(width):
            edge = x - tool_x - lean * (y - height / 2)
            if abs(edge) < width * 0.06:
                u, v = REACH + edge + width / 2, REACH + y * 1.0 + 40 * np.sin(4 * angle)
                source = tool
            else:
                u = REACH + x + 40 * np.sin(2 * angle) + swell * np.sin(y * 0.035 + 5.1 * seconds)
                v = REACH + y + 30 * np.cos(3 * angle) + swell * np.sin(x * 0.027 + 4.3 * seconds)
                source = tissue
            column, row = int(u), int(v)
            right, low = np.float32(u - column), np.float32(v - row)
            for channel in range(3):
                upper = source[row, column, channel] * (1 - right) + source[row, column + 1, channel] * right
                lower = (
                    source[row + 1, column, channel] * (1 - right)
                    + source[row + 1, column + 1, channel] * right
                )
                value = (upper * (1 - low) + lower * low) * light + noise[y, x, channel]
                image[y, x, channel] = min(max(value, 0.0), 255.0)


def _texture(generator: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """float32 [height, width, 3]: blotches of several sizes."""
    found = np.full((height, width, 3), 120.0, np.float32)
    for cell, contrast in ((64, 30.0), (16, 8.0), (4, 3.0)):
        coarse = generator.normal(0, contrast, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        found += np.kron(coarse, np.ones((cell, cell, 1), np.float32))[:height, :width]
    return found
