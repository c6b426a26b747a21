"""Names that come from strangers, as text that a terminal or a page shows as it is."""

from __future__ import annotations


def readable(text: str) -> str:
    """A name as text: what does not print, line ends, marks that turn the direction and bytes that are no
    UTF-8 among it, is spelled out."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )
