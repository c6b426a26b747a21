"""What a rank of test_ranks.py does where torchrun itself is not the question: run the command."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from surgrec.pretrain import main as command


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Exit status and output of `python -m surgrec.pretrain` with job["arguments"]."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = command(job["arguments"])
    return {"status": status, "output": output.getvalue()}
