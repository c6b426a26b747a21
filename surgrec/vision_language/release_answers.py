"""The rules by which the release of arXiv 2603.29966 reads answers, with their faults, for comparison.

The first lone capital of the answer in upper case that is the letter of an option; else the longest name of
an option in the answer; else the first whole number, as a label. So "A polyp is visible" is option A.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from surgrec.evaluation.registry_classes import ClassWords
from surgrec.vision_language.answers import Parsed
from surgrec.vision_language.records import Question

_LONE: Final = re.compile(r"\b[A-Z]\b")
_NUMBER: Final = re.compile(r"\d+")


def parse_as_release(
    text: str, question: Question, classes: Sequence[ClassWords], raw: Sequence[str]
) -> Parsed:
    """What the release's rules take an answer for; arguments as of answers.parse_answer."""
    if not text.strip():
        return Parsed(None, "empty")
    if question.style == "letters":
        letters = dict(zip(question.targets, question.order, strict=True))
        for lone in _LONE.findall(text.upper()):
            if lone in letters:
                return Parsed(letters[lone], "letter")
    lowered = text.casefold()
    names = [(classes[label].name.casefold(), label) for label in question.order]
    found = [(name, label) for name, label in names if name in lowered]
    if found:
        return Parsed(max(found, key=lambda each: len(each[0]))[1], "name")
    number = _NUMBER.search(text)
    if number and len(number[0]) < 9 and int(number[0]) < len(question.order):
        return Parsed(int(number[0]), "label")
    return Parsed(None, "nothing")
