"""A rank, started by `Ranks` of conftest.py: calls SCRIPT's main(job), writes what it returned to a file.

rank.py SCRIPT JOB RESULT
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

import torch

script, job, result = sys.argv[1:]
sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
try:
    answer = {"result": importlib.import_module(script).main(json.loads(job))}
except BaseException:
    answer = {"error": f"rank {os.environ['RANK']}: {traceback.format_exc()}"}
Path(result).write_text(json.dumps(answer))
