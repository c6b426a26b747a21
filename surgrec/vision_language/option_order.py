"""The orders in which options are shown: rotations of a few permutations, so that each class moves through
the positions and a content-free question can be asked in every order that occurs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from surgrec.kernels.counter_rng import stream_key

BASES: Final = 4
"""Permutations of which the orders are rotations: at most BASES x C orders occur, however many rows there
are."""

Order = tuple[int, ...]


def orders_of(row: int, classes: int, count: int, seed: int) -> list[Order]:
    """`count` different orders of the classes for a row of the manifest, the same for every wording.

    The first C of them are the rotations of one permutation: with `count` = C each class stands once at
    each position. Raises ValueError where there are fewer orders than `count`.
    """
    most = most_orders(classes)
    if not 1 <= count <= most:
        raise ValueError(f"{count} orders of {classes} options; there are 1 to {most}")
    generator = np.random.Generator(np.random.Philox(stream_key(seed, f"vlm/order/{row}")))
    bases = _bases(classes, seed)
    first, shift = int(generator.integers(len(bases))), int(generator.integers(classes))
    found = []
    for k in range(count):
        base = bases[(first + k // classes) % len(bases)]
        at = (shift + k) % classes
        found.append(base[at:] + base[:at])
    return found


def most_orders(classes: int) -> int:
    """How many different orders `orders_of` has: C! for few classes, else BASES x C."""
    return classes * min(BASES, math.factorial(min(classes, 5) - 1))


def _bases(classes: int, seed: int) -> list[Order]:
    """Permutations that begin with class 0, so that none is a rotation of another."""
    return list(_drawn(classes, most_orders(classes) // classes, seed))


def _drawn(classes: int, count: int, seed: int) -> Iterator[Order]:
    generator = np.random.Generator(np.random.Philox(stream_key(seed, f"vlm/bases/{classes}")))
    seen: set[Order] = set()
    while len(seen) < count:
        base = (0, *(1 + generator.permutation(classes - 1)).tolist())
        if base not in seen:
            seen.add(base)
            yield base
