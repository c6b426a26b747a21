"""What people see of a matrix: what is to be done, how it goes on, what became of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from surgrec.configs.matrix import MatrixConfig
from surgrec.curation.ranks import Progress
from surgrec.evaluation.matrix import Outcome
from surgrec.evaluation.matrix_plan import Pair, results_of


class Console:
    """The terminal. first: of several ranks, the one that shows plan, progress and summary; what happens to
    cells is said by all."""

    def __init__(self, config: MatrixConfig, first: bool) -> None:
        self._config = config
        self._first = first
        self._there = 0

    def plan(self, pairs: list[Pair], needed: int, free: int) -> None:
        """Every cell, and the room that features need."""
        self._there = sum(len(pair.done) for pair in pairs)
        for pair in pairs:
            print(describe(pair))
        todo = sum(len(pair.todo) for pair in pairs)
        print(
            f"{todo + self._there} cells, {todo} to do; features need {needed / 1e9:.3f} GB at most, the disk"
            f" has {free / 1e9:.1f} GB left",
            flush=True,
        )

    @contextmanager
    def extracting(self, pair: Pair) -> Iterator[Progress]:
        """A bar of rows."""
        off = None if self._first else True
        title = f"{pair.model} on {pair.dataset}"
        with tqdm(desc=title, unit="row", dynamic_ncols=True, disable=off) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield progress

    def say(self, text: str) -> None:
        """On the channel of errors, where the bars are."""
        tqdm.write(text, file=sys.stderr)

    def summary(self, outcomes: Sequence[Outcome]) -> None:
        """Counts, and every cell that failed once more."""
        failed = [outcome for outcome in outcomes if outcome.fault]
        print(
            f"{results_of(self._config)}: {len(outcomes) - len(failed)} results more,"
            f" {self._there} were there, {len(failed)} cells failed"
        )
        kinds: dict[tuple[str, str, str], list[str]] = {}
        for outcome in failed:
            key = outcome.pair.model, outcome.pair.dataset, outcome.fault
            kinds.setdefault(key, []).append(outcome.kind)
        for (model, dataset, fault), names in kinds.items():
            print(f"failed: {', '.join(names)} of {model} on {dataset}: {fault}", file=sys.stderr)
        if len(failed) < len(outcomes) or self._there:
            print(f"make a table of them: python -m surgrec.benchmark table {results_of(self._config)}")


def describe(pair: Pair) -> str:
    """`random:demo on motion (0123abcd), 560 rows: extract 0.144 GB; to do: knn; with a result: linear`"""
    where = f" ({pair.digest[:8]}), {pair.rows:,} rows" if pair.rows else ""
    facts = []
    if pair.fault:
        facts.append(f"{', '.join(pair.todo)} cannot be done: {pair.fault}")
    elif pair.bytes:
        facts.append(f"extract {pair.bytes / 1e9:.3f} GB")
    elif pair.todo:
        facts.append(f"features are there ({pair.features.name})")
    facts += [f"to do: {', '.join(pair.todo)}"] * bool(pair.todo and not pair.fault)
    facts += [f"with a result: {', '.join(pair.done)}"] * bool(pair.done)
    return f"{pair.model} on {pair.dataset}{where}: {'; '.join(facts)}"
