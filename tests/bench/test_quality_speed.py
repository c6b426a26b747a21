"""bench/quality_speed.py on a video of a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def test_rows_are_times_real_time(
    tmp_path: Path,
    bench_module: Callable[[str], ModuleType],
    streams: ModuleType,
    build_index_of: Callable[..., Any],
) -> None:
    bench = bench_module("quality_speed")
    path = streams.make_stream("h264_default", tmp_path / "video", frames=72)
    index = build_index_of([path], tmp_path / "corpus.h5")
    rows = bench.measure(index, "480g250", bench.Options(segment_seconds=1.0, segments=2, runs=1))
    assert [row.name for row in rows] == ["quality", "pictures", "content_area", "decode"]
    assert all(row.corpus == "480g250" and row.metric == "times_real_time" for row in rows)
    assert all(row.value > 0 for row in rows)
    assert rows[0].extra["segments"] == 2
    assert rows[0].extra["pictures"] >= 2
