"""Tasks on a Ray cluster: the driver hands out videos and keeps the records, workers only compute.

Every machine needs SurgRec with the same packages, and sees the index and the videos under the same paths.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from surgrec.curation.per_video import Finding, Function, Task, attempt
from surgrec.curation.records import CurationError
from surgrec.loaders.packet_index import PacketIndex, PacketIndexError

LOCAL: Final = "local"
"""The address that starts a Ray on this machine, for this run alone."""
STORE_BYTES: Final = 128 << 20
"""Shared memory of such a Ray: what is found of a video takes kilobytes."""


class RayWorkers:
    """A cluster's CPUs, one for each task. Connects with the first task; close it, or use it in a `with`.

    Results are those of LocalWorkers: the same functions, and records that the driver alone writes.
    """

    def __init__(self, address: str, cpus: int) -> None:
        """address: HOST:PORT, ray://HOST:PORT, auto for the cluster that this machine belongs to, or LOCAL.
        cpus: of a Ray that LOCAL starts.

        Raises CurationError where Ray is not installed.
        """
        if importlib.util.find_spec("ray") is None:
            raise CurationError(
                "--engine ray needs Ray, on this machine and on all of the cluster: pip install"
                " 'surgrec[ray]'; --engine local does without"
            )
        self._address = address
        self._cpus = cpus
        self._remote: Any = None

    def run(
        self, stage: str, function: Function, tasks: Sequence[Task], index: PacketIndex
    ) -> Iterator[tuple[Task, Finding]]:
        """See Workers. Raises CurationError, too, where a worker does not see the index."""
        import ray
        from ray.exceptions import RayError

        lost = (
            f"stage {stage}: a worker of the Ray cluster was lost, perhaps because memory ran out or a"
            " machine is gone. Finished videos are kept: run the same command again"
        )
        try:
            self._connect()
            waiting: dict[Any, Task] = {}
            upcoming = iter(tasks)
            following = next(upcoming, None)
            while following is not None or waiting:
                while following is not None and len(waiting) < 2 * _cluster_cpus():
                    about = str(index.path.resolve()), index.digest, function, following
                    waiting[self._remote.remote(*about)] = following
                    following = next(upcoming, None)
                done, _ = ray.wait(list(waiting), num_returns=1)
                for reference in done:
                    found = ray.get(reference)
                    if isinstance(found, str):
                        raise CurationError(f"stage {stage}: {found}")
                    yield waiting.pop(reference), found
        except RayError as error:
            if cause := getattr(error, "cause", None):
                raise cause from error  # what the function raised
            raise CurationError(f"{lost} ({type(error).__name__})") from error

    def _connect(self) -> None:
        """Raises CurationError where no cluster answers."""
        import ray

        if self._remote is not None:
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address == LOCAL:
            quiet |= {
                "num_cpus": self._cpus,
                "num_gpus": 0,
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES,
            }
        before = os.environ.get("RAY_USAGE_STATS_ENABLED")
        if self._address == LOCAL:
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # of the processes that are started here, no others
        try:
            ray.init(address=self._address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise CurationError(
                f"--address {self._address}: no Ray cluster answers there ({error}). Start one with `ray"
                f" start --head`, name another, or give --address {LOCAL}"
            ) from error
        finally:
            if self._address == LOCAL:
                os.environ.pop("RAY_USAGE_STATS_ENABLED")
                if before is not None:
                    os.environ["RAY_USAGE_STATS_ENABLED"] = before
        # A task that kills its worker would kill the next one, too.
        self._remote = ray.remote(num_cpus=1, max_retries=0)(_work)

    def close(self) -> None:
        """Leaves the cluster; one that was started here ends."""
        if self._remote is not None:
            import ray

            self._remote = None
            ray.shutdown()

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cluster_cpus() -> int:
    """CPUs that the cluster has now, at least 1: it may grow."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _work(path: str, digest: str, function: Function, task: Task) -> Finding | str:
    """On a worker: what is found, or why nothing can be looked for."""
    here = f"on {socket.gethostname()}, a worker of the Ray cluster,"
    try:
        index = _opened(Path(path))
    except (PacketIndexError, OSError) as error:
        return f"{here} {error}. All machines must see the index and the videos under the same paths"
    if index.digest != digest:
        return f"{here} {path} is another index than on this machine. All must see the same files"
    return attempt(function, index, task)


@lru_cache(maxsize=1)
def _opened(path: Path) -> PacketIndex:
    return PacketIndex.open(path)
