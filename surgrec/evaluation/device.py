"""Where an evaluation computes."""

from __future__ import annotations

import torch

from surgrec.evaluation.features import FeatureError


def device_of(name: str) -> torch.device:
    """What --device names; auto takes a GPU where there is one. Raises FeatureError for a GPU that is not
    there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise FeatureError("--device is cuda, but torch finds no GPU; use --device cpu")
    return torch.device(name)
