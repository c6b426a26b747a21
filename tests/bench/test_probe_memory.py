"""bench/probe_memory.py on a handful of clips, by processes of their own, as it is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_it_measures_both_probes(tmp_path: Path) -> None:
    path = os.pathsep.join([str(BENCH), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(BENCH / "probe_memory.py"), "--clips", "100", "--tokens", "4"]
    command += ["--width", "16", "--token-width", "8", "--steps", "2", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("probe_memory-*.json")
    found = {(r["name"], r["corpus"], r["metric"]): r["value"] for r in json.loads(file.read_text())["rows"]}
    assert set(found) == {
        ("linear", "100x16", "peak_anon_mib"),
        ("linear", "100x16", "start_anon_mib"),
        ("features", "100x16", "mib"),
        ("attentive", "100x4x8", "peak_anon_mib"),
        ("attentive", "100x4x8", "start_anon_mib"),
        ("features", "100x4x8", "mib"),
    }
    for name, corpus in (("linear", "100x16"), ("attentive", "100x4x8")):
        assert found[name, corpus, "peak_anon_mib"] > found[name, corpus, "start_anon_mib"] > 10
        assert found["features", corpus, "mib"] == 100 * 2 * (16 if name == "linear" else 32) / 2**20
