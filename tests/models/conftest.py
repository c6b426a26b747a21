"""Small transformers and clips for the tests of the models."""

from __future__ import annotations

import pytest
import torch
from surgrec.configs.model import VIT_SHAPES, ViTShape
from torch import Tensor


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ViTShape:
    """Makes the size `tiny` smaller for a test."""
    shape = ViTShape(3, 48, 3)
    monkeypatch.setitem(VIT_SHAPES, "tiny", shape)
    return shape


@pytest.fixture
def frames() -> Tensor:
    """uint8 [3, 8, 64, 64, 3]: 4 x 4 x 4 tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 8, 64, 64, 3), dtype=torch.uint8, generator=generator)
