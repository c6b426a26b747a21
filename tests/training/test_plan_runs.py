"""Runs that draw by a plan: recorded with its digest, and bound to it when they are resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from surgrec.configs.pretrain import MaePretrain
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable

from surgrec.curation.plan_file import write_plan
from surgrec.training.errors import UserError
from surgrec.training.session import pretrain


def write(index: PacketIndex, out: Path, weight: list[float]) -> str:
    """A plan of the first 30 frames of each of three videos."""
    segments = SegmentTable(np.arange(3, dtype=np.int32), np.zeros(3, np.int64), np.full(3, 30))
    none, reasons = np.zeros((3, 4), int), ["", "black"]
    levels = {"domain": [0, 1, 1]}
    reason = [int(share == 0) for share in weight]
    return write_plan(
        out, index.digest, segments, weight, reason, reasons, np.full(len(segments), -1), levels, none, {}
    )


def test_a_run_draws_by_its_plan_and_says_so(
    mae: MaePretrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = PacketIndex.open(mae.data.index)
    plan = tmp_path / "plan.h5"
    digest = write(index, plan, [0.75, 0.25, 0.0])
    run = replace(mae, data=replace(mae.data, plan=plan, segment_seconds=10.0))
    assert pretrain(run) == 0
    (start,) = json.loads((run.out / "run.json").read_text())["starts"]
    assert start["plan"] == {"path": str(plan), "digest": digest, "segments": 3}
    shutil.rmtree(run.out / "checkpoints" / "step-00000006")  # so that it goes on after step 3
    write(index, plan, [0.25, 0.75, 0.0])
    with pytest.raises(UserError, match="comes from another corpus, data configuration or seed"):
        pretrain(run)
    plan.unlink()
    with pytest.raises(UserError, match=r"plan.h5: no such plan.*surgrec.curate all"):
        pretrain(run)
    write(index, plan, [0.75, 0.25, 0.0])
    assert pretrain(run) == 0
    assert "resumed from" in capsys.readouterr().out


def test_a_run_without_a_plan_has_none_in_its_record(mae: MaePretrain) -> None:
    assert pretrain(replace(mae, steps=2)) == 0
    (start,) = json.loads((mae.out / "run.json").read_text())["starts"]
    assert start["plan"] is None
