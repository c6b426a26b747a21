"""What the tests of evaluation share."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest

Answer = tuple[int, str, str]


@pytest.fixture(scope="session")
def two_ranks(warm_start: Callable[..., Any]) -> Callable[[Sequence[str], Sequence[str]], list[Answer]]:
    """two_ranks([module, *arguments], [module, *arguments]): runs them as ranks 0 and 1, as torchrun would
    start them, without that it ends them all at once; (exit status, output, errors) of each."""

    def run(first: Sequence[str], second: Sequence[str]) -> list[Answer]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
        processes = [
            warm_start(
                *command,
                imports=("surgrec.evaluation.matrix", "timm"),
                environment=place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, command in enumerate((first, second))
        ]
        try:
            outputs = [process.communicate(timeout=200) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]

    return run
