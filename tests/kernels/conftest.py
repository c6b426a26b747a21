"""Kernels in Triton's interpreter: in a process of its own, for Triton decides when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def in_interpreter() -> Callable[[str, str, int], None]:
    """in_interpreter(file, expression, count): `count` tests of a file, chosen as by -k, pass there."""

    def run(file: str, expression: str, count: int) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", file, "-k", expression],
            env=os.environ | {"TRITON_INTERPRET": "1"},
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{count} passed" in done.stdout

    return run
