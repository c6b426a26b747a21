"""Windows that are slid over a video on a GPU: each is the clip that is decoded alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.packet_index import PacketIndex

from surgrec.evaluation.sliding import read_windows
from surgrec.evaluation.window_plan import plan_windows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("engine", ["auto", "cpu"])
@pytest.mark.parametrize("most", [1 << 30, 2 << 20])
@pytest.mark.parametrize("kind", ["h264_default", "hevc_closed"])
def test_windows_are_the_clips_that_are_read_alone(
    streams: ModuleType,
    build_index_of: Callable[..., PacketIndex],
    tmp_path: Path,
    kind: str,
    most: int,
    engine: str,
) -> None:
    path = streams.make_stream(kind, tmp_path / kind, frames=120, size=(320, 240))
    index = build_index_of([path], tmp_path / "corpus.h5")
    geometry = {"frames": 8, "stride": 3, "size": 64}
    plan = plan_windows(index, 0, geometry, lambda *given: (), 0.2, None)
    windows = dict(enumerate(plan.windows))
    with ClipStream(index, DataConfig(size=64, engine=engine), "cuda", 2, chunk=1) as stream:  # type: ignore[arg-type]
        batches = list(read_windows(stream, index, 0, windows, 4, most))
        requests = [ClipRequest(number, 0, window.frames) for number, window in windows.items()]
        (alone,) = stream.read([requests])
    assert [number for batch in batches for number in batch.numbers] == list(windows)
    assert torch.equal(torch.cat([batch.frames for batch in batches]), alone.frames)
