"""The one error that a command turns into a message and an exit status."""

from __future__ import annotations


class UserError(Exception):
    """Something the person at the terminal can mend; the message says what, where and how."""
