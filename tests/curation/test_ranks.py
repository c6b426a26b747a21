"""Stage embed by two processes, as torchrun starts them: the plan of one process; a rank that is lost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from surgrec.loaders.packet_index import PacketIndex

from surgrec.curate import main


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    """As the ranks have: the last bits of a network's vectors hang on it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(
    streams: ModuleType, build_index_of: Callable[..., PacketIndex], tmp_path_factory: pytest.TempPathFactory
) -> PacketIndex:
    """Five small drawn videos of different lengths."""
    folder = tmp_path_factory.mktemp("ranks")
    kinds = ("h264_default", "hevc_closed", "h264_open_gop", "h264_baseline", "h264_wide_pixels")
    paths = [
        streams.make_stream(kind, folder / kind, frames=50 + 20 * n, first=90 * n)
        for n, kind in enumerate(kinds)
    ]
    return build_index_of(paths, folder / "corpus.h5")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files for timm's own model for tests."""
    import timm

    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        paths.append(tmp_path_factory.mktemp("weights") / "vit.safetensors")
        save_file(timm.create_model("test_vit").state_dict(), paths[-1])
    return paths


def arguments(corpus: PacketIndex, out: Path, embedder: str) -> list[str]:
    line = ["all", "--index", str(corpus.path), "--out", str(out), "--workers", "1", "--embed.batch", "2"]
    line += ["--segments.seconds", "1", "--segments.least-seconds", "0.3", "--segments.detector", "none"]
    line += ["--quality.zero", "undecodable", "--cluster.levels", "3", "--embed.embedder", embedder]
    return line


def ended(process: Any) -> tuple[int, str, str]:
    """Exit status, output, errors; the process is no more, whatever happens."""
    try:
        out, error = process.communicate(timeout=200)
    finally:
        process.kill()
    return process.returncode, out, error


@pytest.fixture
def two_processes(
    warm_start: Callable[..., Any], corpus: PacketIndex
) -> Callable[[Path, list[str]], list[Any]]:
    """Ranks as torchrun would start them, without the seconds that it takes, and that it ends all at once."""

    def start(out: Path, embedders: list[str]) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
        return [
            warm_start(
                "surgrec.curate",
                *arguments(corpus, out, embedder),
                imports=("surgrec.curation.pipeline", "timm"),
                environment=place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, embedder in enumerate(embedders)
        ]

    return start


def test_torchrun_gives_the_plan_of_one_process(
    corpus: PacketIndex, weights: list[Path], tmp_path: Path
) -> None:
    embedder = f"timm:test_vit@{weights[0]}"
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    assert main(arguments(corpus, one, embedder)) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "surgrec.curate", *arguments(corpus, two, embedder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written, digest") == 1
    assert two.read_bytes() == one.read_bytes()


def test_a_rank_that_is_lost(
    corpus: PacketIndex, two_processes: Callable[..., list[Any]], tmp_path: Path
) -> None:
    out = tmp_path / "lost.h5"
    first, second = two_processes(out, ["descriptor"] * 2)
    deadline = time.monotonic() + 100
    while not (tmp_path / "lost.h5.work" / "segments.h5").exists():
        assert first.poll() is None, ended(first)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second.kill()
    status, _, error = ended(first)
    assert status == 1
    assert "another rank was lost" in error
    assert "run the same command again" in error
    assert "Traceback" not in error
    ended(second)
    answers = [ended(process) for process in two_processes(out, ["descriptor"] * 2)]
    assert [status for status, _, _ in answers] == [0, 0], answers
    alone = tmp_path / "alone.h5"
    assert main(arguments(corpus, alone, "descriptor")) == 0
    assert out.read_bytes() == alone.read_bytes()


def test_ranks_with_other_weights(
    two_processes: Callable[..., list[Any]], weights: list[Path], tmp_path: Path
) -> None:
    embedders = [f"timm:test_vit@{path}" for path in weights]
    answers = [ended(process) for process in two_processes(tmp_path / "plan.h5", embedders)]
    assert [status for status, _, _ in answers] == [1, 1]
    assert "rank 1: it computes by timm:test_vit@" in answers[0][2]
    assert "all must have the same weights" in answers[1][2]
    assert not (tmp_path / "plan.h5").exists()
