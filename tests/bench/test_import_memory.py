"""bench/import_memory.py on a small file, by processes of their own, as it is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"


def run(tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(BENCH), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(BENCH / "import_memory.py"), "--gigabytes", "0.1", "--runs", "1"]
    command += ["--folder", str(tmp_path), "--out", str(tmp_path / "out"), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_it_measures_both_kinds_of_file_and_keeps_to_the_bound(tmp_path: Path) -> None:
    done = run(tmp_path, "--bound", "100")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").glob("import_memory-*.json")
    rows = json.loads(file.read_text())["rows"]
    found = {(row["name"], row["metric"]): row["value"] for row in rows}
    assert len(found) == 6
    for kind in ("pth", "safetensors"):
        # What the process itself needs is much of so small a file.
        assert 0.9 < found[kind, "grown_per_file"] < 5
        assert found[kind, "peak_per_file"] > found[kind, "grown_per_file"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the files are gone"
    done = run(tmp_path, "--bound", "1")
    assert (done.returncode, "the bound is 1" in done.stderr) == (1, True)
