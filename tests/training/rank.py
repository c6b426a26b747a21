"""Run by `Ranks` of conftest.py in a fresh process: takes its place among the ranks, calls main(job)."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

script, place, job, result = globals()["CALL"]
os.environ.update(place, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402  # the variables above are read when it is imported

torch.set_num_threads(1)
try:
    answer = {"result": importlib.import_module(script).main(job)}
except BaseException:
    answer = {"error": f"rank {place['RANK']}: {traceback.format_exc()}"}
result.write_text(json.dumps(answer))
