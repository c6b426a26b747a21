"""Fixtures that the whole test suite shares."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

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
        # Scripts import `harness` as a neighbour, so it is the one module that keeps its bare name.
        harness = _load("harness", ROOT / "bench" / "harness.py")
        return harness if name == "harness" else _load(f"bench_{name}", ROOT / "bench" / f"{name}.py")

    return load


@pytest.fixture(scope="session")
def streams() -> ModuleType:
    """tests/streams.py: `make_stream(kind, path)` and `STREAM_KINDS`."""
    return _load("surgrec_test_streams", ROOT / "tests" / "streams.py")
