"""Colours of a folder of Hugging Face's: what its preprocessor does to values of pixels."""

from __future__ import annotations

import math
from typing import Final, TypeGuard

from surgrec.configs.model import IMAGENET_MEAN, IMAGENET_STD
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import PREPROCESSOR, Content

LARGEST: Final = 1e6
"""Of a number in a configuration that is no count."""


def colours(content: Content) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation, as the preprocessor says, else ImageNet's. Raises WeightsError, also for
    one that scales values to another range than 0..1."""
    said = content.preprocessor
    if said is None:
        return IMAGENET_MEAN, IMAGENET_STD
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) is True else 1
    if not is_number(factor) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise WeightsError(
            f"{content.path}: its {PREPROCESSOR} multiplies values by {factor!r} (`do_rescale`,"
            " `rescale_factor`); models of values in 0..1 can be read, 1/255"
        )
    if said.get("do_normalize", True) is not True:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    found = []
    for name, default in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
        value = said.get(name, list(default))
        right = isinstance(value, list) and len(value) == 3 and all(map(is_number, value))
        if not right or (name == "image_std" and min(value) <= 0):
            raise WeightsError(f"{content.path}: `{name}` of its {PREPROCESSOR} is {value!r}; mend it")
        found.append((float(value[0]), float(value[1]), float(value[2])))
    return found[0], found[1]


def is_number(value: object) -> TypeGuard[float]:
    """Of JSON, which has NaN, infinity and integers without end too: one of a size to compute with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
