"""Which videos of a packet index are proxies: a run says on which it trained."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from surgrec.loaders.packet_index import ERROR, REMOVED, PacketIndex
from surgrec.loaders.proxy_tag import read_tag
from surgrec.transcoding.options import MULTIPLE

READERS: Final = 16
"""Files read at a time: on a network file system each costs some round trips."""


@dataclass(frozen=True, slots=True)
class ProxySummary:
    """proxies of `videos` that can be decoded; kinds: how many of each (rate, short_side, options digest).

    `rate` is frames per second as a fraction in text ("25/4"), `short_side` pixels.
    """

    proxies: int
    videos: int
    kinds: dict[tuple[str, int, str], int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a run's record."""
        kinds = [
            {"rate": rate, "short_side": side, "options": digest, "videos": count}
            for (rate, side, digest), count in sorted(self.kinds.items())
        ]
        return {"proxies": self.proxies, "videos": self.videos, "kinds": kinds}


def proxy_summary(index: PacketIndex) -> ProxySummary:
    """Count the proxies of an index, by the tag in each file that may be one. A file that is gone is none."""
    table = index.videos
    usable = np.flatnonzero(~np.isin(table.status, (ERROR, REMOVED)))
    shaped = (table.width % MULTIPLE == 0) & (table.height % MULTIPLE == 0) & (table.rotation == 0)
    square = table.sar_num == table.sar_den
    paths = [
        table.path[n]
        for n in usable
        if shaped[n] and square[n] and table.codec[n] in ("h264", "hevc") and "mp4" in table.container[n]
    ]
    with ThreadPoolExecutor(READERS) as pool:
        tags = [tag for tag in pool.map(_tag_of, paths) if tag is not None]
    kinds = Counter(
        (str(tag.get("rate", "")), int(tag.get("short_side", 0)), str(tag.get("options", ""))) for tag in tags
    )
    return ProxySummary(len(tags), len(usable), dict(kinds))


def _tag_of(path: str) -> dict[str, Any] | None:
    try:
        return read_tag(path)
    except OSError:
        return None


def describe_proxies(summary: dict[str, Any]) -> str:
    """One line for people, from ProxySummary.to_dict(); empty where no video is a proxy."""
    if not summary["proxies"]:
        return ""
    kinds = ", ".join(
        f"{kind['videos']:,} with short side {kind['short_side']} at {kind['rate']} frames/s "
        f"(options {kind['options']})"
        for kind in summary["kinds"]
    )
    return f"training proxies: {summary['proxies']:,} of {summary['videos']:,} videos: {kinds}"
