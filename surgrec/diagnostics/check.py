"""The outcome of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    group: str
    name: str
    status: Status
    value: str
    """What was found, or why nothing was."""
    remedy: str = ""
    """What to do about it; empty where all is well."""
    required: bool = False
    """Pretraining cannot run on this machine while this is missing."""

    def __post_init__(self) -> None:
        if self.status != "ok" and not self.remedy:
            raise ValueError(f"{self.name} is {self.status}: a check that fails names a remedy")


def one_line(error: BaseException) -> str:
    """An error as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
