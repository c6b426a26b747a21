"""Display order: permutations, and the rules by which decoders reorder."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders.display_order import (
    order_by_count,
    order_by_pts,
    order_by_reference,
    rank_of,
    unwrap_order,
)
from surgrec.loaders.packet_index import NO_RANK


@given(st.lists(st.tuples(st.integers(-(2**40), 2**40), st.booleans()), max_size=60))
def test_order_by_pts_is_a_stable_permutation_of_what_is_shown(packets: list[tuple[int, bool]]) -> None:
    pts = np.array([p for p, _ in packets], np.int64)
    shown = np.array([s for _, s in packets], bool)
    order = order_by_pts(pts, shown)
    expected = sorted(
        (number for number in range(len(packets)) if packets[number][1]), key=lambda n: packets[n][0]
    )
    assert order.tolist() == expected
    rank = rank_of(order, len(packets))
    assert ((rank != NO_RANK) == shown).all()
    assert (np.sort(rank[shown]) == np.arange(shown.sum())).all()
    assert (order[rank[shown]] == np.flatnonzero(shown)).all()


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("IPB"), st.booleans(), st.booleans()), max_size=40))
def test_order_by_reference_is_a_one_frame_delay(packets: list[tuple[str, bool, bool]]) -> None:
    reference = np.array([kind != "B" for kind, _, _ in packets], bool)
    pictures = np.array([coded for _, coded, _ in packets], bool)
    shown = np.array([coded and seen for _, coded, seen in packets], bool)
    waiting: list[int] = []
    out: list[int] = []
    for number in np.flatnonzero(pictures):
        if reference[number]:
            out += waiting
            waiting = [number]
        else:
            out.append(number)
    expected = [number for number in out + waiting if shown[number]]
    assert order_by_reference(reference, pictures, shown).tolist() == expected


@settings(deadline=None)
@given(
    st.lists(st.permutations(range(1, 4)), min_size=1, max_size=60),
    st.integers(4, 8),
    st.sets(st.integers(0, 59)),
)
def test_wrapped_counts_give_the_order_back(groups: list[list[int]], bits: int, restarts: set[int]) -> None:
    # Each group: an anchor shown last, then three others before it, in any decode order; two counts a frame.
    counts: list[int] = []
    truth: list[tuple[int, int]] = []
    restart: list[bool] = []
    anchor: list[bool] = []
    base, period = 0, -1
    for number, group in enumerate(groups):
        begins = number == 0 or number in restarts
        if begins:
            base, period = 0, period + 1
            values = [0]
        else:
            values = [base + 4, *(base + step for step in group)]
            base += 4
        for place, value in enumerate(values):
            counts.append(value * 2 % (1 << bits))
            truth.append((period, value))
            restart.append(begins)
            anchor.append(place == 0)
    full = unwrap_order(np.array(counts, np.int64), np.array(restart), np.array(anchor), bits)
    order = order_by_count(full, np.ones(len(counts), bool))
    assert order is not None
    assert order.tolist() == sorted(range(len(truth)), key=lambda n: truth[n])


def test_unknown_and_equal_counts_give_no_order() -> None:
    assert order_by_count(np.array([0, -1, 2]), np.ones(3, bool)) is None
    assert order_by_count(np.array([0, 2, 2]), np.ones(3, bool)) is None
    found = order_by_count(np.array([4, -1, 2]), np.array([True, False, True]))
    assert found is not None
    assert found.tolist() == [2, 0]
