"""Which rows of a split are asked about where not all are."""

from __future__ import annotations

from collections.abc import Sequence

from surgrec.evaluation.manifest import Row
from surgrec.kernels.counter_rng import stream_key


def choose_rows(rows: Sequence[tuple[int, Row]], limit: int | None, seed: int) -> tuple[tuple[int, Row], ...]:
    """At most `limit` of (number, row), in their order: a row of each group, then a second one of each, and
    so on. The order of groups, and of the rows of one, is drawn by `seed`; a larger limit only adds rows."""
    if limit is None or limit >= len(rows):
        return tuple(rows)
    groups: dict[str, list[tuple[int, Row]]] = {}
    for number, row in sorted(rows, key=lambda each: (stream_key(seed, f"vlm/limit/{each[0]}"), each[0])):
        groups.setdefault(row.group, []).append((number, row))
    order = sorted(groups, key=lambda name: (stream_key(seed, f"vlm/limit/group/{name}"), name))
    dealt = [
        groups[name][turn]
        for turn in range(max(map(len, groups.values())))
        for name in order
        if turn < len(groups[name])
    ]
    return tuple(sorted(dealt[:limit], key=lambda each: each[0]))
