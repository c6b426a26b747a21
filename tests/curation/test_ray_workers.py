"""Curation on a Ray cluster: the same plan as by local processes, and errors that say what to do."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from surgrec.loaders.engines.base import BadClip
from surgrec.loaders.packet_index import PacketIndex

from surgrec.curate import main
from surgrec.curation.per_video import Task
from surgrec.curation.ray_workers import LOCAL, RayWorkers
from surgrec.curation.records import Arrays, CurationError

INSTALLED = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(
    not INSTALLED and os.environ.get("CI") != "true",
    reason="Ray is not installed: pip install 'surgrec[ray]'",
)


def look(index: PacketIndex, video: int, about: Any) -> Arrays:
    """What the cluster is given to do."""
    if about == "bad":
        raise BadClip("nothing to see")
    if about == "wrong":
        raise ValueError("an error of the program")
    if about == "die":
        os._exit(3)
    return {"frames": index.videos.frame_count[video : video + 1] + about}


@pytest.fixture(scope="module")
def corpus(
    streams: ModuleType, build_index_of: Callable[..., PacketIndex], tmp_path_factory: pytest.TempPathFactory
) -> PacketIndex:
    folder = tmp_path_factory.mktemp("ray")
    kinds = ("h264_default", "hevc_closed", "h264_open_gop")
    paths = [streams.make_stream(kind, folder / kind, frames=60) for kind in kinds]
    return build_index_of(paths, folder / "corpus.h5")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray's workers find this file by its name, as they find what is installed."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.chdir(tmp_path)  # Ray puts it before all else in the workers' search path
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(look, "__module__", "test_ray_workers")
    monkeypatch.setitem(sys.modules, "test_ray_workers", sys.modules[__name__])


def task(video: int, about: Any) -> Task:
    return Task(video, "", about)


@needs_ray
def test_work_on_a_cluster(corpus: PacketIndex, here: None) -> None:
    with RayWorkers(LOCAL, 1) as workers:
        tasks = [task(video, about) for video, about in enumerate((5, "bad", 7))]
        found = {done.video: (done, finding) for done, finding in workers.run("quality", look, tasks, corpus)}
        for video, more in ((0, 5), (2, 7)):
            arrays = found[video][1].arrays
            assert arrays is not None
            np.testing.assert_array_equal(arrays["frames"], [60 + more])
        assert (found[1][1].arrays, found[1][1].reason) == (None, "nothing to see")
        with pytest.raises(ValueError, match="an error of the program"):
            list(workers.run("quality", look, [task(0, "wrong")], corpus))
        with pytest.raises(CurationError, match=r"stage quality: a worker .* was lost,.* the same command"):
            list(workers.run("quality", look, [task(0, "die")], corpus))
        kept = corpus.path.rename(corpus.path.with_suffix(".kept"))
        try:
            again = RayWorkers(LOCAL, 1)
            again._remote = workers._remote
            with pytest.raises(CurationError, match="see the index and the videos under the same paths"):
                list(again.run("embed", look, [task(0, 1)], corpus))
        finally:
            kept.rename(corpus.path)


@needs_ray
def test_the_same_plan_as_by_local_processes(corpus: PacketIndex, tmp_path: Path) -> None:
    line = ["all", "--index", str(corpus.path), "--workers", "1", "--segments.seconds", "1"]
    line += ["--segments.least-seconds", "0.3", "--segments.detector", "content", "--cluster.levels", "3"]
    line += ["--quality.zero", "undecodable"]
    local, cluster = tmp_path / "local.h5", tmp_path / "ray.h5"
    assert main([*line, "--out", str(local)]) == 0
    ray = ["--engine", "ray", "--address", "local", "--out", str(cluster)]
    done = subprocess.run(
        [sys.executable, "-m", "surgrec.curate", *line, *ray],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert cluster.read_bytes() == local.read_bytes()
    assert "ray" not in done.stderr.lower()  # it prints nothing of its own


def test_without_ray(
    corpus: PacketIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    line = ["all", "--index", str(corpus.path), "--out", str(tmp_path / "plan.h5"), "--engine", "ray"]
    assert main(line) == 1
    assert "pip install 'surgrec[ray]'" in capsys.readouterr().err


@needs_ray
def test_no_cluster(corpus: PacketIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["all", "--index", str(corpus.path), "--out", str(tmp_path / "plan.h5"), "--engine", "ray"]
    assert main([*line, "--address", "no address"]) == 1
    assert "no Ray cluster answers there" in capsys.readouterr().err
