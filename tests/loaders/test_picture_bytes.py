"""Bytes of decoded pictures, on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.picture_bytes import picture_bytes


@pytest.mark.parametrize(
    ("pix_fmt", "depth", "samples"),
    [("yuv420p", 8, 1.5), ("yuv420p10le", 10, 3), ("yuvj422p", 8, 2), ("yuv444p10le", 10, 6), ("gbrp", 8, 3)],
)
def test_planes_and_rgb(
    make_index: Callable[[Any], PacketIndex], pix_fmt: str, depth: int, samples: float
) -> None:
    index = make_index([{"frames": 9, "width": 32, "height": 20, "pix_fmt": pix_fmt, "bit_depth": depth}])
    request = ClipRequest(0, 0, (1, 3, 5))
    assert picture_bytes(index, request, torch.device("cuda", 0)) == 3 * 32 * 20 * samples
    assert picture_bytes(index, request, torch.device("cpu")) == 3 * 32 * 20 * 3
