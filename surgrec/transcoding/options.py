"""What shapes the content of a proxy, as plain values with a digest."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Final

import xxhash

from surgrec.configs.transcode import TranscodeConfig
from surgrec.loaders.stacking import MAX_STACK

TRANSCODER_VERSION: Final = 1
"""Raised when the same source and options give another proxy."""
MULTIPLE: Final = 16
"""Both sides of a proxy are multiples of this: no block of the codec is padded."""
MAX_QUALITY: Final = 51
GOP: Final = 16
ALL_KEYS_FROM: Final = 4
"""Frames in a picture from which on other pictures predict so little that key frames cost about as much
(docs/transcode.md has the measurement)."""


class OptionError(ValueError):
    """An option out of its range; the message quotes the value and the bound."""


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """Options of a proxy. `rate` is a fraction as text ("25/4"), "0" for the source's own times.

    `area` is (top, left, height, width) in pixels of the upright stored picture, None for all of it. `gop`
    counts frames; `stack` of them stand in one coded picture.
    """

    short_side: int
    rate: str
    gop: int
    codec: str
    quality: float
    preset: str
    encoder: str
    fields: str
    ssim_frames: int
    min_ssim: float
    area: tuple[int, int, int, int] | None = None
    stack: int = 1

    @property
    def gop_pictures(self) -> int:
        """Coded pictures from one key frame to the next."""
        return self.gop // self.stack

    @staticmethod
    def of(config: TranscodeConfig) -> ProxyOptions:
        """Raises OptionError."""
        gop = config.gop or (config.stack if config.stack >= ALL_KEYS_FROM else GOP)
        problems = [
            (
                config.short_side >= MULTIPLE and config.short_side % MULTIPLE == 0,
                f"--short-side {config.short_side}: a positive multiple of {MULTIPLE} is needed",
            ),
            (
                config.rate == 0 or 0.01 <= config.rate <= 1000,
                f"--rate {config.rate:g}: 0 (the source's own) or 0.01 to 1000 frames per second are needed",
            ),
            (1 <= gop <= 1000, f"--gop {config.gop}: 1 to 1000 frames are needed, or 0 for the default"),
            (
                1 <= config.stack <= MAX_STACK,
                f"--stack {config.stack}: 1 (none) to {MAX_STACK} frames in a picture are needed",
            ),
            (
                gop % config.stack == 0 if config.stack else True,
                f"--gop {gop}: a multiple of --stack {config.stack} is needed: a group is whole pictures",
            ),
            (
                0 < config.quality <= MAX_QUALITY,
                f"--quality {config.quality:g}: above 0, and {MAX_QUALITY} at most, is needed",
            ),
            (config.ssim_frames >= 0, f"--ssim-frames {config.ssim_frames}: must not be negative"),
            (-1 <= config.min_ssim < 1, f"--min-ssim {config.min_ssim:g}: -1 to below 1 is needed"),
            (config.workers >= 0, f"--workers {config.workers}: must not be negative"),
            (config.timeout > 0, f"--timeout {config.timeout:g}: must be positive"),
        ]
        for fine, message in problems:
            if not fine:
                raise OptionError(message)
        return ProxyOptions(
            config.short_side,
            str(Fraction(str(config.rate))),
            gop,
            config.codec,
            config.quality,
            config.preset,
            config.encoder,
            config.fields,
            config.ssim_frames,
            config.min_ssim,
            stack=config.stack,
        )

    @staticmethod
    def from_json(text: str) -> ProxyOptions:
        values = json.loads(text)
        values.pop("version")
        if values["area"] is not None:
            values["area"] = tuple(values["area"])
        return ProxyOptions(**values)

    def to_json(self) -> str:
        """With the version of the transcoder; equal options give equal text."""
        values = asdict(self)
        if self.stack == 1:  # so that proxies of before there were stacks stay up to date
            del values["stack"]
        return json.dumps({"version": TRANSCODER_VERSION, **values}, sort_keys=True)

    @property
    def digest(self) -> str:
        """xxh3_64 of the JSON text, 16 hex digits."""
        return str(xxhash.xxh3_64_hexdigest(self.to_json().encode()))
