"""Options that no fine-tuning can have, found before anything is read; and those that a result names."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

from surgrec.configs.finetune import FREE, FinetuneConfig, of_mode, to_document
from surgrec.configs.pretrain import OptimConfig
from surgrec.finetuning.augment import MAGNITUDES
from surgrec.loaders.crop import RandomCrop
from surgrec.training.errors import UserError

Check = tuple[str, bool, str]
"""Name of an option, whether it is right, and what it must be."""


def check_options(config: FinetuneConfig) -> None:
    """Raises ValueError, naming the option and its bound; UserError where several processes were started."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("fine-tuning runs in one process, on one GPU; start it without torchrun")
    own = of_mode(config)
    for name, right, wanted in _checks(config, own):
        if not right:
            value = own.get(name, getattr(config, name))
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it is {wanted}")
    if not config.test_views or len(set(config.test_views)) < len(config.test_views):
        views = " ".join(config.test_views) or "empty"
        raise ValueError(f"--test-views are {views}; name each once, at least one")
    if (config.mixup or config.cutmix) and config.batch % 2:
        raise ValueError(
            f"--batch is {config.batch}; mixup and cutmix mix pairs of clips: give an even one, or --mixup 0"
            " --cutmix 0"
        )
    if config.head == "linear" and config.blocks != 1:
        raise ValueError(
            f"--blocks {config.blocks} is of an attentive head; leave it out, or give --head attentive"
        )
    crop_of(config)


def _checks(config: FinetuneConfig, own: dict[str, Any]) -> Iterator[Check]:
    for name in ("epochs", "batch", "test_clips", "resamples"):
        yield name, getattr(config, name) >= 1, "at least 1"
    for name in ("weight_decay", "mixup", "cutmix"):
        yield name, 0 <= getattr(config, name) < math.inf, "a number from 0 upwards"
    for name in ("warmup", "label_smoothing", "ema"):
        yield name, 0 <= getattr(config, name) < 1, "at least 0 and below 1"
    yield "lr", 0 < own["lr"] < math.inf, "above 0"
    yield "clip", config.clip is None or 0 < config.clip < math.inf, "above 0, or None, which does not clip"
    yield "blocks", 1 <= config.blocks <= 4, "1 to 4"
    yield "randaugment_ops", config.randaugment_ops >= 0, "at least 0"
    yield "randaugment_magnitude", 0 <= config.randaugment_magnitude < MAGNITUDES, f"0 to {MAGNITUDES - 1}"
    yield "seed", config.seed >= 0, "at least 0"
    yield "workers", config.workers >= 0, "at least 0"
    if "layer_decay" in own:
        yield "layer_decay", 0 < own["layer_decay"] <= 1, "above 0 and at most 1"
        yield "drop_path", 0 <= own["drop_path"] < 1, "at least 0 and below 1"
    if "rank" in own:
        yield "rank", own["rank"] >= 1, "at least 1"
        yield "alpha", 0 < own["alpha"] < math.inf, "above 0"


def crop_of(config: FinetuneConfig) -> RandomCrop:
    """How clips are cropped in training. Raises ValueError for bounds that make no sense."""
    return RandomCrop(config.seed, config.crop_scale, config.crop_aspect, config.flip)


def optim_of(config: FinetuneConfig) -> OptimConfig:
    """AdamW as BEiT and VideoMAE fine-tune with it, and the schedule of its learning rate."""
    return OptimConfig(
        lr=of_mode(config)["lr"],
        start_lr=0.0,
        final_lr=0.0,
        lr_per_256=False,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        final_weight_decay=config.weight_decay,
        betas=(0.9, 0.999),
        clip=config.clip,
    )


def options_of(config: FinetuneConfig) -> dict[str, Any]:
    """The options that a result depends on, the mode's own values in the place of None."""
    elsewhere = (*FREE, "model", "mode", "lr", "layer_decay", "drop_path", "rank", "alpha")
    return {name: value for name, value in to_document(config).items() if name not in elsewhere} | of_mode(
        config
    )
