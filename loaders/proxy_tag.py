"""The tag in a proxy's own metadata, by which any copy of the file is known for a proxy.

It is the comment of the MP4 file: `surgrec-proxy {"source": digest, "options": digest, ...}`. `read_tag`
reads it from the boxes of the file (ISO/IEC 14496-12, 4.2) with a few small reads, so that a corpus is
searched in no time; `parse_tag` takes a comment that FFmpeg has read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

MARK: Final = "surgrec-proxy "
MAX_TAG_BYTES: Final = 1 << 16
HEADER: Final = 8
LONG_HEADER: Final = 16


def make_tag(values: dict[str, Any]) -> str:
    """The text of a tag; values are plain."""
    return MARK + json.dumps(values, sort_keys=True)


def read_tag(path: str | Path) -> dict[str, Any] | None:
    """The values of a file's tag; None where it has none, is no MP4 file, or is damaged. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = os.fstat(descriptor).st_size
        for start, stop in _boxes(descriptor, 0, end, b"moov"):
            for first, last in _boxes(descriptor, start, stop, b"udta"):
                content = os.pread(descriptor, min(last - first, MAX_TAG_BYTES), first)
                found = parse_tag(content.decode("utf-8", "replace"))
                if found is not None:
                    return found
    finally:
        os.close(descriptor)
    return None


def parse_tag(text: str) -> dict[str, Any] | None:
    """The values of the tag in a text; None where it holds none, or a damaged one."""
    at = text.find(MARK)
    if at < 0:
        return None
    try:
        values, _ = json.JSONDecoder().raw_decode(text[at + len(MARK) :])
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _boxes(descriptor: int, start: int, end: int, name: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of the content of each box of that name in [start, end)."""
    while start + HEADER <= end:
        head = os.pread(descriptor, LONG_HEADER, start)
        if len(head) < HEADER:
            return
        size, content = int.from_bytes(head[:4], "big"), HEADER
        if size == 0:  # to the end of the file
            size = end - start
        elif size == 1:
            size, content = int.from_bytes(head[8:16], "big"), LONG_HEADER
        if size < content or start + size > end:
            return
        if head[4:8] == name:
            yield start + content, start + size
        start += size
