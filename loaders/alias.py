"""Alias table: draw one of n items with given probabilities in constant time.

Walker's method, with the linear-time construction of Vose (IEEE Trans. Software Engineering 17, 1991), in
integers, so that no rounding builds up over the n steps:

    slot s | 43 bits: threshold | 1 | 20 bits: other item |       one uint64, here for n = 858,000

A 64-bit random number r picks slot floor(r * n / 2**64); the rest of the product, r * n mod 2**64, is a fresh
fraction: below the threshold the item is s itself, from there on the other one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_ITEMS = 2**31
"""The construction needs 2**64 units to be shared out among the slots."""

_U64_0 = np.uint64(0)
_U64_1 = np.uint64(1)
_U64_32 = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class AliasTable:
    """slots: uint64 [n], threshold from bit item_bits + 1 up, other item in the item_bits lowest bits."""

    slots: NDArray[np.uint64]
    item_bits: int

    def __len__(self) -> int:
        return len(self.slots)

    def probabilities(self) -> NDArray[np.float64]:
        """float64 [n]: the probability of each item as the table draws it, added up from the slots."""
        capacity = np.uint64(2 ** (63 - self.item_bits))
        own = self.slots >> np.uint64(self.item_bits + 1)
        other = (self.slots & np.uint64(2**self.item_bits - 1)).astype(np.int64)
        own[other == np.arange(len(self))] = 0  # both parts of such a slot are its own item
        total = own.copy()
        np.add.at(total, other, capacity - own)
        return total / (len(self) * float(capacity))


def build_alias(weights: ArrayLike) -> AliasTable:
    """Table that draws item i with probability weights[i] / sum(weights), to within 1e-13.

    Args:
        weights: [n], finite and not negative, in any unit, at least one above zero. An item of weight zero
            is never drawn.

    Raises:
        ValueError: no weights, not one-dimensional, negative, not finite, or all zero.
    """
    values = np.ascontiguousarray(weights, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"weights have shape {values.shape}; they must be one-dimensional")
    if len(values) == 0:
        raise ValueError("there are no weights: nothing can be drawn from an empty set")
    if len(values) >= MAX_ITEMS:
        raise ValueError(f"{len(values)} weights; an alias table holds fewer than {MAX_ITEMS}")
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise ValueError(f"weight {bad[0]} is {values[bad[0]]}; weights must be finite and not negative")
    largest = values.max()
    if largest == 0:
        raise ValueError(f"all {len(values)} weights are zero: nothing can be drawn")
    values = values / largest  # so that neither the sum nor the shares overflow or lose a tiny unit
    item_bits = max(1, (len(values) - 1).bit_length())
    units = _share_out(values / values.sum(), len(values), 63 - item_bits)
    return AliasTable(_fill(units, np.uint64(63 - item_bits), np.uint64(item_bits)), item_bits)


def _share_out(shares: NDArray[np.float64], n: int, capacity_bits: int) -> NDArray[np.uint64]:
    """Whole units [n] that add up to n * 2**capacity_bits exactly, in proportion to `shares`."""
    total = n << capacity_bits
    units = np.rint(shares * float(total)).astype(np.uint64)
    # The rounding errors, some units of 2**63, go to the item in which they matter least.
    heaviest = int(units.argmax())
    low = int((units & _LOW_HALF).sum(dtype=np.uint64))
    high = int((units >> _U64_32).sum(dtype=np.uint64))
    units[heaviest] = int(units[heaviest]) + total - ((high << 32) + low)
    return units


@numba.njit(cache=True)
def _fill(units, capacity_bits, item_bits):
    """One sweep: light items get a slot each, topped up from the heavy item at hand (no stacks, in order)."""
    n = len(units)
    slots = np.empty(n, np.uint64)
    capacity = _U64_1 << capacity_bits
    shift = item_bits + _U64_1
    light = 0
    while light < n and units[light] > capacity:
        light += 1
    heavy = 0
    while heavy < n and units[heavy] <= capacity:
        heavy += 1
    left = units[heavy] if heavy < n else _U64_0
    while heavy < n:
        if left > capacity:
            slots[light] = (units[light] << shift) | np.uint64(heavy)
            if units[light] == capacity:
                slots[light] = np.uint64(light)
            left -= capacity - units[light]
            light += 1
            while light < n and units[light] > capacity:
                light += 1
        else:
            other = heavy + 1
            while other < n and units[other] <= capacity:
                other += 1
            if other == n or left == capacity:
                slots[heavy] = np.uint64(heavy)
                left = units[other] if other < n else _U64_0
            else:
                slots[heavy] = (left << shift) | np.uint64(other)
                left = units[other] - (capacity - left)
            heavy = other
    while light < n:  # what is left is full to the brim
        slots[light] = np.uint64(light)
        light += 1
        while light < n and units[light] > capacity:
            light += 1
    return slots


@numba.njit(cache=True)
def pick(slots, item_bits, bits):
    """Item number, int64, for 64 random bits; slots and item_bits (uint64) are those of an AliasTable."""
    n = np.uint64(len(slots))
    number = ((bits >> _U64_32) * n + (((bits & _LOW_HALF) * n) >> _U64_32)) >> _U64_32
    slot = slots[number]
    mask = (_U64_1 << item_bits) - _U64_1
    return np.int64(number if bits * n < (slot & ~mask) else slot & mask)
