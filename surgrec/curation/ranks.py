"""Ranks that torchrun starts and that share one piece of work: rank 0 leads, the others help and end.

Each rank writes the records of its tasks into OUT.work/, which all of them see; rank 0, which holds the
lock, makes the table or file from them.

    rank 0   what it does alone ... | tells tasks | its share | waits | table, and what comes after ...
    rank r   waits .................|             | its share | ends
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar

from surgrec.curation.records import CurationError, VideoRecords
from surgrec.training.distributed import World, choose_device, start_world, stop_world

PATIENCE: Final = timedelta(days=30)
"""How long a rank waits for another that is there: stages that rank 0 does alone take hours."""
SETTLE_SECONDS: Final = 60.0
"""How long a record that another rank has written may take to be seen: network file systems keep listings."""


class Keyed(Protocol):
    """A task: what is found of it is kept as the record with its key."""

    @property
    def key(self) -> str: ...


K = TypeVar("K", bound=Keyed)
T = TypeVar("T")
Progress = Callable[[int, int], None]
Share = Callable[[Sequence[K]], None]
"""Does tasks, and keeps what is found as records."""


class Ranks:
    """The processes of this run; one, unless torchrun has started more."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._awaited = world.size > 1

    @property
    def on_this_machine(self) -> int:
        """Ranks that share this machine's cores; 1 for a process by itself."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.world.size > 1 else 1

    def lead(self, tasks: Sequence[K], how: str, share: Share[K], records: VideoRecords) -> None:
        """On rank 0: every rank does its share of the tasks, which are dealt out in turn. how: the same on
        all ranks.

        Raises CurationError where a rank fails or is lost, or its records are not seen here.
        """
        self._awaited = False
        self._talk(lambda: self.world.share((how, tasks)))
        for rank, keys in enumerate(self._do(tasks, share, records)):
            self._see(rank, keys, records)

    def follow(self, how: str, share: Share[K], records: VideoRecords) -> None:
        """On any other rank: waits for tasks, and does its share. Raises CurationError and OSError."""
        told: tuple[str, Sequence[K]] | None = self._talk(lambda: self.world.share(None))
        if told is None:
            return

        def checked(tasks: Sequence[K]) -> None:
            if told[0] != how:
                raise CurationError(
                    f"it computes by {how}, rank 0 by {told[0]}: all must have the same weights"
                )
            share(tasks)

        self._do(told[1], checked, records)

    def agree(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, on every rank; so are its UserError and OSError."""
        found: T = self._talk(lambda: self.world.share_result(make))
        return found

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on every rank. Raises CurationError where one is lost."""
        found: list[T] = self._talk(lambda: self.world.gather(value))
        return found

    def dismiss(self) -> None:
        """On rank 0: the others need not wait for tasks any more."""
        if self._awaited:
            self._awaited = False
            self._talk(lambda: self.world.share(None))

    def as_if_alike(self, before: int, missing: int, progress: Progress) -> Progress:
        """Progress of rank 0's share as that of all `before + missing` tasks: as if the others were as
        fast."""

        def tell(done: int, of: int) -> None:
            progress(before + min(done * self.world.size, missing), before + missing)

        return tell

    def _do(self, tasks: Sequence[K], share: Share[K], records: VideoRecords) -> list[list[str]]:
        """Of each rank, the keys of the records that it has made."""
        mine = tasks[self.world.rank :: self.world.size]
        failed: CurationError | OSError | ValueError | None = None
        try:
            share(mine)
        except (CurationError, OSError, ValueError) as error:
            failed = error
        keys = [task.key for task in mine if records.has(task.key)]
        answers = self._talk(lambda: self.world.gather((None if failed is None else str(failed), keys)))
        if failed is not None:
            raise failed
        for rank, (reason, _) in enumerate(answers):
            if reason is not None:
                raise CurationError(f"rank {rank}: {reason}")
        return [made for _, made in answers]

    def _see(self, rank: int, keys: list[str], records: VideoRecords) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        for key in keys:
            while not records.has(key):
                if time.monotonic() > deadline:
                    raise CurationError(
                        f"rank {rank} has written {len(keys)} records, and rank 0 does not see them"
                        f" in {records.folder}: --out must lie on a file system that all machines share"
                    )
                time.sleep(0.5)

    def _talk(self, message: Callable[[], Any]) -> Any:
        try:
            return message()
        except RuntimeError as error:
            raise CurationError(
                f"rank {self.world.rank}: another rank was lost, or does not answer. What is finished"
                f" is kept: run the same command again"
            ) from error


def one_rank(device: str) -> Ranks:
    """This process by itself, also where torchrun has started others. Raises UserError as start_ranks."""
    return Ranks(World(0, 0, 1, choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))))


@contextmanager
def start_ranks(device: str) -> Iterator[Ranks]:
    """Takes this process's place among the ranks. SIGTERM, which torchrun sends where a rank has died, then
    ends it as Ctrl-C would. Raises UserError for a device that is not there."""
    world = start_world(device, PATIENCE)
    if world.size > 1:
        signal.signal(signal.SIGTERM, _interrupt)
    ranks = Ranks(world)
    try:
        yield ranks
    finally:
        stop_world(world)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
