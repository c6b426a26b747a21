"""Plain models to compare with, and clips."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def restated() -> ModuleType:
    """tests/weights/restated.py"""
    return _neighbour("restated")


@pytest.fixture(scope="session")
def image_files() -> ModuleType:
    """tests/weights/image_files.py"""
    return _neighbour("image_files")


@pytest.fixture
def root(image_files: ModuleType, streams: ModuleType, tmp_path: Path) -> Path:
    """See image_files.made."""
    made: Path = image_files.made(streams, tmp_path)
    return made


def _neighbour(file: str) -> ModuleType:
    name = f"surgrec_test_weights_{file}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{file}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def large_clips() -> Tensor:
    """uint8 [2, 16, 224, 224, 3]"""
    return clips(224)


@pytest.fixture(scope="session")
def small_clips() -> Tensor:
    """uint8 [2, 16, 32, 32, 3]"""
    return clips(32)


def clips(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (2, 16, size, size, 3), generator=generator, dtype=torch.uint8)
