"""bench/import_memory.py on a small file, by processes of their own, as it is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_it_measures_both_kinds_of_file_and_keeps_to_the_bound(tmp_path: Path) -> None:
    path = os.pathsep.join([str(BENCH), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(BENCH / "import_memory.py"), "--gigabytes", "0.1", "--runs", "1"]
    command += ["--folder", str(tmp_path), "--out", str(tmp_path / "out"), "--bound", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, "the bound is 1" in done.stderr) == (1, True), done.stderr
    (file,) = (tmp_path / "out").glob("import_memory-*.json")
    rows = json.loads(file.read_text())["rows"]
    found = {(row["name"], row["metric"]): row["value"] for row in rows}
    assert len(found) == 6
    for kind in ("pth", "safetensors"):
        # What the process itself needs is much of so small a file.
        assert 0.9 < found[kind, "grown_per_file"] < 5
        assert found[kind, "peak_per_file"] > found[kind, "grown_per_file"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the files are gone"


@pytest.mark.parametrize(("bound", "status"), [(3.0, 0), (2.9, 1)])
def test_the_status_is_that_of_the_worst_peak(
    bench_module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    bound: float,
    status: int,
) -> None:
    """A process that holds three times a safetensors file, twice the other."""
    script = bench_module("import_memory")

    def measured(path: Path) -> dict[str, float]:
        size = path.stat().st_size
        return {"before": size, "peak": size * (3 if path.suffix == ".safetensors" else 2), "seconds": 1.0}

    monkeypatch.setattr(script, "measured", measured)
    monkeypatch.setattr(script, "write", lambda path, blocks: path.write_bytes(bytes(1000)))
    args = script.Args(gigabytes=0.1, runs=1, bound=bound, folder=tmp_path, out=tmp_path / "out")
    assert script.main(args) == status
    (file,) = (tmp_path / "out").glob("import_memory-*.json")
    rows = json.loads(file.read_text())["rows"]
    found = {(row["name"], row["metric"]): row["value"] for row in rows}
    assert (found["pth", "peak_per_file"], found["safetensors", "peak_per_file"]) == (2, 3)
    assert (found["pth", "grown_per_file"], found["safetensors", "grown_per_file"]) == (1, 2)
