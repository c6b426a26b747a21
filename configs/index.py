"""What is indexed, and where the index goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class IndexConfig:
    """Index videos: one pass over the packets of each file, no decoding, written to one corpus.h5.

    A second run takes up where a killed one stopped, skips files that did not change, and marks those that
    are gone. Videos of an earlier run stay in the index even if this run does not name them.
    """

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders (searched with all that is below them), files and glob patterns."""
    out: Path = Path("corpus.h5")
    """The index."""
    manifest: Path | None = None
    """CSV or Parquet table with a column path and any of dataset, domain, case, split. Paths are relative to
    the table."""
    workers: int = 0
    """Processes that scan files side by side; 0 takes the cores of this machine."""
    domain: str = ""
    """Domain of videos for which the manifest names none: endoscopy, laparoscopy, cataract, robotic, ..."""
    dataset: str = ""
    """Data set of videos for which the manifest names none; the folder below the input by default."""
    verify: bool = False
    """Decode the videos named once with FFmpeg, and mark packets that it reports damaged: clips that need
    them are refused by every engine. Takes all cores for as long as FFmpeg needs for all frames."""
    rescan: bool = False
    """Scan the videos named even where size and time of change are those of the last run: for files that
    were damaged, or repaired, without a trace."""
    timeout: float = 600.0
    """Seconds after which a file counts as hanging; a second is added for every 2 MB of its size, with verify
    for every 100 kB."""
