"""Checkpoints: what is read is what was written, and damage is named."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from surgrec.training.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    discard_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    set_aside,
    verify_checkpoint,
)
from surgrec.training.distributed import World
from surgrec.training.errors import UserError
from surgrec.training.tensor_file import DTYPE_NAMES, FileDigest, file_digest, write_tensors


def contents(step: int) -> Checkpoint:
    return Checkpoint(
        step,
        {"weight": torch.randn(7, 3), "count": torch.tensor(step), "half": torch.randn(5).bfloat16()},
        {"exp_avg.weight": torch.randn(7, 3), "step.weight": torch.tensor(float(step))},
        {"loader": {"next_sample": step * 4}, "config": {"seed": 1, "out": None, "betas": [0.9, 0.95]}},
    )


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_round_trip(tmp_path):
    written = contents(50)
    path = save_checkpoint(tmp_path, written)
    assert path == tmp_path / "step-00000050"
    read = load_checkpoint(path)
    assert read.step == 50
    assert equal(read.model, written.model)
    assert equal(read.optimizer, written.optimizer)
    assert read.values == written.values


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=5),
    dtype=st.sampled_from(list(DTYPE_NAMES)),
    transpose=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_the_library_reads_our_files(tmp_path, shapes, dtype, transpose):
    tensors = {f"t{i}": torch.randint(0, 2, shape).to(dtype) for i, shape in enumerate(shapes)}
    if transpose:
        tensors = {name: t.transpose(0, -1) if t.ndim > 1 else t for name, t in tensors.items()}
    path = tmp_path / "tensors.safetensors"
    assert write_tensors(path, tensors) == file_digest(path)
    assert equal(load_file(path), tensors)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "extend"])
def test_damage_is_found_and_named(tmp_path, name, damage):
    path = save_checkpoint(tmp_path, contents(1))
    file = path / name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        del data[-5:]
    elif damage == "extend":
        data += b"}"
    file.write_bytes(data)
    if damage == "remove":
        file.unlink()
    with pytest.raises(DamagedCheckpointError, match=name):
        verify_checkpoint(path)
    with pytest.raises(DamagedCheckpointError, match=name):
        load_checkpoint(path)


def test_another_format_is_no_damage(tmp_path, monkeypatch):
    monkeypatch.setattr("surgrec.training.checkpoint.FORMAT", 2)
    path = save_checkpoint(tmp_path, contents(1))
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 2; this version reads format 1") as caught:
        load_checkpoint(path)
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_only_whole_checkpoints_are_listed(tmp_path):
    for step in (3, 20, 100_000_000):
        save_checkpoint(tmp_path, contents(step))
    (tmp_path / ".step-00000030.partial").mkdir()
    (tmp_path / "step-00000040.damaged").mkdir()
    (tmp_path / "notes").mkdir()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [3, 20, 100_000_000]
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_a_step_saved_again_replaces_the_old_one(tmp_path):
    save_checkpoint(tmp_path, contents(1))
    again = contents(1)
    path = save_checkpoint(tmp_path, again)
    assert equal(load_checkpoint(path).model, again.model)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_pruning_keeps_the_newest_and_the_multiples(tmp_path):
    for step in range(1, 11):
        save_checkpoint(tmp_path, contents(step))
    (tmp_path / ".step-00000011.partial").mkdir()
    (tmp_path / ".step-00000000.discarded").mkdir()
    gone = prune_checkpoints(tmp_path, keep_last=2, keep_every=4)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [4, 8, 9, 10]
    assert sorted(p.name for p in gone) == [f"step-{s:08d}" for s in (1, 2, 3, 5, 6, 7)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{s:08d}" for s in (4, 8, 9, 10)]
    prune_checkpoints(tmp_path, keep_last=1, keep_every=0)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [10]


def test_set_aside_and_discard(tmp_path):
    kept = set_aside(save_checkpoint(tmp_path, contents(1)))
    discard_checkpoint(save_checkpoint(tmp_path, contents(2)))
    assert list_checkpoints(tmp_path) == []
    assert [p.name for p in tmp_path.iterdir()] == [kept.name]


FULL_DISK = """
import sys, torch
from pathlib import Path
from surgrec.training.checkpoint import Checkpoint, save_checkpoint
folder = Path(sys.argv[1])
save_checkpoint(folder, Checkpoint(1, {"w": torch.zeros(10)}, {}, {}))
try:
    save_checkpoint(folder, Checkpoint(2, {"w": torch.zeros(1 << 20)}, {}, {}))
except OSError as error:
    print(error.errno)
"""


def test_a_write_that_fails_leaves_the_older_checkpoint_and_nothing_else(tmp_path: Path):
    """A limit on the size of files stands in for the full disk: the same code path, another errno."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], preexec_fn=limit, capture_output=True, text=True
    )
    assert result.stdout.strip() == "27", result.stderr  # EFBIG
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    verify_checkpoint(tmp_path / "step-00000001")


def test_parts_that_rank_0_does_not_see_are_named(tmp_path, monkeypatch):
    """Two machines that share no file system: the second wrote into a folder of its own."""
    elsewhere = {"model-shard-00002-of-00002.safetensors": FileDigest(8, "0")}
    monkeypatch.setattr(World, "gather", lambda world, files: [files, elsewhere])
    with pytest.raises(UserError, match=r"rank 1 has written model-shard-00002-of-00002.*share"):
        save_checkpoint(tmp_path, contents(1))
    assert list(tmp_path.iterdir()) == []


def test_state_holds_plain_values_and_checksums(tmp_path):
    path = save_checkpoint(tmp_path, contents(5))
    state = json.loads((path / "state.json").read_text())
    assert state["step"] == 5
    for name, entry in state["files"].items():
        found = file_digest(path / name)
        assert (entry["bytes"], entry["xxh3"]) == (found.bytes, found.xxh3)
