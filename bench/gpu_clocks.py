"""At what clocks did the GPU run? The same card decodes a third faster or slower by its video clock."""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

FIELDS: Final = {"video_mhz": "clocks.video", "sm_mhz": "clocks.sm", "watts": "power.draw"}
INTERVAL_MS: Final = 200


@contextmanager
def gpu_clocks() -> Iterator[dict[str, float]]:
    """Looks at the first GPU of this process while the block runs, for the median of each of FIELDS.

    The dictionary is filled behind the block; it stays empty where nvidia-smi is absent or answers something
    else.
    """
    found: dict[str, float] = {}
    query = f"--query-gpu={','.join(FIELDS.values())}"
    own = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = ["nvidia-smi", "-i", own, query, "--format=csv,noheader,nounits", f"-lms={INTERVAL_MS}"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        yield found
        return
    try:
        yield found
    finally:
        process.terminate()
        text = process.communicate()[0]
    rows = [line.split(",") for line in text.splitlines() if line.count(",") == len(FIELDS) - 1]
    try:
        values = [[float(value) for value in row] for row in rows]
    except ValueError:
        return
    for name, column in zip(FIELDS, zip(*values, strict=True), strict=False):
        found[name] = statistics.median(column)
