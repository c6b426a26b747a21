"""Fixtures that the whole test suite shares."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
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
            "corpora",
            "contestant",
            "contestants_gpu",
            "contestants",
            "same_frames",
            "team",
            "loader_throughput",
            "mutations",
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that ask for `stream_kind` run once for each of STREAM_KINDS."""
    if "stream_kind" in metafunc.fixturenames:
        metafunc.parametrize("stream_kind", sorted(_streams().STREAM_KINDS))


@pytest.fixture(scope="session")
def build_index_of() -> Callable[[list[Path], Path], PacketIndex]:
    """Indexes videos with the real indexer, in their order: build_index_of(paths, out)."""

    def build(paths: list[Path], out: Path) -> PacketIndex:
        from surgrec.loaders.packet_index import PacketIndex

        from surgrec.corpus.build import build_index
        from surgrec.corpus.discovery import Entry

        build_index([Entry(str(path), "test", "test") for path in paths], out, workers=1)
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
