"""Small videos of several codecs, and damage done to their packets, as seeded random choices."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from corpora import VideoSpec, write_video

if TYPE_CHECKING:
    from surgrec.loaders.packet_index import PacketIndex

_X265 = ("preset", "superfast")
_QUIET = "log-level=none:keyint=24:min-keyint=24:open-gop="
KINDS: Final[dict[str, VideoSpec]] = {
    "h264": VideoSpec(320, 192, 24, 96, 1),
    "h264-baseline": VideoSpec(320, 192, 24, 96, 1, options=(("profile", "baseline"),), seed=1),
    "h264-open": VideoSpec(320, 180, 24, 96, 1, options=(("x264-params", "open-gop=1"),), seed=2),
    "hevc": VideoSpec(320, 192, 24, 96, 1, "libx265", options=(_X265, ("x265-params", _QUIET + "0")), seed=3),
    "hevc-10bit": VideoSpec(
        318,
        190,
        24,
        96,
        1,
        "libx265",
        options=(_X265, ("x265-params", _QUIET + "1")),
        seed=4,
        pix_fmt="yuv420p10le",
    ),
    "vp9": VideoSpec(
        320, 192, 24, 96, 1, "libvpx-vp9", ".webm", (("deadline", "realtime"), ("cpu-used", "8")), seed=5
    ),
    "av1": VideoSpec(
        320, 192, 24, 96, 1, "libsvtav1", ".mp4", (("preset", "12"), ("svtav1-params", "lp=1")), seed=6
    ),
    "mpeg4": VideoSpec(320, 192, 24, 96, 1, "mpeg4", ".mp4", (("bf", "2"), ("b", "1M")), seed=7),
}


def make_kinds(names: tuple[str, ...], folder: Path) -> dict[str, Path]:
    """One clean video of each kind, in `folder`. KeyError for a kind that is not in KINDS."""
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints its configuration otherwise
    found = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        spec = KINDS[name]
        found[name] = folder / f"{name}{spec.suffix}"
        write_video(spec, found[name])
    return found


def mutate(index: PacketIndex, video: int, seed: int) -> str:
    """Damages one to three packets of a file in place; size and time of change stay. Returns what was done.

    index: of the file as it was.
    """
    generator = np.random.default_rng([seed, video])
    path = Path(index.videos.path[video])
    before = path.stat()
    content = np.fromfile(path, np.uint8)
    packets = index.packets(video)
    offsets, sizes = index.offset[packets].astype(np.int64), index.size[packets].astype(np.int64)
    done = []
    for _ in range(int(generator.integers(1, 4))):
        packet = int(generator.integers(0, len(sizes)))
        first, size = int(offsets[packet]), int(sizes[packet])
        name = str(generator.choice([*MUTATIONS, "swap"]))
        if name == "swap":
            other = int(generator.integers(0, len(sizes)))
            length = min(size, int(sizes[other]))
            here, there = slice(first, first + length), slice(offsets[other], offsets[other] + length)
            content[here], content[there] = content[there].copy(), content[here].copy()
        else:
            MUTATIONS[name](generator, content[first : first + size])
        done.append(f"{name} {packet}")
    with path.open("r+b") as file:  # in place: hard links and open descriptors see it, too
        file.write(content.tobytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return ", ".join(done)


def _bits(generator: np.random.Generator, packet: np.ndarray) -> None:
    for _ in range(int(generator.integers(1, 9))):
        packet[generator.integers(0, len(packet))] ^= np.uint8(1 << int(generator.integers(0, 8)))


def _zeros(generator: np.random.Generator, packet: np.ndarray) -> None:
    first = int(generator.integers(0, len(packet)))
    packet[first : first + int(generator.integers(8, 512))] = 0


def _noise(generator: np.random.Generator, packet: np.ndarray) -> None:
    first = int(generator.integers(0, len(packet)))
    part = packet[first : first + int(generator.integers(8, 512))]
    part[:] = generator.integers(0, 256, len(part), np.uint8)


def _cut(generator: np.random.Generator, packet: np.ndarray) -> None:
    packet[int(generator.integers(0, len(packet))) :] = 0


MUTATIONS: Final[dict[str, Callable[[np.random.Generator, np.ndarray], None]]] = {
    "bits": _bits,
    "zeros": _zeros,
    "noise": _noise,
    "cut": _cut,
}
