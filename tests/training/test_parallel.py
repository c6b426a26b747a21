"""DDP and FSDP2 on two and on four processes compute what one does, and read each other's checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from surgrec.configs.model import VIT_SHAPES, ViTShape

from surgrec.training.checkpoint import DamagedCheckpointError, load_checkpoint, verify_checkpoint
from surgrec.training.saver import Saver, restore
from surgrec.training.step import train_step

KINDS = ("mae", "jepa")
MODES = ("ddp", "fsdp")
STEPS = 3
SAVED = 1
SHALLOW = ViTShape(3, 192, 3)
"""In the place of "tiny", of twelve blocks: all of a block is exchanged by each of them anew."""


@pytest.fixture(scope="module", autouse=True)
def _shallow() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(VIT_SHAPES, "tiny", SHALLOW)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, Path]:
    """Where one, two and four processes leave their checkpoints."""
    return {size: tmp_path_factory.mktemp(f"of-{size}-") for size in (1, 2, 4)}


@pytest.fixture(scope="module")
def new_parts(synthetic_parts, dry_mae, dry_jepa):
    """Parts of one process with the batches of rank_training.py."""

    def make(kind: str) -> Any:
        config = dry_mae if kind == "mae" else dry_jepa
        return synthetic_parts(replace(config, batch=8, micro_batch=2, steps=STEPS))

    return make


@pytest.fixture(scope="module")
def one(folders, new_parts) -> dict[str, Any]:
    """What one process computes, and its weights; a checkpoint to go on from, for each way to go on."""
    runs = {}
    for kind in KINDS:
        parts = new_parts(kind)
        points = take(parts, 1, SAVED)
        for mode in MODES:
            with Saver(
                folders[1] / f"{kind}-{mode}",
                parts.world,
                parts.objective,
                parts.optimizer,
                parts.config.checkpoint,
            ) as saver:
                saver.save(SAVED, parts.batches.state_dict())
        points += take(parts, SAVED + 1, STEPS)
        frames = next(new_parts(kind).batches).frames
        outside = {"features": float(parts.objective.features(frames).detach().double().abs().sum())}
        if kind == "mae":
            outside["rebuilt"] = float(parts.objective.reconstruct(frames, torch.arange(2))[2].sum())
        runs[kind] = {"points": points, "outside": outside, "weights": parts.objective.state_dict()}
    return runs


@pytest.fixture(scope="module")
def four(ranks, folders) -> list[dict[str, Any]]:
    return ranks("rank_training", 4, tiny=asdict(SHALLOW), out=str(folders[4]), resume=[])


@pytest.fixture(scope="module")
def two(ranks, folders, one, four) -> list[dict[str, Any]]:
    starts = [str(folders[1]), str(folders[4])]
    return ranks("rank_training", 2, tiny=asdict(SHALLOW), out=str(folders[2]), resume=starts)


@pytest.fixture(scope="module", params=[2, 4])
def many(request) -> tuple[int, list[dict[str, Any]]]:
    """The number of ranks, and what each of them returned."""
    return request.param, request.getfixturevalue({2: "two", 4: "four"}[request.param])


def take(parts: Any, first: int, last: int) -> list[dict[str, float]]:
    points = []
    for step in range(first, last + 1):
        result = train_step(parts, step, monitor=True)
        values = {"loss": result.loss, "norm": result.gradient_norm} | result.monitors
        points.append({name: float(value) for name, value in values.items()})
    return points


def same_curve(points: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for name in ("loss", "norm", *({"teacher_distance"} & expected[0].keys())):
        # AdamW's first updates have the size of the learning rate, whatever the size of a gradient.
        assert [p[name] for p in points] == pytest.approx([p[name] for p in expected], rel=2e-4), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_many_ranks_are_one(many, one, folders, kind, mode):
    size, answers = many
    for answer in answers:
        run = answer[f"{kind}-{mode}"]
        assert run["accumulation"] == 4 // size
        same_curve(run["points"], one[kind]["points"])
        assert all(math.isfinite(value) for value in run["points"][-1].values())
        assert run["points"][-1].keys() == one[kind]["points"][-1].keys()
        assert run["outside"] == pytest.approx(one[kind]["outside"], rel=1e-3)
    read = load_checkpoint(folders[size] / f"{kind}-{mode}" / f"step-{STEPS:08d}")
    assert read.model.keys() == one[kind]["weights"].keys()
    for name, weight in one[kind]["weights"].items():
        torch.testing.assert_close(read.model[name], weight, rtol=0, atol=2e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_last_micro_batch_communicates(two, kind, mode):
    run = two[0][f"{kind}-{mode}"]
    calls = run["collectives"]
    assert calls == run["collectives of one micro-batch"]
    if mode == "ddp":
        assert calls.keys() == {"allreduce_"}
    else:
        # Each block and the rest once; the teacher's blocks have no gradients.
        trained = run["blocks"] - (SHALLOW.depth if kind == "jepa" else 0)
        assert calls["_allgather_base_"] == run["blocks"] + 1
        assert calls["_reduce_scatter_base_"] == trained + 1


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_go_on_from_one_and_from_four_in_either_mode(two, one, folders, kind):
    for answer in two:
        for source in (folders[1], folders[4]):
            for before, after in (("ddp", "fsdp"), ("fsdp", "ddp")):
                points = answer[f"{source / f'{kind}-{before}'} as {after}"]
                same_curve(points, one[kind]["points"][SAVED:])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_process_goes_on_from_many(many, one, folders, new_parts, kind, mode):
    size, _ = many
    parts = new_parts(kind)
    path = folders[size] / f"{kind}-{mode}" / f"step-{SAVED:08d}"
    step, position = restore(path, parts.objective, parts.optimizer, parts.world)
    parts.batches.load_state_dict(position)
    assert (step, position) == (SAVED, {"next_sample": 8 * SAVED})
    same_curve(take(parts, SAVED + 1, STEPS), one[kind]["points"][SAVED:])


def test_each_rank_writes_a_share_and_damage_is_named(many, folders, tmp_path):
    size, _ = many
    for mode in MODES:
        path = folders[size] / f"jepa-{mode}" / f"step-{SAVED:08d}"
        for kind in ("model", "optimizer"):
            files = sorted(path.glob(f"{kind}-*"))
            assert [file.name for file in files] == [
                f"{kind}-shard-{rank:05d}-of-{size:05d}.safetensors" for rank in range(1, size + 1)
            ]
            lengths = [file.stat().st_size for file in files]
            assert max(lengths) < 1.2 * min(lengths)
        verify_checkpoint(path)
    broken = files[-1]
    data = bytearray(broken.read_bytes())
    data[-9] ^= 1
    broken.write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=broken.name):
        verify_checkpoint(path)
    data[-9] ^= 1
    broken.write_bytes(data)
    # A file that is not part of the checkpoint is not read.
    (path / "stray.safetensors").write_text("no tensors")
    load_checkpoint(path)


def test_a_full_disk_on_one_rank_is_told_on_all(many):
    for answer in many[1]:
        found = answer["full disk"]
        assert "the checkpoint of step 2 cannot be written" in found["message"]
        assert "File too large" in found["message"]
        assert found["left"] == ["step-00000001"]


def test_a_bad_step_of_one_rank_is_skipped_by_all(many):
    expected = {"seen": True, "skipped": True, "skipped by the flag": True, "trained again": True}
    for answer in many[1]:
        assert answer["bad steps"] == [expected, expected]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["compiled", "fused"])
def test_blocks_may_be_compiled_or_fused_and_recomputed_under_fsdp(two, one, kind, way):
    for answer in two:
        same_curve(answer[f"{kind}-{way}"], one[kind]["points"][:2])
