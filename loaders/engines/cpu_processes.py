"""FFmpeg for clips that go to a GPU: decoding processes, and threads that bring their pictures to it."""

from __future__ import annotations

import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Final

import torch
from surgrec.kernels.planes import PackedPlanes, Place, Planes
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.engines.arena import Arena, places_of
from surgrec.loaders.engines.base import ClipFailure, DecodedClip, Outcome, PooledEngine, check_timeout
from surgrec.loaders.engines.cpu import count_threads
from surgrec.loaders.engines.decode_process import Answer, Pictures, Setup, WrongRequest
from surgrec.loaders.engines.pixels import Layout
from surgrec.loaders.engines.threads import WorkerThreads
from surgrec.loaders.packet_index import SEQUENTIAL, PacketIndex
from surgrec.loaders.streams import loader_stream, memory_stream

SEQUENTIAL_PATIENCE: Final = 60
"""Times the timeout that a video without random access is given: it is decoded from its start."""
START_SECONDS: Final = 60.0
"""Longest that a process may take until its first answer, beyond the timeout."""
LATE_SECONDS: Final = 0.5
"""Wait after which a process in the background is given a core like any other's."""

_log = logging.getLogger(__name__)


class CpuProcesses(PooledEngine):
    """The cpu engine for a GPU: decodes clips in processes, to Planes on a device.

    threads: processes; 0 takes one per core that this process may use. timeout: seconds after which a process
    that does not answer is killed and replaced; its clip is a ClipFailure. Otherwise as CpuEngine.
    """

    name = "cpu"

    def __init__(
        self,
        index: PacketIndex,
        device: torch.device,
        threads: int = 0,
        drop_disposable: bool = True,
        timeout: float = 30.0,
        open_files: int = 512,
    ) -> None:
        check_timeout(timeout)
        self.index = index
        self.threads = count_threads(threads)
        setup = Setup(str(index.path.absolute()), self.name, drop_disposable, open_files)
        memory = memory_stream(device) if device.type == "cuda" else None
        self._pool: WorkerThreads[ProcessWorker, ClipRequest, Outcome] = WorkerThreads(
            self.threads,
            "surgrec-cpu",
            lambda: ProcessWorker(index, setup, device, timeout, memory),
            ProcessWorker.run,
        )

    @property
    def parallel(self) -> int:
        """Clips that it works on at a time."""
        return self.threads

    def submit(self, request: ClipRequest) -> Future[Outcome]:
        """Queues one clip; as CpuEngine.submit."""
        return self._pool.submit(request)

    def close(self) -> None:
        """Cancels what is queued, waits for the clips that are being decoded, and ends the processes."""
        self._pool.close()


class ProcessWorker:
    """One decoding process, and the thread that talks to it. The process starts with the first clip.

    memory: where the device is a GPU, the stream whose memory pictures come from, one for all workers, so
    that each can use what any gave back. background: whether the process has a core only where nobody else
    wants one. It is given one like any other's for a clip that is waited for too long: where other work holds
    all cores, it would not come for ever.
    """

    def __init__(
        self,
        index: PacketIndex,
        setup: Setup,
        device: torch.device,
        timeout: float,
        memory: torch.cuda.Stream | None = None,
        background: bool = False,
    ) -> None:
        self._index = index
        self._setup = setup
        self._device = device
        self._timeout = timeout
        self._memory = memory
        self._stream = None if memory is None else loader_stream(device)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._arena: Arena | None = None
        self._ready = select.poll()
        self._background = background
        self._back = False

    def run(self, request: ClipRequest) -> Outcome:
        """Decodes one clip. ClipFailure for bad data or a dead process, ValueError for wrong requests."""
        videos = self._index.videos
        if not 0 <= request.video < len(self._index):
            raise ValueError(
                f"video {request.video} is outside the index, which holds {len(self._index)} videos"
            )
        patience = self._timeout * (SEQUENTIAL_PATIENCE if videos.status[request.video] == SEQUENTIAL else 1)
        try:
            answer = self._ask(request, patience)
        except (EOFError, ConnectionError, TimeoutError) as error:
            reason = self._lost(error)
            self.close()
            return ClipFailure(request, videos.path[request.video], self._setup.engine, reason)
        if isinstance(answer, WrongRequest):
            raise ValueError(answer.text)
        if isinstance(answer, ClipFailure):
            return answer
        planes = self._bring(answer)
        return DecodedClip(request, planes, answer.decoded_frames, answer.fed_packets, answer.read_bytes)

    def close(self) -> None:
        """Ends the process. The next clip starts another."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._arena is not None:
            self._arena.close()
        self._process = self._connection = self._arena = None
        self._back = False

    def _ask(self, request: ClipRequest, patience: float) -> Answer:
        """Raises TimeoutError, EOFError or ConnectionError where no answer comes."""
        if self._connection is None:
            self._start()
            patience += START_SECONDS
        assert self._connection is not None
        self._connection.send(request)
        self._wait(patience)
        answer: Answer = self._connection.recv()
        self._stand_back()
        return answer

    def _wait(self, patience: float) -> None:
        """Waits for an answer. Raises TimeoutError where none comes."""
        until = time.monotonic() + patience
        while not self._ready.poll(1000 * min(LATE_SECONDS, patience)):
            if time.monotonic() >= until:
                raise TimeoutError
            if self._back:
                self._schedule(os.SCHED_OTHER)

    def _stand_back(self) -> None:
        """From now on the process has a core only where nobody else wants it."""
        if self._background and not self._back:
            self._schedule(os.SCHED_IDLE)

    def _schedule(self, policy: int) -> None:
        assert self._process is not None
        try:
            os.sched_setscheduler(self._process.pid, policy, os.sched_param(0))
        except OSError as error:
            _log.info("decoding processes run like all others: %s", error)
            self._background = False
        self._back = policy == os.SCHED_IDLE

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        arena = Arena(pin=None if self._stream is None else _pin_memory)
        # Not -m: the classes of the messages must have the same module's name on both sides.
        code = "import sys; from surgrec.loaders.engines.decode_process import main; main(sys.argv[1:])"
        # One core each: the processes are the parallelism.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno()), str(arena.descriptor)],
            pass_fds=(theirs.fileno(), arena.descriptor),
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._ready = select.poll()  # cheaper than Connection.poll
        self._ready.register(self._connection.fileno(), select.POLLIN)
        self._arena = arena
        self._connection.send(self._setup)

    def _lost(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"FFmpeg did not answer within {self._timeout:g} s; its process was killed"
        assert self._process is not None
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "the process that decoded it closed its connection; it was killed"
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"the process that decoded it died ({how})"

    def _bring(self, answer: Pictures) -> Planes:
        """The pictures on the device: in one piece, as the process left them."""
        assert self._arena is not None
        starts, size = places_of(answer.layouts)
        content = torch.from_numpy(self._arena.content(size))
        if self._memory is None or self._stream is None:
            memory = content.clone()
        else:
            torch.cuda.set_stream(self._memory)  # of this thread
            memory = torch.empty_like(content, device=self._device)
            torch.cuda.set_stream(self._stream)
            memory.copy_(content, non_blocking=True)
            self._stream.synchronize()
        pictures = _packed(memory, answer.layouts, starts, answer.count)
        return Planes(pictures, answer.rows, answer.colour, answer.rotation)


def _packed(memory: torch.Tensor, layouts: list[Layout], starts: list[int], count: int) -> PackedPlanes:
    """The planes in the memory of an arena."""
    (_, height, width, *channels), kind = layouts[0]
    if kind.itemsize > 1:
        memory = memory.view(torch.uint16)
    if channels:  # interleaved RGB
        shape, strides = (count, height, width), (height * width * 3, width * 3, 3)
        return PackedPlanes(
            memory, (Place(0, shape, strides), Place(1, shape, strides), Place(2, shape, strides))
        )
    first, second, third = (
        Place(start // kind.itemsize, (count, *shape[1:]), (shape[1] * shape[2], shape[2], 1))
        for start, (shape, _) in zip(starts, layouts, strict=True)
    )
    return PackedPlanes(memory, (first, second, third))


def _pin_memory(address: int, size: int) -> Callable[[], None]:
    """Lets the GPU read memory by itself; what undoes it. Without, a core copies each clip once more."""
    runtime = torch.cuda.cudart()
    if int(runtime.cudaHostRegister(address, size, 0)) != 0:
        _log.info("memory of %d bytes cannot be pinned; clips that FFmpeg decodes are copied once more", size)
        return lambda: None
    return lambda: _unpin_memory(address)


def _unpin_memory(address: int) -> None:
    error = int(torch.cuda.cudart().cudaHostUnregister(address))
    if error:
        _log.warning("memory of a decoding process stays pinned: CUDA error %d", error)
