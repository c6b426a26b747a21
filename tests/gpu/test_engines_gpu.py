"""The engines on a GPU: the same planes as FFmpeg's, to the bit, on every kind of stream."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from surgrec.kernels.planes import Planes
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.base import ClipFailure, DecodedClip
from surgrec.loaders.engines.cpu_processes import CpuProcesses
from surgrec.loaders.packet_index import PacketIndex

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

ON_NVDEC = (
    "h264_baseline",
    "h264_default",
    "h264_edit_list",
    "h264_fragmented",
    "h264_full_range",
    "h264_intra",
    "h264_intra_refresh",
    "h264_late_start",
    "h264_many_b",
    "h264_mkv",
    "h264_no_pyramid",
    "h264_rotated",
    "h264_vfr",
    "h264_wide_pixels",
    "vp8",
)
"""Kinds of stream that NVDEC of a Hopper GPU decodes at the size that the test suite makes them in."""
LARGER = ("hevc_10bit", "hevc_closed", "hevc_open_gop", "vp9")
"""Those that it decodes at a larger size only."""
SMOOTH_CHROMA = ("h264_10bit", "hevc_10bit", "h264_interlaced")
"""FFmpeg interpolates the chroma of these when it makes RGB; that of others it repeats, as we always do."""


@pytest.fixture(scope="module", params=["nvdec", "hybrid"])
def engine(request, stream_corpus) -> Iterator:
    from surgrec.loaders.engines.nvdec import NvdecEngine

    share = request.param == "hybrid"
    with NvdecEngine(stream_corpus.index, torch.device("cuda", 0), threads=4, share=share) as made:
        yield made


@pytest.fixture(scope="module")
def cpu(stream_corpus) -> Iterator[CpuProcesses]:
    with CpuProcesses(stream_corpus.index, torch.device("cuda", 0), threads=4) as made:
        yield made


def values(clip: Planes) -> list[NDArray[np.int32]]:
    """The planes of each frame of the clip as plain numbers."""
    planes = [plane.to(torch.int32) >> clip.colour.shift for plane in clip.planes]
    return [plane[list(clip.rows)].cpu().numpy() for plane in planes]


def requests(video: int, count: int, seed: int) -> list[ClipRequest]:
    """Strided clips, single frames and any ascending frames of a video of `count` frames."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(24):
        if number % 3:
            stride = int(generator.integers(1, 6))
            length = int(generator.integers(1, min(16, 1 + (count - 1) // stride) + 1))
            first = int(generator.integers(0, count - (length - 1) * stride))
            frames = tuple(range(first, first + length * stride, stride))
        else:
            frames = tuple(sorted(generator.integers(0, count, 6).tolist()))
        made.append(ClipRequest(number, video, frames))
    return made


def test_planes_are_those_of_ffmpeg(stream_corpus, stream_kind, engine, cpu):
    video = stream_corpus.video[stream_kind]
    info = stream_corpus.index.video(video)
    asked = requests(video, info.frame_count, seed=len(stream_kind))
    for ours, theirs, request in zip(engine.decode(asked), cpu.decode(asked), asked, strict=True):
        assert isinstance(ours, DecodedClip), ours
        assert isinstance(theirs, DecodedClip), theirs
        assert isinstance(ours.frames, Planes)
        assert (ours.width, ours.height) == (theirs.width, theirs.height)
        assert ours.frames.colour.matrix == theirs.frames.colour.matrix, request
        assert ours.frames.colour.full_range == theirs.frames.colour.full_range
        for found, wanted in zip(values(ours.frames), values(theirs.frames), strict=True):
            np.testing.assert_array_equal(found, wanted, err_msg=str(request))


def test_pictures_are_those_of_the_cpu(stream_corpus, stream_kind, cpu):
    from surgrec.kernels.nv12_crop import to_rgb

    video = stream_corpus.video[stream_kind]
    images = stream_corpus.reference(stream_kind)[0]
    asked = requests(video, len(images), seed=3)[:4]
    for clip, request in zip(cpu.decode(asked), asked, strict=True):
        assert isinstance(clip.frames, Planes)
        difference = to_rgb(clip.frames).cpu().numpy().astype(int) - images[list(request.frames)]
        if stream_kind in SMOOTH_CHROMA:
            t, h, w, _ = difference.shape
            assert np.abs(difference.reshape(t, h // 8, 8, w // 8, 8, 3).mean((2, 4))).mean() < 4
        else:
            assert np.abs(difference).max() <= 3


def test_nvdec_decodes_most_kinds_itself(stream_corpus, engine):
    """Without this all else could pass with FFmpeg alone."""
    asked = []
    for kind in ON_NVDEC:
        video = stream_corpus.video[kind]
        asked += requests(video, stream_corpus.index.video(video).frame_count, seed=5)
    before = engine.fallbacks.copy()
    engine.decode(asked)
    assert not engine.fallbacks - before


def test_larger_pictures(streams: ModuleType, tmp_path_factory: pytest.TempPathFactory):
    """HEVC and VP9, which NVDEC takes from 128 or 144 lines on, and pictures of odd sizes."""
    from surgrec.loaders.engines.nvdec import NvdecEngine

    from surgrec.index import main as index_command

    folder = tmp_path_factory.mktemp("larger")
    for kind in (*LARGER, "h264_default", "h264_full_range"):
        streams.make_stream(kind, folder / kind, frames=72, size=(342, 218))
    assert index_command([str(folder), "--out", str(folder / "corpus.h5"), "--workers", "1"]) == 0
    index = PacketIndex.open(folder / "corpus.h5")
    device = torch.device("cuda", 0)
    with NvdecEngine(index, device, threads=2) as engine, CpuProcesses(index, device, threads=4) as cpu:
        by_kind = {}
        for video in range(len(index)):
            before = engine.fallbacks.copy()
            asked = requests(video, index.video(video).frame_count, seed=video)
            for ours, theirs, request in zip(engine.decode(asked), cpu.decode(asked), asked, strict=True):
                assert isinstance(ours, DecodedClip), ours
                assert isinstance(ours.frames, Planes)
                for found, wanted in zip(values(ours.frames), values(theirs.frames), strict=True):
                    where = f"{index.video(video).path} {request}"
                    np.testing.assert_array_equal(found, wanted, err_msg=where)
            by_kind[Path(index.video(video).path).stem] = engine.fallbacks - before
        assert not any(by_kind.values()), by_kind


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize(("stack", "gop"), [(4, 16), (4, 4), (8, 16)])
def test_stacked_frames(make_stacked, tmp_path: Path, codec: str, stack: int, gop: int):
    """Each row is its own frame of a stacked picture, to the bit, and NVDEC itself decodes them all."""
    from surgrec.loaders.engines.nvdec import NvdecEngine

    stacked = make_stacked(tmp_path, stack=stack, gop=gop, frames=91, codec=codec, size=(160, 96))
    device = torch.device("cuda", 0)
    asked = requests(0, len(stacked.images), seed=stack)
    with (
        NvdecEngine(stacked.index, device, threads=1) as engine,
        CpuProcesses(stacked.index, device, 2) as cpu,
    ):
        for ours, theirs, request in zip(engine.decode(asked), cpu.decode(asked), asked, strict=True):
            for clip in (ours, theirs):
                assert isinstance(clip, DecodedClip), clip
                assert isinstance(clip.frames, Planes)
                assert (clip.height, clip.width) == (96, 160)
                assert clip.decoded_frames % stack == 0
                assert clip.decoded_frames <= stack * clip.fed_packets
                for found, wanted in zip(values(clip.frames), stacked.planes, strict=True):
                    np.testing.assert_array_equal(found, wanted[list(request.frames)], err_msg=str(request))
        assert not engine.fallbacks


def test_damaged_and_missing_files(stream_corpus, tmp_path: Path):
    """One file is gone, one has changed since, and one was damaged before it was indexed: FFmpeg decides."""
    from surgrec.loaders.engines.nvdec import NvdecEngine

    from surgrec.index import main as index_command

    clean, video = stream_corpus.index, stream_corpus.video["h264_default"]
    source = Path(clean.video(video).path)
    paths = [tmp_path / (name + source.suffix) for name in ("changed", "damaged", "gone")]
    for path in paths:
        shutil.copy(source, path)
    offsets, sizes = (column[clean.packets(video)].tolist()[1:] for column in (clean.offset, clean.size))
    changed, damaged, gone = paths
    spoil(damaged, offsets, sizes)
    assert index_command([str(tmp_path), "--out", str(tmp_path / "corpus.h5"), "--workers", "1"]) == 0
    index = PacketIndex.open(tmp_path / "corpus.h5")
    spoil(changed, offsets, sizes)
    gone.unlink()
    wanted = [
        ClipRequest(k, index.videos.path.index(str(path)), (20, 24, 28)) for k, path in enumerate(paths)
    ]
    with NvdecEngine(index, torch.device("cuda", 0), threads=2) as engine:
        results = engine.decode(wanted)
    for result, remedy in zip(results, ("surgrec.index", "FFmpeg", "put the file back"), strict=True):
        assert isinstance(result, ClipFailure), result
        assert remedy in result.reason
    assert engine.fallbacks.total() == 1


def spoil(path: Path, offsets: list[int], sizes: list[int]) -> None:
    """Noise in the middle of packets; the time of change stays."""
    noise, stamp = random.Random(0), path.stat()
    with path.open("r+b") as file:
        for offset, size in zip(offsets, sizes, strict=True):
            file.seek(offset + size // 2)
            file.write(noise.randbytes(max(1, size // 3)))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def test_memory_stays_where_it_is(stream_corpus, engine):
    """Clip after clip of many formats: sessions are kept and closed, nothing piles up."""
    asked = []
    for kind, video in stream_corpus.video.items():
        if stream_corpus.kinds[kind].random_access:
            asked += requests(video, stream_corpus.index.video(video).frame_count, seed=9)
    engine.decode(asked)
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    for _ in range(3):
        engine.decode(asked)
    assert free - torch.cuda.mem_get_info()[0] < 256 * 2**20
