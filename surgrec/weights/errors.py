"""The error of everything that reads or writes weights."""

from __future__ import annotations


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file, the cause and the remedy."""
