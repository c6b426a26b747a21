"""The loader with a GPU: the pictures of the CPU graph, in memory that training kernels can rely on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from surgrec.configs.data import DataConfig
from surgrec.kernels.nv12_crop import crop_clips, to_rgb
from surgrec.kernels.planes import Colour, Planes
from surgrec.loaders.clip_loader import ClipLoader
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_source import ClipSource
from surgrec.loaders.crop import RandomCrop
from surgrec.loaders.crop_way import Way, make_crop
from surgrec.loaders.dali_graph import CropGraph
from surgrec.loaders.engines.base import DecodedClip
from surgrec.loaders.engines.cpu_processes import CpuProcesses
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.streams import loader_stream, memory_stream

from surgrec.index import main as index_command

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

DATA = DataConfig(frames=8, stride=2, size=112, flip=True, threads=4, segment_seconds=1.0, engine="cpu")
WAYS: list[Way] = ["fused", "dali"]


def clip(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (4, height, width, 3), dtype=np.uint8)


def assert_alike(one: torch.Tensor, two: torch.Tensor) -> None:
    difference = (one.cpu().int() - two.cpu().int()).abs()
    assert difference.max() <= 3
    assert difference.float().mean() < 0.6


class OnTheCpu:
    """The pictures of a batch from FFmpeg's planes, with the plain twins of the GPU's kernels."""

    def __init__(self, index: PacketIndex, data: DataConfig, batch: int) -> None:
        self._source = ClipSource(index, data, 3, batch)
        self._engine = CpuProcesses(index, torch.device("cpu"), threads=2)
        self._size = data.size

    def __call__(self, requests: list[ClipRequest], way: Way) -> torch.Tensor:
        clips = []
        for clip in self._engine.decode(requests):
            assert isinstance(clip, DecodedClip), clip
            clips.append(clip)
        windows = self._source.windows(clips)
        if way == "fused":
            boxes = (windows.top, windows.left, windows.height, windows.width, windows.flip)
            return crop_clips([clip.frames for clip in clips], boxes, self._size)
        graph = CropGraph(self._size, len(clips), torch.device("cpu"), threads=2)
        return graph([to_rgb(clip.frames).numpy() for clip in clips], windows)

    def __enter__(self) -> OnTheCpu:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()


@pytest.mark.parametrize("way", WAYS)
def test_both_devices_give_the_same_pictures(way: Way) -> None:
    frames = [clip(*size, seed) for seed, size in enumerate([(640, 480), (333, 250), (100, 180), (854, 480)])]
    crop = RandomCrop(2, (0.3, 1.0), (0.75, 4 / 3), flip=True)
    widths, heights = [f.shape[2] for f in frames], [f.shape[1] for f in frames]
    windows = crop.windows(range(4), widths, heights, [1.0, 1.0, 2.0, 0.9])
    assert len(set(windows.flip.tolist())) == 2
    on_cpu = CropGraph(112, 4, torch.device("cpu"), threads=2)(frames, windows)
    cropper = make_crop(112, 4, torch.device("cuda", 0), threads=2, crop=way)
    on_gpu = cropper(frames, windows)
    assert on_gpu.is_cuda
    assert on_gpu.shape == on_cpu.shape
    assert_alike(on_gpu, on_cpu)
    assert torch.equal(cropper(frames, windows), on_gpu)


@pytest.mark.parametrize("way", WAYS)
def test_planes_are_read_on_the_stream_at_hand(way: Way) -> None:
    """The planes may still be written when the graph is called, if on the same stream; never afterwards."""
    sizes = [(640, 480), (320, 256)]
    crop = RandomCrop(2, (0.3, 1.0), (0.75, 4 / 3), flip=True)
    windows = crop.windows(range(2), [w for w, _ in sizes], [h for _, h in sizes], [1.0, 1.0])
    arrays = [clip(*size, seed) for seed, size in enumerate(sizes)]
    cropper = make_crop(112, 4, torch.device("cuda", 0), threads=2, crop=way)
    expected = cropper(arrays, windows)
    busy = torch.randn(5000, 5000, device="cuda")
    host = [torch.from_numpy(array).pin_memory() for array in arrays]
    torch.cuda.synchronize()
    for _ in range(5):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(5):
                busy = torch.nn.functional.normalize(busy @ busy)
            clips = []
            for pixels in host:
                red, green, blue = pixels.to("cuda", non_blocking=True).unbind(3)
                clips.append(Planes((red, green, blue), (0, 1, 2, 3), Colour("rgb", full_range=True)))
            result = cropper(clips, windows)
            for planes in clips:
                planes.planes[0].zero_()
            assert torch.equal(result, expected)


@pytest.fixture(scope="module")
def index(streams: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> PacketIndex:
    folder = tmp_path_factory.mktemp("corpus")
    for kind in ("h264_default", "hevc_closed", "h264_wide_pixels"):
        streams.make_stream(kind, folder / kind, frames=60, size=(320, 240))
    assert index_command([str(folder), "--out", str(folder / "corpus.h5"), "--workers", "1"]) == 0
    return PacketIndex.open(Path(folder / "corpus.h5"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch", [4, 20])
def test_batches_are_those_of_the_cpu(index: PacketIndex, batch: int, way: Way) -> None:
    with (
        ClipLoader(index, DATA, 3, batch, device="cpu") as on_cpu,
        ClipLoader(index, replace(DATA, crop=way), 3, batch, device="cuda") as on_gpu,
        OnTheCpu(index, DATA, batch) as expected,
    ):
        for _ in range(3):
            one, two = next(on_cpu), next(on_gpu)
            assert two.frames.is_cuda
            assert one.requests == two.requests
            assert_alike(two.frames, expected(two.requests, way))
            # FFmpeg's own RGB is cut off where ours is rounded.
            assert (two.frames.cpu().int() - one.frames.int()).abs().float().mean() < 1.5


@pytest.mark.parametrize("way", WAYS)
def test_shared_decodes_and_their_pool(index: PacketIndex, way: Way) -> None:
    data = replace(DATA, clips_per_decode=2, repeats=2, shuffle_mib=16, crop=way, picture_mib=4)
    with (
        ClipLoader(index, data, 3, 8, device="cpu") as on_cpu,
        ClipLoader(index, data, 3, 8, device="cuda") as on_gpu,
        OnTheCpu(index, data, 8) as expected,
    ):
        for _ in range(8):
            one, two = next(on_cpu), next(on_gpu)
            assert one.requests == two.requests
            assert two.decode_repetition == 0
            assert_alike(two.frames, expected(two.requests, way))


@pytest.mark.parametrize("way", WAYS)
def test_device_memory_stays_the_same(index: PacketIndex, way: Way) -> None:
    data = replace(DATA, clips_per_decode=2, repeats=2, shuffle_mib=16, crop=way)
    with ClipLoader(index, data, 3, 16, device="cuda") as loader:
        for _ in range(10):
            next(loader)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(10):
            next(loader)
        before = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(40):
            next(loader)
        assert torch.cuda.max_memory_allocated() <= 1.5 * before


@pytest.mark.parametrize("way", WAYS)
def test_queued_kernels_read_a_batch_that_is_no_longer_held(index: PacketIndex, way: Way) -> None:
    """A training step queues its kernels and lets go of the batch; its memory must wait for them."""
    data = replace(DATA, prefetch=4, crop=way)
    with ClipLoader(index, data, 3, 16, device="cuda") as loader:
        expected = [next(loader).frames.sum().item() for _ in range(12)]
    busy = torch.randn(6000, 6000, device="cuda")
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        with ClipLoader(index, data, 3, 16, device="cuda") as loader, torch.cuda.stream(stream):
            sums = []
            for _ in range(12):
                frames = next(loader).frames
                for _ in range(20):
                    busy = torch.nn.functional.normalize(busy @ busy)
                sums.append(frames.sum())
                del frames
            torch.cuda.synchronize()
            assert [total.item() for total in sums] == expected


def test_nobody_queues_work_where_decoders_get_memory() -> None:
    """PyTorch hands its streams out again and again."""
    device = torch.device("cuda", 0)
    others = [loader_stream(device) for _ in range(70)] + [torch.cuda.Stream() for _ in range(70)]
    assert len({stream.cuda_stream for stream in others}) < len(others)
    memory = {memory_stream(device).cuda_stream for _ in range(70)}
    assert memory.isdisjoint(stream.cuda_stream for stream in [*others, torch.cuda.current_stream()])
    for stream in others:
        assert stream.priority in (0, -1)


@pytest.mark.parametrize("way", WAYS)
def test_batches_stay_when_the_loader_goes_on_elsewhere(index: PacketIndex, way: Way) -> None:
    """Decoders get the memory of pictures that the GPU may not have read yet."""
    data = replace(DATA, crop=way)
    with ClipLoader(index, data, 3, 16, device="cuda") as loader:
        expected = [next(loader).frames.clone() for _ in range(4)]
    with ClipLoader(index, data, 3, 16, device="cuda") as loader:
        begin = loader.state_dict()
        for _ in range(20):
            loader.load_state_dict(begin)
            taken = [next(loader).frames for _ in range(4)]
            loader.load_state_dict(begin | {"next_sample": 160})
            later = next(loader).frames
            assert all(torch.equal(one, two) for one, two in zip(taken, expected, strict=True))
            del taken, later
