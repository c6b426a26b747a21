"""What became of each key of a file: loaded, changed on the way, or dropped with a reason. Nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from surgrec.weights.errors import WeightsError

SHOWN: Final = 5


@dataclass
class Coverage:
    """loaded: (their key, ours). dropped: (their key, reason); a key that ends in `*` stands for all that
    begin so. changed: (our key, what was done). assumed: (what, value, why), where the file does not say."""

    loaded: list[tuple[str, str]] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)
    assumed: list[tuple[str, str, str]] = field(default_factory=list)

    def table(self) -> str:
        """Text with a line for each key."""
        width = max((len(key) for key, _ in (*self.loaded, *self.dropped, *self.changed)), default=0)
        lines = []
        for title, rows in (
            ("loaded", [(theirs, f"-> {ours}") for theirs, ours in self.loaded]),
            ("changed", self.changed),
            ("dropped", self.dropped),
            ("assumed", [(what, f"{value}: {why}") for what, value, why in self.assumed]),
        ):
            lines.append(f"{title} ({len(rows)})")
            lines += [f"  {left:<{width}}  {right}" for left, right in rows]
        return "\n".join(lines)


class Taker:
    """Hands out tensors by their key, and keeps the account of it.

    What is missing or has another shape is only told by `finish`, all of it at once: until then a tensor on
    the meta device stands for it.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """path: for messages. tensors: all of the file, by their path in it."""
        self.path = path
        self.coverage = Coverage()
        self._tensors = tensors
        self._left = dict.fromkeys(tensors)
        self._faults: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def keys(self, prefix: str = "") -> list[str]:
        """Of the file, those that begin so, in its order."""
        return [key for key in self._tensors if key.startswith(prefix)]

    def shape(self, key: str) -> tuple[int, ...]:
        """Of a tensor that a form is read from. Raises WeightsError where it is not there."""
        if key not in self._tensors:
            raise WeightsError(
                f"{self.path}: there is no {key}, which tells the model's shape; the file is of another"
                " layout, or not whole: name its layout, or fetch it again"
            )
        return tuple(self._tensors[key].shape)

    def dimensions(self, key: str, count: int) -> tuple[int, ...]:
        """As `shape`. Raises WeightsError also for another number of dimensions, or one of length 0."""
        shape = self.shape(key)
        if len(shape) != count or not all(shape):
            raise WeightsError(
                f"{self.path}: {key} is {list(shape)}; {count} dimensions tell the model's shape. The file is"
                " of another layout: name its layout, or give another file"
            )
        return shape

    def take(self, key: str, ours: str, shape: Sequence[int]) -> Tensor:
        """The tensor of a key, of floating-point numbers and of this shape, as it is stored: dense, with
        values. ours: what it becomes."""
        empty = torch.empty(tuple(shape), device="meta")
        if key not in self._tensors:
            self._faults.append(f"{key} is missing")
            return empty
        self._left.pop(key, None)
        value = self._tensors[key]
        kind = _kind(value)
        if tuple(value.shape) != tuple(shape) or kind:
            self._faults.append(f"{key} is {list(value.shape)}{kind}; {list(shape)} of numbers is needed")
            return empty
        self.coverage.loaded.append((key, ours))
        return value

    def drop(self, key: str, reason: str) -> None:
        """Leaves one key, where it is there."""
        if self._left.pop(key, "absent") is None:
            self.coverage.dropped.append((key, reason))

    def drop_under(self, prefix: str, reason: str) -> None:
        """Leaves all keys that begin so and were not taken."""
        keys = [key for key in self._left if key.startswith(prefix)]
        for key in keys:
            del self._left[key]
        if keys:
            self.coverage.dropped.append((f"{prefix}*", f"{reason} (tensors: {len(keys)})"))

    def change(self, ours: str, what: str) -> None:
        """Records what was done to a tensor."""
        self.coverage.changed.append((ours, what))

    def assume(self, what: str, value: str, why: str) -> None:
        """Records what the file does not say."""
        self.coverage.assumed.append((what, value, why))

    def finish(self) -> Coverage:
        """The account. Raises WeightsError for keys that were missing, misshaped, or neither taken nor
        dropped."""
        faults = self._faults + [f"{key} is unknown" for key in self._left]
        if faults:
            more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            raise WeightsError(
                f"{self.path}: does not fit its layout: {', '.join(faults[:SHOWN])}{more}. Give the file of"
                " another model, or name another layout; see docs/models.md"
            )
        return self.coverage


def _kind(value: Tensor) -> str:
    """What keeps a tensor from being a weight, for messages; empty where nothing does."""
    if value.is_meta:
        return " without values"
    if value.layout != torch.strided:
        return f" of the layout {str(value.layout).removeprefix('torch.')}"
    return "" if value.is_floating_point() else f" of {value.dtype}"
