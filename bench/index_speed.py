"""How fast is indexing? Packets per second of one process, from a warm cache.

    python bench/index_speed.py                       # videos made by the script
    python bench/index_speed.py --videos a.mp4 b.mkv  # your own

`surgrec` is all that one file costs: two opens, digest, demuxing, NAL units, display order. `demux` is PyAV's
bare loop over the packets, the ceiling of whatever goes through FFmpeg's demuxers; `ffprobe` writes the same
packets as text (where it is installed).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import tyro
from harness import Row, print_machine, print_table, rate, repeat, row, write_results
from surgrec.loaders.packet_index import ERROR
from surgrec.loaders.packet_scan import scan_file

CASES = {
    # name: width, height, frames that are encoded, packets in the file
    "tiny": (64, 64, 2000, 200_000),
    "480p": (854, 480, 500, 20_000),
}


@dataclass(frozen=True)
class Options:
    """Packets per second of indexing, on one core."""

    videos: tuple[Path, ...] = ()
    """Your own videos instead of those that the script makes."""
    runs: int = 5
    """Measured runs; one more warms the cache."""
    scale: float = 1.0
    """Share of the packets in the videos that the script makes."""
    write: bool = True
    """Write bench/results/."""


def frames(width: int, height: int, count: int) -> Iterator[av.VideoFrame]:
    """A texture that moves, with a little noise: about as many bytes a frame as film of that size."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(40, 200, (height // 16 + 2, width // 16 + 2 + count // 8), np.uint8)
    texture = np.kron(coarse, np.ones((16, 16), np.uint8))
    for number in range(count):
        luma = texture[:height, 2 * number % 16 : 2 * number % 16 + width] + generator.integers(
            0, 4, (height, width), np.uint8
        )
        grey = np.full((height // 2, width), 128, np.uint8)
        frame = av.VideoFrame.from_ndarray(np.concatenate([luma, grey]), format="yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        yield frame


def make_video(path: Path, width: int, height: int, encoded: int, packets: int) -> None:
    """H.264 with x264's default settings (key frame every 250, B-frames), repeated up to `packets`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 25)
        group = [packet for frame in frames(width, height, encoded) for packet in stream.encode(frame)]
        group += stream.encode(None)
        content = [(bytes(p), p.pts or 0, p.dts or 0, p.is_keyframe) for p in group]
        for repeated in range(-(-packets // len(content))):
            for number, (data, pts, dts, key) in enumerate(content):
                if repeated * len(content) + number >= packets:
                    break
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), key
                packet.pts, packet.dts = pts + repeated * encoded, dts + repeated * encoded
                container.mux(packet)


def remux(source: Path, target: Path) -> None:
    """The same packets in another container."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


def bare_demux(path: Path) -> int:
    """Packets of the first video stream, nothing done with them."""
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)


def ffprobe(path: Path) -> None:
    """The packets of the first video stream as CSV, thrown away."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries"]
    command += ["packet=pts,dts,pos,size,flags", "-of", "csv", str(path)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


@contextmanager
def corpus(options: Options) -> Iterator[dict[str, Path]]:
    """Videos to measure on, by name."""
    if options.videos:
        yield {path.name: path for path in options.videos}
        return
    with tempfile.TemporaryDirectory(prefix="surgrec-index-speed-") as folder:
        videos: dict[str, Path] = {}
        for name, (width, height, encoded, packets) in CASES.items():
            mp4 = Path(folder) / f"{name}.mp4"
            make_video(mp4, width, height, encoded, max(1, int(packets * options.scale)))
            mkv = mp4.with_suffix(".mkv")
            remux(mp4, mkv)
            videos |= {mp4.name: mp4, mkv.name: mkv}
        yield videos


def measure(name: str, path: Path, runs: int) -> list[Row]:
    """Rows of all contestants on one video; raises ValueError where they find different packets."""
    scanned = scan_file(path)
    values = scanned.row.values
    if values["status"] == ERROR:
        raise ValueError(f"{path}: {values['reason']}")
    packets = values["packet_count"]
    found = bare_demux(path)
    if found != packets:
        raise ValueError(f"{path}: the index holds {packets} packets, PyAV reads {found}")
    size = round(path.stat().st_size / packets)
    contestants = {"surgrec": lambda: scan_file(path), "demux": lambda: bare_demux(path)}
    if shutil.which("ffprobe"):
        contestants["ffprobe"] = lambda: ffprobe(path)
    return [
        row(
            who,
            name,
            "packets_per_s",
            repeat(rate(work, packets), 1, runs),
            packets=packets,
            bytes_a_packet=size,
        )
        for who, work in contestants.items()
    ]


def main(options: Options) -> None:
    """Measure, print and write."""
    print_machine()
    rows: list[Row] = []
    with corpus(options) as videos:
        for name, path in videos.items():
            rows += measure(name, path, options.runs)
    print_table(rows)
    if options.write:
        print(write_results(__file__, options, rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
