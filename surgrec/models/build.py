"""From a configuration to a model."""

from __future__ import annotations

import torch

from surgrec.configs.model import JepaConfig, MaeConfig
from surgrec.kernels.counter_rng import stream_key
from surgrec.models.jepa import Jepa
from surgrec.models.mae import MaskedAutoencoder
from surgrec.models.objective import Objective


def build_objective(
    config: MaeConfig | JepaConfig, seed: int, frames: int = 16, size: int = 224
) -> Objective:
    """A model with first weights and masks that depend on the seed alone.

    Args:
        frames: frames in a clip.
        size: height and width of a clip in pixels.

    Raises:
        ValueError: clips of this shape do not divide into the configuration's tokens.
    """
    # The global generator is put back, so that building a model changes no other draw.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_key(seed, "model/first weights"))
        if isinstance(config, MaeConfig):
            return MaskedAutoencoder(config, seed, frames, size)
        return Jepa(config, seed, frames, size)
