"""Counter-based random numbers: the same 64 bits from numba, from torch on the CPU and from torch on the GPU.

A draw is a pure function of (key, counter), so that there is no state to save, to share or to put in order.
A key names a stream (`stream_key`); a counter numbers the draws of it. The bits never change, since resuming
a run repeats its draws: `tests/kernels/test_counter_rng.py` pins them.

The generator is two rounds of the finaliser of splitmix64 (Stafford's variant 13 of the MurmurHash3 mixer:
Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), with the key added
before each round. One round alone would make streams of different keys shifted copies of each other.
"""

from __future__ import annotations

import hashlib

import numba
import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB

# numba turns int64 + uint64 into float64: every constant is typed.
_U64_GOLDEN = np.uint64(_GOLDEN)
_U64_MULTIPLIER_1 = np.uint64(_MULTIPLIER_1)
_U64_MULTIPLIER_2 = np.uint64(_MULTIPLIER_2)
_U64_11 = np.uint64(11)
_U64_27 = np.uint64(27)
_U64_30 = np.uint64(30)
_U64_31 = np.uint64(31)
_U64_32 = np.uint64(32)


def stream_key(seed: int, name: str) -> int:
    """Key of the stream `name` of a run with this seed: 64 bits of BLAKE2b, 0 <= key < 2**64."""
    digest = hashlib.blake2b(f"{int(seed)}/{name}".encode(), digest_size=8, person=b"surgrec-rng").digest()
    return int.from_bytes(digest, "little")


@numba.njit(cache=True)
def mix64(key, counter):
    """64 random bits, uint64, of draw `counter` of stream `key` (each int64 or uint64, modulo 2**64).

    From plain Python pass `np.uint64(key)`: numba takes Python integers for int64 and raises OverflowError
    for a key of 2**63 or more.
    """
    key = np.uint64(key)
    z = np.uint64(counter) * _U64_GOLDEN + key
    z = (z ^ (z >> _U64_30)) * _U64_MULTIPLIER_1
    z = (z ^ (z >> _U64_27)) * _U64_MULTIPLIER_2
    # The halves of the key change places, so that the two additions cannot cancel for a related key.
    z = (z ^ (z >> _U64_31)) + ((key >> _U64_32) | (key << _U64_32))
    z = (z ^ (z >> _U64_30)) * _U64_MULTIPLIER_1
    z = (z ^ (z >> _U64_27)) * _U64_MULTIPLIER_2
    return z ^ (z >> _U64_31)


@numba.njit(cache=True)
def to_unit(bits):
    """The upper 53 of 64 random bits as a float64 in [0, 1): every multiple of 2**-53 is equally likely."""
    return np.float64(np.uint64(bits) >> _U64_11) * (1.0 / 9007199254740992.0)


def random_u64(key: int | Tensor, counters: Tensor) -> Tensor:
    """The bits of `mix64` for many counters.

    Args:
        key: a stream's key, or an int64 tensor of keys that broadcasts with `counters` (two's complement).
        counters: int64 of any shape, on any device.

    Returns:
        int64 of the broadcast shape: the 64 bits in two's complement.
    """
    if counters.dtype != torch.int64:
        raise TypeError(f"counters are {counters.dtype}; they must be torch.int64")
    if isinstance(key, Tensor):
        if key.dtype != torch.int64:
            raise TypeError(f"keys are {key.dtype}; they must be torch.int64")
        added: int | Tensor = key
        swapped: int | Tensor = _shift_right(key, 32) | (key << 32)
    else:
        key = key % 2**64
        added = _signed(key)
        swapped = _signed(((key >> 32) | (key << 32)) % 2**64)
    z = counters * _signed(_GOLDEN) + added
    z = (z ^ _shift_right(z, 30)) * _signed(_MULTIPLIER_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_MULTIPLIER_2)
    z = (z ^ _shift_right(z, 31)) + swapped
    z = (z ^ _shift_right(z, 30)) * _signed(_MULTIPLIER_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_MULTIPLIER_2)
    return z ^ _shift_right(z, 31)


def uniform(bits: Tensor) -> Tensor:
    """`to_unit` for the int64 bits that `random_u64` gives: float64 in [0, 1) of the same shape."""
    return _shift_right(bits, 11).to(torch.float64) * (1.0 / 9007199254740992.0)


def _signed(value: int) -> int:
    """The int64 with the bits of a uint64."""
    return value - 2**64 if value >= 2**63 else value


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift; torch's own shift of an int64 copies the sign bit."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
