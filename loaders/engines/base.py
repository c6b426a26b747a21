"""What every engine takes and gives: clip requests in, decoded clips or failures with a reason out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from surgrec.loaders.clip_plan import ClipRequest

if TYPE_CHECKING:  # processes that decode need no torch
    from surgrec.kernels.planes import Planes


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """The pictures of one clip, and what they cost.

    frames: uint8 [T, H, W, 3], RGB, upright, at the size of the video; row k is request.frames[k]. Or,
    from an engine that serves a GPU, the planes there, complete and safe to read from any stream.
    decoded_frames: frames that the decoder worked on, with all those in a stacked picture. fed_packets,
    read_bytes: what it was given; a packet holds one picture, whatever is stacked in it.
    """

    request: ClipRequest
    frames: NDArray[np.uint8] | Planes
    decoded_frames: int
    fed_packets: int
    read_bytes: int

    @property
    def height(self) -> int:
        """Of the upright picture."""
        return self.frames.shape[1] if isinstance(self.frames, np.ndarray) else self.frames.height

    @property
    def width(self) -> int:
        """Of the upright picture."""
        return self.frames.shape[2] if isinstance(self.frames, np.ndarray) else self.frames.width


@dataclass(frozen=True, slots=True)
class ClipFailure:
    """A clip that could not be decoded: which, where, by what, and why (with a remedy where there is one)."""

    request: ClipRequest
    path: str
    engine: str
    reason: str


Outcome = DecodedClip | ClipFailure
"""What an engine gives for a request."""


class BadClip(Exception):  # noqa: N818 - it never leaves an engine: it becomes a ClipFailure
    """The data cannot be decoded; the message is the reason."""


class Engine(Protocol):
    """Decodes clips, several at a time."""

    def submit(self, request: ClipRequest) -> Future[Outcome]:
        """Queues one clip. Bad data gives a ClipFailure; the future raises for programming errors only."""

    def decode(self, requests: Sequence[ClipRequest]) -> list[Outcome]:
        """Decodes clips and waits for them; results in the order of the requests."""

    def close(self) -> None:
        """Drops what is queued and ends the threads."""


class PooledEngine(ABC):
    """What the engines have in common. Close one, or use it as a context manager."""

    @abstractmethod
    def submit(self, request: ClipRequest) -> Future[Outcome]:
        """Queues one clip; as Engine has it."""

    @abstractmethod
    def close(self) -> None:
        """Drops what is queued, and ends threads and processes. May be called again."""

    def decode(self, requests: Sequence[ClipRequest]) -> list[Outcome]:
        """Decodes clips, several at a time, and waits; results in the order of the requests."""
        return [future.result() for future in [self.submit(request) for request in requests]]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_timeout(timeout: float) -> None:
    """Raises ValueError unless the seconds that a decoder may take are above 0."""
    if not timeout > 0:
        raise ValueError(f"decoder_timeout is {timeout}; it is a number of seconds above 0")
