"""From decode order to display order: which packet gives the n-th frame that a full decode shows."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from surgrec.loaders.packet_index import NO_RANK


def order_by_pts(pts: NDArray[np.int64], shown: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """uint32 [frames]: packets with a frame (`shown`, [P]) by pts; equal ones in decode order."""
    packets = np.flatnonzero(shown)
    return packets[np.argsort(pts[packets], kind="stable")].astype(np.uint32)


@njit(cache=True)
def order_by_reference(
    reference: NDArray[np.bool_], pictures: NDArray[np.bool_], shown: NDArray[np.bool_]
) -> NDArray[np.uint32]:
    """uint32 [frames]: display order of MPEG-1, MPEG-2 and MPEG-4 part 2, from picture types alone.

    A picture that others refer to (`reference`: I and P) comes out when the next such picture arrives, or
    at the end; a B picture at once: decode I0 P3 B1 B2 -> display I0 B1 B2 P3. `pictures` marks the packets
    that a decoder takes in, `shown` those whose frame it puts out.
    """
    order = np.empty(pictures.shape[0], np.uint32)
    count = 0
    held = -1
    for packet in range(pictures.shape[0]):
        if not pictures[packet]:
            continue
        out = packet
        if reference[packet]:
            out, held = held, packet
        if out >= 0 and shown[out]:
            order[count] = out
            count += 1
    if held >= 0 and shown[held]:
        order[count] = held
        count += 1
    return order[:count].copy()


@njit(cache=True)
def unwrap_order(
    low: NDArray[np.int64], restart: NDArray[np.bool_], anchor: NDArray[np.bool_], bits: int
) -> NDArray[np.int64]:
    """int64 [P]: numbers that rise along the display order, from the low `bits` bits of the picture order
    count (H.264 8.2.1.1, H.265 8.3.1); -1 where `low` is -1.

    restart: pictures that begin a coded video sequence (IDR and the like), all of which lies behind what was
    coded before. anchor: pictures to which the next one's high bits are relative.
    """
    full = np.full(low.shape[0], -1, np.int64)
    span = 1 << bits
    previous = 0
    base = 0
    highest = -1
    for packet in range(low.shape[0]):
        if low[packet] < 0:
            continue
        if restart[packet]:
            # A whole span of room, for pictures shown before the one that restarts the count.
            base = highest + 2 * span
            previous = 0
        high = previous - previous % span
        value = high + low[packet]
        if value - previous > span // 2:
            value -= span
        elif previous - value >= span // 2:
            value += span
        if restart[packet]:
            value = low[packet]
        if anchor[packet]:
            previous = value
        full[packet] = base + value
        highest = max(highest, full[packet])
    return full


def order_by_count(count: NDArray[np.int64], pictures: NDArray[np.bool_]) -> NDArray[np.uint32] | None:
    """uint32 [frames]: packets of `pictures` by unwrapped picture order count; None where that is not known
    of all, or the same of two."""
    packets = np.flatnonzero(pictures)
    values = count[packets]
    if (values < 0).any() or len(np.unique(values)) < len(values):
        return None
    return packets[np.argsort(values)].astype(np.uint32)


def rank_of(order: NDArray[np.uint32], packets: int) -> NDArray[np.uint32]:
    """uint32 [packets]: the inverse of a display order, NO_RANK for packets that are not in it."""
    rank = np.full(packets, NO_RANK, np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    return rank
