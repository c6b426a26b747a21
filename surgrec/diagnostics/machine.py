"""Processor, memory, file descriptors, disk."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
import time
from pathlib import Path

from surgrec.diagnostics.check import Check

GROUP = "machine"
ENOUGH_MEMORY = 8 * 2**30
ENOUGH_FILES = 4096
ENOUGH_SHARED = 2**30
ENOUGH_DISK = 150e6
"""Bytes a second. 480p video at 2 Mbit/s with a key frame every 250 frames costs up to 2.5 MB a clip."""
PROBE_BYTES = 128 * 2**20
BLOCK = 4 * 2**20


def check_processor() -> Check:
    """Cores that this process may use."""
    usable = len(os.sched_getaffinity(0))
    return Check(GROUP, "CPU", "ok", f"{usable} of {os.cpu_count()} cores usable")


def check_memory() -> Check:
    """Memory of the machine."""
    import psutil

    memory = psutil.virtual_memory()
    value = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    if memory.available < ENOUGH_MEMORY:
        return Check(
            GROUP, "memory", "warn", value, "close other programs, or lower --batch and --data.prefetch"
        )
    return Check(GROUP, "memory", "ok", value)


def check_files() -> Check:
    """Limit of open files. The loader keeps files open: one for each video it is reading."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Check(GROUP, "file descriptors", "ok", "no limit")
    value = f"{soft} open files"
    if soft < ENOUGH_FILES:
        most = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
        remedy = f"ulimit -n {most}" if most > soft else f"have an administrator raise the limit of {hard}"
        return Check(GROUP, "file descriptors", "warn", value, remedy)
    return Check(GROUP, "file descriptors", "ok", value)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Shared memory, through which processes of one machine (NCCL, workers) exchange data."""
    try:
        space = os.statvfs(folder)
    except OSError as error:
        return Check(
            GROUP,
            str(folder),
            "warn",
            error.strerror or "not there",
            "in a container: --shm-size=8g, or --ipc=host",
        )
    free = space.f_bavail * space.f_frsize
    value = f"{free / 2**30:.1f} GiB free"
    if free < ENOUGH_SHARED:
        return Check(GROUP, str(folder), "warn", value, "in a container: --shm-size=8g, or --ipc=host")
    return Check(GROUP, str(folder), "ok", value)


def check_disk(folder: Path) -> Check:
    """How fast the folder of the videos is read, on a temporary file dropped from the page cache."""
    name = f"disk of {folder}"
    try:
        speed = read_speed(folder)
    except OSError as error:
        remedy = (
            "make room" if error.errno == errno.ENOSPC else "give a folder that can be written with --data"
        )
        return Check(GROUP, name, "warn", error.strerror or str(error), remedy)
    value = f"reads {speed / 1e6:,.0f} MB/s, {free_space(folder) / 2**30:,.0f} GiB free"
    if speed < ENOUGH_DISK:
        return Check(
            GROUP, name, "warn", value, "copy the videos to a local disk; decoding will wait for this one"
        )
    return Check(GROUP, name, "ok", value)


def free_space(folder: Path) -> int:
    """Bytes that can still be written in a folder."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def read_speed(folder: Path, size: int = PROBE_BYTES) -> float:
    """Bytes a second of one sequential read in a folder. Raises OSError where nothing can be written there.

    The file is written, synced and dropped from the page cache. A host's or a network's cache may still hold
    it: the number is an upper bound.
    """
    block = os.urandom(BLOCK)
    with tempfile.TemporaryFile(dir=folder) as file:
        descriptor = file.fileno()
        for _ in range(max(1, size // BLOCK)):
            file.write(block)
        file.flush()
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        buffer = bytearray(BLOCK)
        file.seek(0)
        start, total = time.perf_counter(), 0
        while count := os.readv(descriptor, [buffer]):
            total += count
        return total / max(time.perf_counter() - start, 1e-9)
