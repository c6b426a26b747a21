"""Kernels in Triton's interpreter: in a process of its own, for Triton decides when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def on_hopper(tmp_path: Path) -> Callable[[str], str]:
    """on_hopper(code): what code prints in a process of its own that compiles for sm_90a, GPU or not.

    Kernels are kept in tmp_path, from one call to the next.
    """

    def run(code: str) -> str:
        told = {
            "QUACK_CACHE_DIR",
            "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
            "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED",
        }
        environment = {name: value for name, value in os.environ.items() if name not in told}
        environment |= {"CUTE_DSL_ARCH": "sm_90a", "TRITON_CACHE_DIR": str(tmp_path)}
        environment |= {"QUACK_ARCH": "90", "FLASH_ATTENTION_ARCH": "sm_90", "FLASH_ATTENTION_NUM_SMS": "132"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


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
