"""A small folder of videos, and runs of the transcoder without worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from surgrec.configs.transcode import TranscodeConfig

from surgrec.transcoding import run as run_module
from surgrec.transcoding.journal import ProxyJournal
from surgrec.transcoding.manifest import MANIFEST_NAME
from surgrec.transcoding.proxy_file import ProxyError, Task, make_proxy
from surgrec.transcoding.workers import Done


@pytest.fixture
def films(tmp_path: Path, streams: ModuleType) -> Path:
    """films/lap/one.mp4, films/lap/two.mkv, films/eye/three.mp4: 40 frames of 96x64 each."""
    folder = tmp_path / "films"
    for kind, name in (("h264_default", "lap/one"), ("h264_mkv", "lap/two"), ("h264_vfr", "eye/three")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        streams.make_stream(kind, folder / name, frames=40, size=(96, 64))
    return folder


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs work in this process, with x264; the list collects the names of the sources that were read."""
    read: list[str] = []

    def run_tasks(
        tasks: list[Task], workers: int, timeout: float, progress: Callable[[str, float], None]
    ) -> Iterator[Done]:
        for task in tasks:
            read.append(Path(task.wanted.path).name)
            try:
                record = make_proxy(task, partial(progress, task.wanted.path))
            except ProxyError as error:
                yield Done(task, "failed", str(error))
                continue
            if record is not None:
                ProxyJournal(Path(task.out) / MANIFEST_NAME).write(record)
            yield Done(task, "made" if record else "unchanged")

    monkeypatch.setattr(run_module, "run_tasks", run_tasks)
    monkeypatch.setattr(run_module, "why_no_encoder", lambda name, options: "" if "lib" in name else "no GPU")
    return read


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[..., TranscodeConfig]:
    """config_of(input, ..., option=value): a fast configuration that writes to tmp_path / "proxies"."""

    def make(*inputs: Path, **options: Any) -> TranscodeConfig:
        fast = {"out": tmp_path / "proxies", "preset": "ultrafast", "encoder": "cpu", "workers": 1}
        return TranscodeConfig(inputs=tuple(map(str, inputs)), **{**fast, **options})

    return make
