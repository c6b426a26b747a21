"""One source -> one proxy: decode, choose, scale, encode, check, rename. One that fails leaves nothing."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

import surgrec
from surgrec.loaders.proxy_tag import make_tag, read_tag
from surgrec.loaders.stacking import tag_values
from surgrec.loaders.whole_file import sync
from surgrec.transcoding.decode import decode_frames
from surgrec.transcoding.encoder import (
    CPU_ENCODERS,
    NVENC_ENCODERS,
    EncoderError,
    ProxyWriter,
    StreamFacts,
)
from surgrec.transcoding.frame_grid import FrameGrid, make_grid
from surgrec.transcoding.geometry import Geometry, GeometryError, make_geometry
from surgrec.transcoding.options import ProxyOptions
from surgrec.transcoding.picture import PictureError, PictureMaker, planes_of, proxy_matrix, stamp
from surgrec.transcoding.record import ProxyRecord
from surgrec.transcoding.sources import SourceError, SourceVideo, Wanted, describe_source
from surgrec.transcoding.ssim import PictureYuv
from surgrec.transcoding.stack import Stacker, StackError, check_lines, frame_seconds
from surgrec.transcoding.verify import Verified, VerifyError, verify_proxy

PARTIAL: Final = ".surgrec-partial"
FULL_DISK: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
NO_WRITING: Final = frozenset((errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG))
GPU: Final = "nvenc"

Beat = Callable[[float], None]


class ProxyError(ValueError):
    """No proxy of this video; the message says why, without the path."""


class StorageError(OSError):
    """Proxies cannot be written: the whole run must stop."""


@dataclass(frozen=True, slots=True)
class Task:
    """A proxy to make in folder `out`. `encoder`: "cpu" or "nvenc", whatever the options ask.

    known_digest: digest of the source that the proxy at hand was made of; empty where there is none.
    threads: those that decode.
    """

    wanted: Wanted
    out: str
    options: ProxyOptions
    encoder: str
    index: str = ""
    known_digest: str = ""
    threads: int = 1

    @property
    def target(self) -> Path:
        return Path(self.out) / self.wanted.proxy


def partial_of(target: Path) -> Path:
    """The temporary name of a proxy, in its folder."""
    return target.with_name(f".{target.name}{PARTIAL}")


def make_proxy(task: Task, beat: Beat) -> ProxyRecord | None:
    """Write the proxy of one video; None where the known one is of the same content.

    `beat` is called with the share of the work that is done, in [0, 1], at least once a frame. Raises
    ProxyError, and StorageError where nothing can be written any more.
    """
    try:
        source = describe_source(task.wanted, Path(task.index) if task.index else None)
        if task.known_digest and source.info.xxh3 == task.known_digest:
            return None
        return _make(task, source, beat)
    except (SourceError, GeometryError, StackError, PictureError, EncoderError, VerifyError) as error:
        raise ProxyError(str(error)) from error
    except av.error.FFmpegError as error:
        raise ProxyError(f"FFmpeg fails: {error.strerror or error}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ProxyError | StorageError):
            raise
        raise ProxyError(str(error)) from error


def _make(task: Task, source: SourceVideo, beat: Beat) -> ProxyRecord:
    info, options, target = source.info, task.options, task.target
    geometry = make_geometry(
        info.height, info.width, info.sar, info.rotation, options.short_side, options.area
    )
    check_lines(geometry, options.stack, options.codec)
    grid = make_grid(source.pts, source.time_base, info.rate, Fraction(options.rate))
    if options.stack > 1:
        frame_seconds(grid, info.rate)  # refuses sources before they are decoded
    partial = partial_of(target)
    try:
        with _storing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() and read_tag(target) is None:
                raise ProxyError(f"{target} is in the way, and no proxy; move it away")
        notes = [grid.note]
        name = NVENC_ENCODERS[options.codec] if task.encoder == GPU else CPU_ENCODERS[options.codec]

        def encode(name: str) -> _Made:
            return _encode_whole(
                lambda frames: _encode(task, source, geometry, frames, name, partial, beat),
                grid,
                options.stack,
            )

        try:
            made = encode(name)
        except EncoderError as error:
            if task.encoder != GPU or options.encoder == GPU:
                raise
            name = CPU_ENCODERS[options.codec]
            notes.append(f"encoded by {name}: {error}")
            made = encode(name)
        notes.append(made.note)
        grid = made.grid
        checked = 0

        def checking() -> None:
            nonlocal checked
            checked += 1
            beat(0.9 + 0.1 * min(1.0, checked / len(grid.times)))

        size = (geometry.out_height, geometry.out_width)
        verified = verify_proxy(partial, grid, size, options, made.samples, checking)
        if _changed(source):
            raise ProxyError("the source changed while it was transcoded; run the command again")
        with _storing(target):
            sync(partial)
            os.replace(partial, target)
            sync(target.parent)
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            partial.unlink()
    return _record(task, source, geometry, grid, name, made, verified, "; ".join(filter(None, notes)))


@contextlib.contextmanager
def _storing(target: Path, errors: frozenset[int] = FULL_DISK | NO_WRITING) -> Iterator[None]:
    """Turns errors that would befall every other proxy as well into StorageError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.errno not in errors:
            raise
        raise StorageError(error.errno, error.strerror or str(error), str(target)) from error


def _changed(source: SourceVideo) -> bool:
    try:
        status = source.path.stat()
    except FileNotFoundError:
        return True
    return status.st_size != source.info.file_size


@dataclass(frozen=True, slots=True)
class _Made:
    """What encoding came to: the grid as far as the source was sound, pictures to compare with."""

    grid: FrameGrid
    samples: dict[int, PictureYuv]
    interlaced: int
    note: str


def _encode_whole(encode: Callable[[FrameGrid], _Made], grid: FrameGrid, stack: int) -> _Made:
    """Encodes the frames of a grid; the tag of stacked ones has their right number where damage ends them."""
    made = encode(grid)
    if stack == 1 or len(made.grid.times) == len(grid.times):
        return made
    # The tag was written before the damage was found.
    return replace(encode(made.grid), note=made.note)


def _encode(
    task: Task,
    source: SourceVideo,
    geometry: Geometry,
    grid: FrameGrid,
    name: str,
    partial: Path,
    beat: Beat,
) -> _Made:
    info, options = source.info, task.options
    matrix, primaries, transfer = source.colours
    facts = StreamFacts(
        geometry.out_height * options.stack,
        geometry.out_width,
        grid.time_base,
        grid.rate,
        proxy_matrix(matrix),
        primaries,
        transfer,
    )
    tag = make_tag(_tag_values(source, geometry, grid, options))
    stacker = Stacker(options.stack)
    maker = PictureMaker(geometry, info.height, info.width, matrix, options.fields == "first")
    count = len(grid.positions)
    compared = set(np.linspace(0, count - 1, min(options.ssim_frames, count)).round().astype(int).tolist())
    samples: dict[int, PictureYuv] = {}
    with _storing(task.target):
        writer = ProxyWriter(partial, name, options, facts, tag)
    # From here on other errors than a full disk may come from the source, or from the encoder.
    with _storing(task.target, FULL_DISK):
        try:
            written, damage, damaged_at, number = 0, "", 0, -1
            for number, (frame, problem) in enumerate(decode_frames(source.path, info.stream, task.threads)):
                beat(0.9 * (number + 1) / max(len(source.pts), number + 1))
                if problem and not damage:
                    damage, damaged_at = problem, number
                elif damage and not problem:
                    raise ProxyError(
                        f"FFmpeg reports damaged data around frame {damaged_at}, with sound frames behind "
                        f"it: {damage}. Cut the file there, or get a whole copy."
                    )
                if damage or grid.positions[written] != number:
                    continue
                _check_time(source, number, frame.pts)
                picture = maker.make(frame)
                while written < count and grid.positions[written] == number:
                    if written in compared:
                        samples[written] = planes_of(picture)
                    whole = stacker.add(picture)
                    written += 1
                    if whole is not None:
                        time = int(grid.times[written - options.stack]) // options.stack
                        writer.write(stamp(whole, time, grid.time_base))
                if written == count:
                    break
            if written < count and not damage:
                raise ProxyError(f"FFmpeg gives {number + 1} frames, the index has {len(source.pts)}")
            if written == 0:
                raise ProxyError(f"FFmpeg reports damaged data from the start: {damage}")
            whole = stacker.rest()
            if whole is not None:
                time = int(grid.times[(written - 1) // options.stack * options.stack]) // options.stack
                writer.write(stamp(whole, time, grid.time_base))
            writer.close()
        except BaseException:
            writer.abandon()
            raise
    note = ""
    if written < count:
        note = f"the source is damaged from frame {damaged_at} to its end; the proxy ends before: {damage}"
        grid = replace(grid, positions=grid.positions[:written], times=grid.times[:written])
    return _Made(grid, samples, maker.interlaced, note)


def _tag_values(
    source: SourceVideo, geometry: Geometry, grid: FrameGrid, options: ProxyOptions
) -> dict[str, Any]:
    height, width = geometry.out_height, geometry.out_width
    values: dict[str, Any] = {
        "source": source.info.xxh3,
        "options": options.digest,
        "rate": str(grid.rate),
        "short_side": min(height, width),
        "surgrec": surgrec.__version__,
    }
    if options.stack > 1:
        seconds = frame_seconds(grid, source.info.rate)
        values |= tag_values(options.stack, len(grid.times), height, width, seconds)
    return values


def _check_time(source: SourceVideo, number: int, pts: int | None) -> None:
    if source.times_are_whole and pts is not None and pts != source.pts[number]:
        raise ProxyError(
            f"frame {number} comes out of FFmpeg with time stamp {pts}, the index has {source.pts[number]}; "
            "write the index again"
        )


def _record(
    task: Task,
    source: SourceVideo,
    geometry: Geometry,
    grid: FrameGrid,
    encoder: str,
    made: _Made,
    verified: Verified,
    note: str,
) -> ProxyRecord:
    info, wanted = source.info, task.wanted
    status = task.target.stat()
    values = {
        "proxy": wanted.proxy,
        "xxh3": verified.xxh3,
        "source": wanted.path,
        "source_xxh3": info.xxh3,
        "dataset": wanted.dataset,
        "domain": wanted.domain,
        "case": wanted.case,
        "split": wanted.split,
        "encoder": encoder,
        "options": task.options.to_json(),
        "options_digest": task.options.digest,
        "note": note,
        "surgrec_version": surgrec.__version__,
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "source_bytes": info.file_size,
        "source_mtime_ns": source.path.stat().st_mtime_ns,
        "source_time_base_num": info.time_base[0],
        "source_time_base_den": info.time_base[1],
        "time_base_num": grid.time_base.numerator,
        "time_base_den": grid.time_base.denominator,
        "frame_count": len(grid.positions),
        "repeats": int((np.diff(grid.positions) == 0).sum()),
        "interlaced": made.interlaced,
        "stack": task.options.stack,
        "width": geometry.out_width,
        "height": geometry.out_height,
        "rotation": geometry.rotation,
        "area_top": geometry.top,
        "area_left": geometry.left,
        "area_height": geometry.height,
        "area_width": geometry.width,
        "ssim_frames": verified.ssim_frames,
        "ssim_mean": verified.ssim_mean,
        "ssim_min": verified.ssim_min,
    }
    positions = grid.positions.astype(np.int64)
    return ProxyRecord(values, positions, source.pts[positions].astype(np.int64), grid.times.astype(np.int64))
