"""What the tests of evaluation share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

Answer = tuple[int, str, str]


@pytest.fixture(scope="session")
def two_ranks() -> Callable[[Sequence[str], Sequence[str]], list[Answer]]:
    """two_ranks(first, second): runs `python *first` and `python *second` as ranks 0 and 1, as torchrun would
    start them, without that it ends them all at once; (exit status, output, errors) of each."""

    def run(first: Sequence[str], second: Sequence[str]) -> list[Answer]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        processes = [
            subprocess.Popen(
                [sys.executable, *arguments],
                env=ENVIRONMENT | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, arguments in enumerate((first, second))
        ]
        try:
            outputs = [process.communicate(timeout=200) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]

    return run
