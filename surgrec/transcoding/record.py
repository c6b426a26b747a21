"""What is known of one finished proxy: columns of the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

TEXT_COLUMNS: Final = (
    "proxy",
    "xxh3",
    "source",
    "source_xxh3",
    "dataset",
    "domain",
    "case",
    "split",
    "encoder",
    "options",
    "options_digest",
    "note",
    "surgrec_version",
)
NUMBER_COLUMNS: Final[dict[str, str]] = {
    "bytes": "i8",
    "mtime_ns": "i8",
    "source_bytes": "i8",
    "source_mtime_ns": "i8",
    "source_time_base_num": "i8",
    "source_time_base_den": "i8",
    "time_base_num": "i8",
    "time_base_den": "i8",
    "frame_count": "i8",
    "repeats": "i8",
    "interlaced": "i8",
    "stack": "i4",
    "width": "i4",
    "height": "i4",
    "rotation": "i4",
    "area_top": "i4",
    "area_left": "i4",
    "area_height": "i4",
    "area_width": "i4",
    "ssim_frames": "i4",
    "ssim_mean": "f8",
    "ssim_min": "f8",
}
FRAME_COLUMNS: Final = ("position", "pts", "time")


@dataclass(frozen=True, slots=True)
class ProxyRecord:
    """One proxy.

    values: TEXT_COLUMNS (str; `proxy` is relative to the folder of the proxies) and NUMBER_COLUMNS. Of each
    frame, int64 [frame_count]: `position`, its source frame's display position; `pts`, that frame's in the
    source, in its time base; `time`, the pts in the proxy, in its time base.
    """

    values: dict[str, Any]
    position: NDArray[np.int64]
    pts: NDArray[np.int64]
    time: NDArray[np.int64]

    @property
    def proxy(self) -> str:
        return str(self.values["proxy"])

    def with_values(self, **changed: Any) -> ProxyRecord:
        return ProxyRecord(self.values | changed, self.position, self.pts, self.time)

    def check(self) -> None:
        """Raises ValueError where columns are missing or lengths do not agree."""
        expected = {*TEXT_COLUMNS, *NUMBER_COLUMNS}
        if set(self.values) != expected:
            raise ValueError(f"columns {sorted(expected ^ set(self.values))} are missing or unknown")
        lengths = {len(getattr(self, name)) for name in FRAME_COLUMNS}
        if lengths != {self.values["frame_count"]}:
            raise ValueError(f"{self.values['frame_count']} frames, columns of {sorted(lengths)}")
