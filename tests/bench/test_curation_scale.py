"""bench/curation_scale.py at a hundred-thousandth of its size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from surgrec.loaders.packet_index import KEY

ROOT = Path(__file__).resolve().parents[2]


def test_simulated_packets_are_an_order_of_display(bench_module: Callable[[str], ModuleType]) -> None:
    script = bench_module("curation_scale")
    for count in (249, 250, 251, 750, 1003):
        packets = script.simulated_packets(count)
        assert sorted(packets.rank.tolist()) == list(range(count))
        assert packets.rank[packets.display].tolist() == list(range(count))
        assert np.flatnonzero(packets.flags & KEY).tolist() == list(range(0, count, 250))
        assert (np.diff(packets.offset.astype(int)) == packets.size[:-1]).all()


def test_it_measures_everything(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "curation_scale.py"), "--videos", "3", "--packets", "600"]
    command += ["--points", "400", "--levels", "20", "4", "--plans", "50", "--runs", "1", "--device", "cpu"]
    command += ["--cache", str(tmp_path), "--out", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").glob("curation_scale-*.json")
    rows = {(row["name"], row["metric"]): row for row in json.loads(path.read_text())["rows"]}
    assert set(rows) == {
        ("index_open", "seconds"),
        ("plan_to_first_sample", "seconds"),
        ("plan_to_first_sample", "peak_gib"),
        ("clip_plan", "microseconds"),
        ("cluster", "seconds"),
        ("cluster", "peak_gib"),
    }
    assert rows["index_open", "seconds"]["corpus"] == "3"
    assert rows["cluster", "seconds"]["corpus"] == "400"
    assert len(rows["cluster", "seconds"]["steps"]) == 6
    assert rows["index_open", "seconds"]["value"] < rows["plan_to_first_sample", "seconds"]["value"]
