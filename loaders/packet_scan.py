"""One video file -> its row and packets in the index. Nothing is written, no error escapes.

scanned = scan_file(Path("operation.mp4"))
scanned.row.values["status"], scanned.packets.display
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import xxhash
from numpy.typing import NDArray
from surgrec.loaders.demux import (
    CONTAINER_CORRUPT,
    CONTAINER_DISCARD,
    CONTAINER_KEY,
    NO_PTS,
    Demuxed,
    demux,
    map_file,
)
from surgrec.loaders.display_order import order_by_pts, rank_of
from surgrec.loaders.index_writer import Packets, Row, default_values
from surgrec.loaders.packet_flags import (
    REMUX,
    TRANSCODE,
    Classified,
    PacketView,
    classify,
    frames_shown,
)
from surgrec.loaders.packet_index import (
    BROKEN,
    DISCARD,
    HIDDEN,
    KEY,
    OK,
    OPEN_KEY,
    SEQUENTIAL,
    VideoInfo,
    video_info,
)
from surgrec.loaders.stacking import stacking_of
from surgrec.loaders.video_stream import UnusableVideoError, VideoStream, describe

SCANNER_VERSION: Final = 4
"""Raised when a scan of the same file gives another row or other packets."""
WHOLE_DIGEST_BYTES: Final = 64 << 20
DIGEST_SAMPLE_BYTES: Final = 1 << 20
WITHOUT_PTS: Final = frozenset(("avi", "mxf", "mxf_opatom", "gxf", "h264", "hevc"))
"""Containers for which FFmpeg's demuxer makes presentation times up."""
RATE_WITHOUT_TIMES: Final = 25.0
SANE_RATES: Final = (0.01, 1000.0)


@dataclass(frozen=True, slots=True)
class Scanned:
    """A video's row and packets; of an ERROR row, no packets."""

    row: Row
    packets: Packets


def digest_file(path: Path) -> str:
    """xxh3_128 of a file's content, 32 hex digits.

    Files of more than 64 MiB: of the size (8 bytes, little-endian) and 64 samples of 1 MiB, the first at the
    start, the last at the end, the others evenly between.
    """
    state = xxhash.xxh3_128()
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_DIGEST_BYTES:
            while piece := file.read(DIGEST_SAMPLE_BYTES):
                state.update(piece)
        else:
            state.update(size.to_bytes(8, "little"))
            samples = WHOLE_DIGEST_BYTES // DIGEST_SAMPLE_BYTES
            for number in range(samples):
                start = (size - DIGEST_SAMPLE_BYTES) * number // (samples - 1)
                state.update(os.pread(file.fileno(), DIGEST_SAMPLE_BYTES, start))
    return str(state.hexdigest())


def scan_file(path: Path) -> Scanned:
    """Scan one file. What cannot be indexed comes back as a row of status ERROR with the reason."""
    return explained(path, default_values(str(path)), _scan_whole)


def explained(path: Path, values: dict[str, Any], work: Callable[[Path, dict[str, Any]], Scanned]) -> Scanned:
    """What `work(path, values)` gives; where the file is at fault, a row of status ERROR with the reason."""
    try:
        return work(path, values)
    except UnusableVideoError as problem:
        return _failed(values, str(problem))
    except FileNotFoundError:
        return _failed(values, "no such file")
    except PermissionError as problem:
        # FFmpeg says the same of references to other files, which are not followed.
        mine = os.access(path, os.R_OK)
        return _failed(values, f"{problem.strerror}" if mine else "no permission to read the file")
    except av.error.InvalidDataError as problem:
        return _failed(values, f"no video file that FFmpeg can read, or a truncated one: {problem.strerror}")
    except (av.error.FFmpegError, OSError, ValueError) as problem:
        return _failed(values, getattr(problem, "strerror", None) or str(problem))


def unchanged_since(path: Path, values: dict[str, Any]) -> None:
    """Raises UnusableVideoError where size or time of change are not those of the row."""
    after = path.stat()
    if (after.st_size, after.st_mtime_ns) != (values["file_size"], values["mtime_ns"]):
        raise UnusableVideoError("the file changed while it was being indexed; run the index again")


def _scan_whole(path: Path, values: dict[str, Any]) -> Scanned:
    before = path.stat()
    values.update(file_size=before.st_size, mtime_ns=before.st_mtime_ns)
    if not path.is_file():
        raise UnusableVideoError("not a regular file")
    if before.st_size == 0:
        raise UnusableVideoError("the file is empty")
    values["xxh3"] = digest_file(path)
    scanned = _scan(path, values)
    unchanged_since(path, values)
    return scanned


def info_of(row: Row) -> VideoInfo:
    """What an index that holds this video alone would say of it."""
    return video_info(row.values | {"packet_start": 0, "frame_start": 0}, row.extradata)


def failed_scan(path: str, reason: str) -> Scanned:
    """The row of a file that could not be scanned at all."""
    values = default_values(path)
    try:
        found = Path(path).stat()
        values.update(file_size=found.st_size, mtime_ns=found.st_mtime_ns)
    except OSError as problem:
        reason = f"{reason} ({problem.strerror})"
    return _failed(values, reason)


def _failed(values: dict[str, Any], reason: str) -> Scanned:
    kept = ("path", "file_size", "mtime_ns", "xxh3")
    return Scanned(
        Row(default_values(values["path"]) | {name: values[name] for name in kept} | {"reason": reason}),
        Packets.empty(),
    )


def _scan(path: Path, values: dict[str, Any]) -> Scanned:
    stream = describe(path)
    found = demux(path, stream.index, from_container=stream.codec in ("h264", "hevc"))
    if len(found.pos) == 0:
        raise UnusableVideoError(f"the video stream holds no packets; {found.error or 'the file may be cut'}")
    classified = _classify(path, stream, found)
    reason, notes = classified.reason, [classified.note] if classified.note else []
    shown = frames_shown(classified.flags)
    pts, has_pts = _times(found)
    order = classified.order
    by_pts = order_by_pts(pts, shown)
    if order is None:
        reason = _pts_reason(found.pts[shown], stream.container) or reason
        order = by_pts
    display = order[shown[order]]
    pts_are_good = not _pts_reason(found.pts[shown], stream.container)
    if classified.by_count and not reason and pts_are_good and not np.array_equal(by_pts, display):
        # Decoders go by picture order counts; where time stamps disagree, one of the two is wrong.
        first = int(np.argmax(by_pts != display))
        reason = f"time stamps contradict the order of the frames from frame {first} on; {TRANSCODE}"
    if len(display) == 0:
        raise UnusableVideoError("no packet of the video stream holds a frame that can be shown")
    reason = _leading_reason(stream.codec, classified.flags, display) or reason
    if not has_pts:
        pace = stream.declared_rate or RATE_WITHOUT_TIMES
        notes.append(f"no time stamps: {pace:.4g} frames per second assumed")
    pts = _complete_times(pts, display, stream, has_pts)
    stacking = stacking_of(stream, pts[display])
    if stacking is not None and reason:
        raise UnusableVideoError(f"a stacked proxy without random access: {reason}")
    if stacking is None:
        times = pts[display]
        rate, rate_note = _rate(times, stream)
    else:
        times = stacking.times(pts[display])
        rate, rate_note = stream.time_base[1] / (stream.time_base[0] * stacking.ticks), ""
    cut = int(((classified.flags & BROKEN) > 0).sum())
    notes += [rate_note] if rate_note else []
    notes += [f"{cut} damaged packets"] if cut else []
    notes += [found.error] if found.error else []
    if stream.declared_frames > len(found.pos):
        notes.append(f"the container promises {stream.declared_frames} packets, {len(found.pos)} can be read")
    tick = stream.time_base[0] / stream.time_base[1]
    span = float(times.max() - times.min()) * tick
    # Matroska's duration counts from zero, where the first frame need not be.
    notes += _cut_short(stream, max(span, float(times.max()) * tick) + 1 / rate)
    values |= stream.values | {
        "status": SEQUENTIAL if reason else OK,
        "reason": reason,
        "note": "; ".join(notes),
        "container": stream.container,
        "stream": stream.index,
        "codec": stream.codec,
        "time_base_num": stream.time_base[0],
        "time_base_den": stream.time_base[1],
        "rate": rate,
        "duration": span + 1 / rate,
        "start_pts": int(pts[display[0]]),
        "packet_count": len(found.pos),
        "frame_count": len(times),
        "stack": 1 if stacking is None else stacking.stack,
        "frame_ticks": 0 if stacking is None else stacking.ticks,
        "nal_length_size": classified.nal_length_size,
        "extradata_size": len(stream.extradata),
    }
    if stacking is not None:
        values["height"] = stacking.height
    packets = Packets(
        offset=np.where(found.start >= 0, found.start, np.maximum(found.pos, 0)).astype(np.uint64),
        size=found.size.astype(np.uint32),
        pts=pts,
        rank=rank_of(display, len(found.pos)),
        flags=classified.flags,
        checksum=found.checksum,
        display=display if stacking is None else stacking.display(display),
    )
    return Scanned(Row(values, stream.extradata), packets)


def _cut_short(stream: VideoStream, seconds: float) -> list[str]:
    """A note where much less can be read than the container promises, and it does not count frames."""
    short = stream.declared_seconds - seconds
    if stream.declared_frames or short <= max(1.0, 0.01 * seconds):
        return []
    return [f"the container promises {stream.declared_seconds:.1f} s, {seconds:.1f} s can be read"]


def _classify(path: Path, stream: VideoStream, found: Demuxed) -> Classified:
    """Flags from the packets' bytes; where those do not lie in the file in one piece, from the container."""
    flags = np.zeros(len(found.pos), np.uint8)
    flags[(found.flags & CONTAINER_DISCARD) > 0] |= DISCARD
    flags[(found.flags & CONTAINER_CORRUPT) > 0] |= BROKEN
    key = (found.flags & CONTAINER_KEY) > 0
    scattered = found.start < 0
    changes = sorted(found.side_data & {"new_extradata", "palette", "param_change"})
    if not scattered.any():
        data = map_file(path)
        view = PacketView(data, found.start, found.size, flags, key, stream.extradata, stream.intra_only)
        classified = classify(stream.codec, view)
        if not changes:
            return classified
        what = ", ".join(changes)
        reason = f"the container changes the decoder's set-up within the stream ({what}); {TRANSCODE}"
        return Classified(
            classified.flags,
            classified.order,
            reason,
            classified.note,
            classified.nal_length_size,
            classified.by_count,
        )
    container = stream.container.split(",")[0]
    what = (
        f"packets do not lie in one piece in container {container}"
        if scattered.all()
        else f"packet {int(np.argmax(scattered))} of container {container} does not lie in one piece"
    )
    if (found.pts == NO_PTS).all():
        what += ", and it has no time stamps"
    if key.any():
        flags[np.cumsum(key) == 0] |= HIDDEN
    order = np.arange(len(flags), dtype=np.uint32) if (found.pts == NO_PTS).any() else None
    return Classified(flags, order, f"{what}; {REMUX}")


def _times(found: Demuxed) -> tuple[NDArray[np.int64], bool]:
    """pts, or dts where no packet has a pts; and whether any packet has a time at all."""
    times = found.pts
    if (times == NO_PTS).all():
        times = found.dts
    return times, bool((times != NO_PTS).any())


def _pts_reason(pts: NDArray[np.int64], container: str) -> str:
    """Why time stamps do not give the display order, or empty. pts: of the packets with a frame, as found."""
    if container in WITHOUT_PTS:
        return f"container {container} has no presentation times, and the frames are reordered; {TRANSCODE}"
    missing = int((pts == NO_PTS).sum())
    if missing:
        return f"{missing} of {len(pts)} packets have no time stamp, and the frames are reordered; {REMUX}"
    if len(np.unique(pts)) < len(pts):
        return f"several frames have the same time stamp, and the frames are reordered; {TRANSCODE}"
    return ""


def _leading_reason(codec: str, flags: NDArray[np.uint8], display: NDArray[np.uint32]) -> str:
    """An H.264 stream that opens with a recovery point is whole only if no picture precedes it on display."""
    first = int(display.min())
    if codec == "h264" and flags[first] & (KEY | OPEN_KEY) == OPEN_KEY and display[0] != first:
        return f"the stream starts with leading pictures whose references are missing; {TRANSCODE}"
    return ""


def _complete_times(
    times: NDArray[np.int64], display: NDArray[np.uint32], stream: VideoStream, has_times: bool
) -> NDArray[np.int64]:
    """Presentation times int64 [P] that rise along `display`, from pts, else dts, else the frame rate.

    With dts alone, the n-th frame on display gets the n-th dts: decoders hold frames back, they do not
    change their pace. Packets without a frame keep what the file says, or get the start of the video.
    """
    tick = stream.time_base[0] / stream.time_base[1]
    step = 1 / ((stream.declared_rate or RATE_WITHOUT_TIMES) * tick)
    shown = times[display]
    missing = shown == NO_PTS
    if not has_times or missing.all():
        shown = np.round(np.arange(len(display)) * step).astype(np.int64)
    elif missing.any():
        known = np.flatnonzero(~missing)
        position = np.arange(len(display))
        inside = np.interp(position, known, shown[known])
        ends = np.minimum(position - known[0], 0) + np.maximum(position - known[-1], 0)
        shown = np.where(missing, np.round(inside + ends * step).astype(np.int64), shown)
    if (np.diff(shown) < 0).any():
        shown = np.sort(shown)
    times = np.where(times == NO_PTS, shown[0], times)
    times[display] = shown
    return times


def _rate(shown: NDArray[np.int64], stream: VideoStream) -> tuple[float, str]:
    """Frames per second from time stamps; the container's own number where it agrees or they are absurd."""
    span = float(shown.max() - shown.min()) * stream.time_base[0] / stream.time_base[1]
    measured = (len(shown) - 1) / span if span > 0 else 0.0
    declared = stream.declared_rate
    if declared and measured and abs(measured / declared - 1) < 0.005:
        return declared, ""
    if SANE_RATES[0] <= measured <= SANE_RATES[1]:
        return measured, ""
    rate = declared if SANE_RATES[0] <= declared <= SANE_RATES[1] else RATE_WITHOUT_TIMES
    if len(shown) == 1:
        return rate, ""
    return rate, f"time stamps give an absurd {measured:.4g} frames per second: {rate:.4g} assumed"
