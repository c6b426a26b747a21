"""Counts the clips that fail and stops a run in which too many do."""

from __future__ import annotations

import logging
from collections import Counter, deque

from surgrec.loaders.engines.base import ClipFailure
from surgrec.loaders.ledger import Ledger

WINDOW = 1000
"""Clips over which the share of failures is taken."""

_log = logging.getLogger(__name__)


class ClipLoaderError(RuntimeError):
    """Too many clips cannot be decoded."""


class FailureWatch:
    """Counts decoded and failed clips and stops a run in which too many of the last 1,000 failed."""

    def __init__(self, max_share: float, ledger: Ledger | None) -> None:
        if not 0.0 <= max_share <= 1.0:
            raise ValueError(f"max_failures is {max_share}; it is a share, between 0 and 1")
        self.max_share = max_share
        self.ledger = ledger
        self.failures = 0
        self._recent: deque[str | None] = deque(maxlen=WINDOW)
        self._reasons: Counter[str] = Counter()  # of the failures in _recent

    def success(self) -> None:
        self._push(None)

    def failure(self, failure: ClipFailure) -> None:
        """Ledger the failure. Raises ClipLoaderError where it is one too many."""
        self.failures += 1
        if self.ledger is None:
            _log.warning("%s, frames %s: %s", failure.path, failure.request.frames, failure.reason)
        else:
            self.ledger.record(failure)
        self._push(failure.reason)
        failed = self._reasons.total()
        if failed > self.max_share * WINDOW:
            raise ClipLoaderError(
                f"{failed} of the last {len(self._recent)} clips could not be decoded, more than "
                f"max_failures = {self.max_share:g} of {WINDOW} allows. {self.explain()}"
            )

    def explain(self) -> str:
        """The most frequent reason, and where to read all of them."""
        reason, count = self._reasons.most_common(1)[0]
        where = (
            "the log, since no ledger was given" if self.ledger is None else f"the ledger {self.ledger.path}"
        )
        return f"Most frequent reason ({count} times): {reason}. Each failure is in {where}."

    def _push(self, reason: str | None) -> None:
        if len(self._recent) == WINDOW:
            oldest = self._recent[0]
            if oldest is not None:
                self._reasons -= Counter({oldest: 1})
        self._recent.append(reason)
        if reason is not None:
            self._reasons[reason] += 1
