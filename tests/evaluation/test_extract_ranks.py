"""Extraction by two processes, as torchrun starts them: the file of one process; a rank that fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from surgrec.evaluation.manifest import Row, SplitManifest, write_manifest
from surgrec.extract import main

ROWS = tuple(
    Row(f"video{n % 3}.mp4", n % 2, split, f"g{n % 3}", 0.2 * n, 0.2 * n + 1)
    for n, split in enumerate(("train", "train", "val", "test", "train", "val", "test"))
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    """As the ranks have: the last bits of a network's features hang on it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def root(streams: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of three seconds, a split of rows of them and of one that is gone, weights of timm's own
    model for tests."""
    import timm

    folder = tmp_path_factory.mktemp("extract-ranks")
    for number in range(3):
        streams.make_stream("h264_default", folder / f"video{number}", frames=75, first=90 * number)
    rows = (*ROWS, Row("gone.mp4", 0, "test", "g"))
    write_manifest(folder / "split.json", SplitManifest("films", ("one", "two"), rows))
    for seed in range(2):
        torch.manual_seed(seed)
        save_file(timm.create_model("test_vit").state_dict(), folder / f"vit{seed}.safetensors")
    return folder


def arguments(root: Path, out: Path, model: str) -> list[str]:
    given = ["--manifest", str(root / "split.json"), "--data-root", str(root), "--model", model]
    given += ["--tokens", "--clips", "2", "--views", "centre", "mirror", "--batch", "2"]
    return [*given, "--out", str(out), "--device", "cpu", "--workers", "2"]


def test_torchrun_gives_the_file_of_one_process(root: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    assert main(arguments(root, one, "random:demo")) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "surgrec.extract", *arguments(root, two, "random:demo")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("features of 7 of 8 rows") == 1
    assert two.read_bytes() == one.read_bytes()
    assert not (tmp_path / "two.h5.work").exists()


def test_both_ranks_compute_what_is_missing_alone(root: Path, tmp_path: Path, two_ranks: Callable) -> None:
    """Ranks with other weights fail after their turn; what rank 0 computed is kept and not done again."""
    models = [f"timm:test_vit@{root / f'vit{seed}.safetensors'}" for seed in range(2)]
    out = tmp_path / "f.h5"
    commands = [["surgrec.extract", *arguments(root, out, model)] for model in models]
    answers = two_ranks(*commands)
    assert [status for status, _, _ in answers] == [1, 1], answers
    assert "rank 1: it computes by timm" in answers[0][2].replace("\n", " ")
    assert "all must have the same weights" in answers[1][2]
    assert not out.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "f.h5.work").glob("*.npz")}
    assert len(kept) == 4  # chunks of one row: eight, of which one is gone, dealt to two ranks
    answers = two_ranks(commands[0], commands[0])
    assert [status for status, _, _ in answers] == [0, 0], answers
    assert "features of 7 of 8 rows" in answers[0][1]
    assert answers[1][1] == ""
    again = tmp_path / "again.h5"
    assert main(arguments(root, again, models[0])) == 0
    assert out.read_bytes() == again.read_bytes()


def test_what_is_there_already_is_not_computed(root: Path, tmp_path: Path, two_ranks: Callable) -> None:
    out = tmp_path / "f.h5"
    assert main(arguments(root, out, "random:demo")) == 0
    before = out.read_bytes()
    command = ["surgrec.extract", *arguments(root, out, "random:demo")]
    answers = two_ranks(command, command)
    assert [status for status, _, _ in answers] == [0, 0], answers
    assert "holds these features already" in answers[0][1]
    assert out.read_bytes() == before


def test_a_rank_that_cannot_even_begin(root: Path, tmp_path: Path, two_ranks: Callable) -> None:
    out = tmp_path / "f.h5"
    commands = [["surgrec.extract", *arguments(root, out, model)] for model in ("random:demo", "random:none")]
    answers = two_ranks(*commands)
    assert [status for status, _, _ in answers] == [1, 1], answers
    assert "another rank was lost" in answers[0][2]
    assert "there is no model 'random:none'" in answers[1][2]
    assert "Traceback" not in answers[0][2] + answers[1][2]
