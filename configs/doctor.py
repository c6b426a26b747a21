"""Options of `python -m surgrec.doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DoctorConfig:
    """Tell what this machine can do for SurgRec, and the remedy for what it cannot.

    The exit status is 0 where pretraining can run (a CPU is enough) and 1 where it cannot.
    """

    json: bool = False
    """Print JSON instead of a table."""
    data: Path = Path()
    """Folder of the videos: how fast it is read is measured with a temporary file of 128 MiB."""
