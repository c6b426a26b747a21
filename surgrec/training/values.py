"""Values that no run can have, found before anything is read or written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from surgrec.configs.data import DataConfig
from surgrec.configs.model import JepaConfig, MaeConfig
from surgrec.configs.pretrain import JepaPretrain, MaePretrain, OptimConfig, PretrainConfig
from surgrec.kernels.masking import block_size, hidden_positions
from surgrec.kernels.patchify import token_grid
from surgrec.loaders.crop import RandomCrop
from surgrec.loaders.sharing import make_sharing
from surgrec.training.errors import UserError

Check = tuple[str, Any, bool, str]
"""Dotted name of an entry, its value, whether it is right, and what it must be."""


def check_values(config: PretrainConfig) -> None:
    """Raise UserError, naming the option, for values that make no sense, alone or together."""
    assert isinstance(config, MaePretrain | JepaPretrain)
    checks = (*_run(config), *_optim(config.optim), *_data(config.data), *_model(config.model))
    for name, value, right, wanted in checks:
        if not right:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be {wanted}")
    try:
        RandomCrop(config.seed, config.data.crop_scale, config.data.crop_aspect, config.data.flip)
        make_sharing(config.data, config.batch)
        _check_tokens(config.data, config.model)
    except ValueError as error:
        raise UserError(str(error)) from error


def _at_least(least: int, values: Mapping[str, float]) -> Iterator[Check]:
    for name, value in values.items():
        yield name, value, value >= least, f"at least {least}"


def _run(config: PretrainConfig) -> Iterator[Check]:
    checkpoint, log = config.checkpoint, config.log
    ones = {"steps": config.steps, "batch": config.batch}
    ones |= {"checkpoint.every": checkpoint.every, "checkpoint.keep_last": checkpoint.keep_last}
    yield from _at_least(1, ones | {"log.every": log.every, "log.panels": log.panels})
    zeros = {"max_bad_steps": config.max_bad_steps, "checkpoint.keep_every": checkpoint.keep_every}
    yield from _at_least(0, zeros | {"log.panels_every": log.panels_every})


def _optim(optim: OptimConfig) -> Iterator[Check]:
    for name in ("lr", "start_lr", "final_lr", "weight_decay", "final_weight_decay", "eps", "warmup"):
        value = getattr(optim, name)
        yield f"optim.{name}", value, 0 <= value < math.inf, "a number from 0 upwards"
    yield "optim.stretch", optim.stretch, 1 <= optim.stretch < math.inf, "a number from 1 upwards"
    yield "optim.betas", optim.betas, all(0 <= beta < 1 for beta in optim.betas), "two numbers in [0, 1)"
    clip = optim.clip
    yield "optim.clip", clip, clip is None or 0 < clip < math.inf, "above 0, or None, which does not clip"


def _data(data: DataConfig) -> Iterator[Check]:
    ones = {"frames": data.frames, "stride": data.stride, "size": data.size, "prefetch": data.prefetch}
    ones |= {"picture_mib": data.picture_mib, "session_mib": data.session_mib}
    ones |= {"clips_per_decode": data.clips_per_decode}
    yield from _at_least(
        1, {f"data.{name}": value for name, value in (ones | {"repeats": data.repeats}).items()}
    )
    zeros = {"threads": data.threads, "sessions": data.sessions, "shuffle_mib": data.shuffle_mib}
    yield from _at_least(0, {f"data.{name}": value for name, value in zeros.items()})
    fps = data.fps
    yield "data.fps", fps, fps is None or 0 < fps < math.inf, "above 0, or None, which goes by stride"
    yield "data.segment_seconds", data.segment_seconds, data.segment_seconds > 0, "above 0"
    yield "data.decoder_timeout", data.decoder_timeout, data.decoder_timeout > 0, "above 0"
    shares = {"max_failures": data.max_failures}
    shares |= {f"balance.{level}": value for level, value in vars(data.balance).items()}
    for name, value in shares.items():
        yield f"data.{name}", value, 0 <= value <= 1, "between 0 and 1"


def _model(model: MaeConfig | JepaConfig) -> Iterator[Check]:
    yield from _at_least(1, {"model.patch": model.patch, "model.tubelet": model.tubelet})
    yield "model.mean", model.mean, all(map(math.isfinite, model.mean)), "three finite numbers"
    yield "model.std", model.std, all(0 < value < math.inf for value in model.std), "three numbers above 0"
    part = "decoder" if isinstance(model, MaeConfig) else "predictor"
    depth, width, heads = (getattr(model, f"{part}_{name}") for name in ("depth", "width", "heads"))
    yield from _at_least(0, {f"model.{part}_depth": depth})
    yield from _at_least(1, {f"model.{part}_width": width, f"model.{part}_heads": heads})
    if heads >= 1:
        yield f"model.{part}_heads", heads, width % heads == 0, f"a divisor of the width, {width}"
    if isinstance(model, MaeConfig):
        share = model.decoder_share
        yield "model.decoder_share", share, 0 < share <= 1, "above 0 and at most 1"
    else:
        for name in ("ema_start", "ema_end"):
            value = getattr(model, name)
            yield f"model.{name}", value, 0 <= value <= 1, "between 0 and 1"


def _check_tokens(data: DataConfig, model: MaeConfig | JepaConfig) -> None:
    """Raises ValueError where clips and masks do not fit together."""
    grid = token_grid((data.frames, data.size, data.size, 3), model.tubelet, model.patch)
    if isinstance(model, MaeConfig):
        hidden_positions(grid, model.mask_ratio)
        return
    for number, group in enumerate(model.groups):
        block_size(0, 0, number, grid, group)
