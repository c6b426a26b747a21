"""Processes that are the ranks of one group on this machine, each with its share of the cores.

The parent hears what rank 0 sends. Where a rank fails, dies, or nothing is heard for too long, all ranks are
ended, so that the next group finds the machine free.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

LEAVE_SECONDS: Final = 20.0
"""What ranks may take to end once all is measured."""
ERROR_LENGTH: Final = 500


class GroupError(Exception):
    """A rank failed, died, or was not heard of for too long; the message says which, and why."""


@dataclass(frozen=True)
class Ready:
    """All ranks have started."""


@dataclass(frozen=True)
class _Failed:
    reason: str


@dataclass(frozen=True)
class Place:
    """A rank's place. cores: those that it may use."""

    rank: int
    ranks: int
    port: int
    cores: tuple[int, ...]

    def take(self) -> None:
        """Binds this process to its cores and writes torchrun's variables; before torch is imported."""
        os.sched_setaffinity(0, self.cores)
        os.environ.update(
            RANK=str(self.rank),
            LOCAL_RANK=str(self.rank),
            WORLD_SIZE=str(self.ranks),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(self.port),
            OMP_NUM_THREADS=str(len(self.cores)),
        )
        # The loader would divide the cores once more.
        os.environ.pop("LOCAL_WORLD_SIZE", None)


def cores_of(rank: int, most: int) -> tuple[int, ...]:
    """The cores of a rank where `most` ranks share those of this process: as many for each, one at least."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // most)
    first = rank * share % len(cores)
    return tuple(cores[first : first + share])


def hear(
    target: Callable[..., Iterator[Any]], ranks: int, most: int, limit: float, *arguments: Any
) -> Iterator[Any]:
    """What target(*arguments) yields on rank 0 of `ranks` processes, as it comes; first a Ready of target's.

    target: a function at the top of a module, called on every rank. most: ranks that divide the cores. limit:
    seconds without a word, from the start on, after which a group counts as hanging. Raises GroupError.
    """
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes: list[Connection] = []
    processes: list[BaseProcess] = []
    try:
        for rank in range(ranks):
            here, there = context.Pipe(duplex=False)
            place = Place(rank, ranks, port, cores_of(rank, most))
            # No daemons: the loader starts processes of its own.
            process: BaseProcess = context.Process(target=_rank, args=(there, place, target, arguments))
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        yield from _messages(pipes, processes, limit)
        until = time.monotonic() + LEAVE_SECONDS
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def _messages(pipes: list[Connection], processes: list[BaseProcess], limit: float) -> Iterator[Any]:
    """What is sent, until every rank has said None, its last word."""
    silent_until = time.monotonic() + limit
    open_ = dict(zip(pipes, range(len(pipes)), strict=True))
    while open_:
        readable = connection.wait(list(open_), max(0.0, silent_until - time.monotonic()))
        if not readable:
            raise GroupError(f"nothing was heard for {limit:g} s")
        for pipe in readable:
            assert isinstance(pipe, Connection)
            rank = open_[pipe]
            try:
                message = pipe.recv()
            except EOFError:
                processes[rank].join(LEAVE_SECONDS)
                raise GroupError(f"rank {rank} died, exit code {processes[rank].exitcode}") from None
            if isinstance(message, _Failed):
                raise GroupError(f"rank {rank}: {message.reason}")
            if message is None:
                del open_[pipe]
            else:
                silent_until = time.monotonic() + limit
                yield message


def _rank(
    pipe: Connection, place: Place, target: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]
) -> None:
    """The life of one rank."""
    place.take()
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        for message in target(*arguments):
            if place.rank == 0:
                pipe.send(message)
        pipe.send(None)
    except Exception as error:
        pipe.send(_Failed(f"{type(error).__name__}: {error}"[:ERROR_LENGTH]))


def _leave_with_parent() -> None:
    """Ends this process once its parent is gone: nobody else would, and it may wait for other ranks."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
