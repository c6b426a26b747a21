"""FFmpeg, as PyAV brings it: which codecs it decodes and encodes."""

from __future__ import annotations

from typing import Literal

from surgrec.diagnostics.check import Check, Status, one_line

GROUP = "video"
DECODERS = ("h264", "hevc", "av1", "vp8", "vp9", "mpeg2video", "mpeg4", "mjpeg")
ESSENTIAL = ("h264", "hevc")
ENCODERS = ("libx264", "libx265", "libsvtav1", "libvpx-vp9")
REMEDY = "use the wheel of PyAV, which has all of them: pip install --force-reinstall --only-binary av av"


def check_ffmpeg() -> Check:
    """Which FFmpeg PyAV runs on."""
    try:
        import av
    except (ImportError, OSError) as error:
        return Check(GROUP, "FFmpeg", "missing", one_line(error), REMEDY, required=True)
    libraries = ", ".join(
        f"{name} {'.'.join(map(str, version))}"
        for name, version in sorted(av.library_versions.items())
        if name in ("libavcodec", "libavformat")
    )
    return Check(GROUP, "FFmpeg", "ok", f"PyAV {av.__version__}: {libraries}", required=True)


def available(names: tuple[str, ...], mode: Literal["r", "w"]) -> tuple[list[str], list[str]]:
    """Those of the codecs that FFmpeg has and those that it lacks; mode is r to decode, w to encode."""
    from av.codec import Codec
    from av.error import FFmpegError

    found: list[str] = []
    lacking: list[str] = []
    for name in names:
        try:
            Codec(name, mode)
        except (FFmpegError, ValueError):
            lacking.append(name)
        else:
            found.append(name)
    return found, lacking


def check_decoders() -> Check:
    """Decoders of the formats that recorders write."""
    try:
        found, lacking = available(DECODERS, "r")
    except (ImportError, OSError) as error:
        return Check(GROUP, "decoders", "missing", one_line(error), REMEDY, required=True)
    value = ", ".join(found) + (f"; not {', '.join(lacking)}" if lacking else "")
    fatal = any(name in lacking for name in ESSENTIAL)
    status: Status = "missing" if fatal else "warn" if lacking else "ok"
    return Check(GROUP, "decoders", status, value, REMEDY if lacking else "", required=fatal)


def check_encoders() -> Check:
    """Encoders, which the demo and the tests use; pretraining needs none."""
    try:
        found, lacking = available(ENCODERS, "w")
    except (ImportError, OSError) as error:
        return Check(GROUP, "encoders", "warn", one_line(error), REMEDY)
    value = ", ".join(found) + (f"; not {', '.join(lacking)}" if lacking else "")
    return Check(GROUP, "encoders", "warn" if lacking else "ok", value, REMEDY if lacking else "")
