"""Fixtures that the whole test suite shares."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from surgrec.loaders.index_writer import Source
    from surgrec.loaders.packet_index import PacketIndex

ROOT = Path(__file__).resolve().parent.parent


def _load(name: str, path: Path) -> ModuleType:
    """Imports a file by its path under a name of its own; sys.path stays as it is."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def bench_module() -> Callable[[str], ModuleType]:
    """Imports a script of bench/ by name, as `python bench/<name>.py` would find its neighbours."""

    def load(name: str) -> ModuleType:
        # Scripts import these as neighbours, so they keep their bare names.
        shared = (
            "harness",
            "gpu_clocks",
            "corpora",
            "contestant",
            "contestants_gpu",
            "contestants",
            "same_frames",
            "team",
            "loader_throughput",
            "mutations",
            "restated",
            "training_contestants",
            "decord_batches",
            "train_throughput",
            "rank_group",
            "scaling_work",
            "scaling_clips",
            "scaling_steps",
            "scaling_storage",
            "scaling_ranks",
            "scaling_rows",
            "probe_throughput",
        )
        modules = {neighbour: _load(neighbour, ROOT / "bench" / f"{neighbour}.py") for neighbour in shared}
        return modules[name] if name in modules else _load(f"bench_{name}", ROOT / "bench" / f"{name}.py")

    return load


def _streams() -> ModuleType:
    return _load("surgrec_test_streams", ROOT / "tests" / "streams.py")


@pytest.fixture(scope="session")
def streams() -> ModuleType:
    """tests/streams.py: `make_stream(kind, path)` and `STREAM_KINDS`."""
    return _streams()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """tests/browser.py: one Chromium for all tests. Skips where there is none, but in CI, where .ci/run
    installs it."""
    module = _load("surgrec_test_browser", ROOT / "tests" / "browser.py")
    found = module.start()
    if found is None and os.environ.get("CI"):
        pytest.fail(module.MISSING)
    if found is None:
        pytest.skip(module.MISSING)
    yield found
    found.quit()


@pytest.fixture(scope="session")
def warm_start() -> Iterator[Callable[..., Any]]:
    """warm_start(module or file, *arguments, imports=modules, ...): a process that has nothing to import; see
    Server.start of tests/warm_start.py."""
    server = _load("surgrec_test_warm_start", ROOT / "tests" / "warm_start.py").Server()
    yield server.start
    server.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that ask for `stream_kind` run once for each of STREAM_KINDS."""
    if "stream_kind" in metafunc.fixturenames:
        metafunc.parametrize("stream_kind", sorted(_streams().STREAM_KINDS))


@pytest.fixture(scope="session")
def build_index_of() -> Callable[[list[Path], Path], PacketIndex]:
    """Indexes videos with the real indexer, in their order: build_index_of(paths, out, verify=False)."""

    def build(paths: list[Path], out: Path, verify: bool = False) -> PacketIndex:
        from surgrec.loaders.packet_index import PacketIndex

        from surgrec.corpus.build import build_index
        from surgrec.corpus.discovery import Entry

        build_index([Entry(str(path), "test", "test") for path in paths], out, workers=1, verify=verify)
        return PacketIndex.open(out)

    return build


class StreamCorpus:
    """One small video of each kind, their index, and what a full FFmpeg decode of each gives."""

    def __init__(self, folder: Path, build: Callable[[list[Path], Path], PacketIndex]) -> None:
        module = _streams()
        self.kinds: dict[str, Any] = module.STREAM_KINDS
        self.paths: dict[str, Path] = {
            kind: module.make_stream(kind, folder / kind) for kind in sorted(self.kinds)
        }
        self.index = build(list(self.paths.values()), folder / "corpus.h5")
        numbers = {path: number for number, path in enumerate(self.index.videos.path)}
        self.video: dict[str, int] = {kind: numbers[str(path)] for kind, path in self.paths.items()}

    @cache  # noqa: B019 - the corpus lives as long as the session
    def reference(self, kind: str) -> tuple[NDArray[np.uint8], list[int | None]]:
        """uint8 [N, H, W, 3] upright RGB of every frame in display order, and their pts."""
        images, times = _streams().decode_all(self.paths[kind], self.kinds[kind].rotation)
        return images, times


@pytest.fixture(scope="session")
def stream_corpus(
    tmp_path_factory: pytest.TempPathFactory, build_index_of: Callable[[list[Path], Path], PacketIndex]
) -> StreamCorpus:
    """A StreamCorpus: `paths`, `index`, `video` (kind -> number in the index), `reference(kind)`."""
    return StreamCorpus(tmp_path_factory.mktemp("streams"), build_index_of)


@dataclass(frozen=True)
class Stacked:
    """A proxy of stacked frames, the same one unstacked, and what a full FFmpeg decode gives, cut by hand.

    images: uint8 [N, H, W, 3] RGB. planes: Y, Cb, Cr, uint8 [N, h, w]. N frames; index: of both proxies, the
    stacked one first.
    """

    path: Path
    stack: int
    index: PacketIndex
    images: NDArray[np.uint8] = field(repr=False)
    planes: tuple[NDArray[np.uint8], ...] = field(repr=False)


@pytest.fixture(scope="session")
def make_stacked(
    streams: ModuleType, build_index_of: Callable[[list[Path], Path], PacketIndex]
) -> Callable[..., Stacked]:
    """make_stacked(folder, stack=4, gop=16, frames=45, codec="h264", size=(96, 64)): by the transcoder."""

    def make(
        folder: Path,
        stack: int = 4,
        gop: int = 16,
        frames: int = 45,
        codec: str = "h264",
        size: tuple[int, int] = (96, 64),
    ) -> Stacked:
        import av
        import numpy as np

        from surgrec.transcoding.options import ProxyOptions
        from surgrec.transcoding.proxy_file import Task, make_proxy
        from surgrec.transcoding.sources import FOREIGN, Wanted

        source = streams.make_stream("h264_default", folder / "source", frames=frames, size=size)
        paths = []
        for many in (stack, 1):
            options = ProxyOptions(
                min(size), "0", gop, codec, 20.0, "ultrafast", "cpu", "first", 4, 0.8, stack=many
            )
            wanted = Wanted(str(source), FOREIGN, "films", "", "", "")
            task = Task(wanted, str(folder / f"stack{many}"), options, "cpu")
            assert make_proxy(task, lambda share: None) is not None
            paths.append(task.target)
        rgb, planes = [], []
        with av.open(str(paths[0])) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for picture in container.decode(video=0):
                rgb.append(picture.to_ndarray(format="rgb24", threads=1))
                planes.append([np.asarray(plane_lines(plane)) for plane in picture.planes])
        cut = [np.concatenate(parts) for parts in (rgb, *zip(*planes, strict=True))]
        tall = (size[1], size[1], size[1] // 2, size[1] // 2)
        cut = [
            part.reshape(-1, height, *part.shape[1:])[:frames] for part, height in zip(cut, tall, strict=True)
        ]
        index = build_index_of(paths, folder / "corpus.h5")
        return Stacked(paths[0], stack, index, cut[0], (cut[1], cut[2], cut[3]))

    return make


def plane_lines(plane: Any) -> NDArray[np.uint8]:
    """uint8 [h, w]: a copy of a plane of 8 bits."""
    import numpy as np

    lines = np.frombuffer(memoryview(plane), np.uint8)[: plane.height * plane.line_size]
    return lines.reshape(plane.height, plane.line_size)[:, : plane.width].copy()


def _source(number: int, video: dict[str, Any]) -> Source:
    """`frames` or `pts` (in display order) and any column of the index; every packet is a key frame."""
    import numpy as np
    from surgrec.loaders.index_writer import Packets, Row, Source, default_values
    from surgrec.loaders.packet_index import KEY, OK

    video = dict(video)
    count = video.pop("frames", None)
    pts = np.asarray(video.pop("pts", range(count or 0)), np.int64)
    n = len(pts)
    values = default_values(video.get("path", f"video{number}.mp4"))
    values.update(
        status=OK,
        packet_count=n,
        frame_count=n,
        time_base_num=1,
        time_base_den=25,
        rate=25.0,
        duration=n / 25,
        width=64,
        height=48,
    )
    values.update(video)
    packets = Packets(
        offset=np.arange(n, dtype=np.uint64) * 10,
        size=np.full(n, 10, np.uint32),
        pts=pts,
        rank=np.arange(n, dtype=np.uint32),
        flags=np.full(n, KEY, np.uint8),
        checksum=np.zeros(n, np.uint32),
        display=np.arange(n, dtype=np.uint32),
    )
    return Source(Row(values), lambda: packets)


@pytest.fixture
def make_index(tmp_path: Path) -> Callable[[Sequence[dict[str, Any]]], PacketIndex]:
    """make_index([{"frames": 100, "domain": "cataract"}, {"pts": [0, 7, 9]}, ...]) -> opened index."""
    from surgrec.loaders.index_writer import write_index
    from surgrec.loaders.packet_index import PacketIndex

    made = []

    def make(videos: Sequence[dict[str, Any]]) -> PacketIndex:
        path = tmp_path / f"index{len(made)}.h5"
        made.append(path)
        write_index(path, [_source(number, video) for number, video in enumerate(videos)])
        return PacketIndex.open(path)

    return make
