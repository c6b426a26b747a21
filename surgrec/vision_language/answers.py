"""From the free text of a model to the class that it names, or to none, with the reason.

An answer counts where it names one option: by its letter, its name or a synonym. What it denies does not
count. What it leaves open between options, or refuses, is unparsed: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from surgrec.evaluation.registry_classes import ClassWords
from surgrec.vision_language.answer_text import answer_of
from surgrec.vision_language.option_mentions import (
    NO,
    OTHER,
    Mention,
    Options,
    asserted,
    denied_after,
    mentions,
    options_of,
)
from surgrec.vision_language.records import Question

Reason = Literal["letter", "name", "empty", "several", "refusal", "nothing", "label"]

_COPULA: Final = (
    r"(?:\s*\([^)\n]{1,30}\))?(?:[^.\n:]{0,40}?(?:[:=→：]|\s[-–]\s)"
    r"|\s*(?:\b(?:is|would be|must be|should be|was|ist|est|es|è|é|"
    r"wäre|sería|serait)\b|是|为|為|は|은|는|→)\s*:?)\s*"
)
_STATEMENT: Final = re.compile(
    r"(?:\b(?P<final>(?:final|correct|best|right|most likely)\s+)?"
    r"(?:answer|option|choice|classification|prediction|conclusion|decision|diagnosis|response|"
    r"antwort|lösung|réponse|reponse|respuesta|risposta|resposta|antwoord|svar|odpowiedź|opção|opción)\b"
    rf"|ответ|答案|选项|回答|答え|正解|정답|답){_COPULA}"
    r"|\b(?P<so>therefore|thus|hence|in conclusion|in summary|to conclude|overall)\b,?\s*",
    re.IGNORECASE,
)
_CLAUSE_END: Final = re.compile(r"\n|[.;!?](?=\s|$)|。")
_ALONE: Final = re.compile(r"(?m)^[^\w\n]*([A-Z]{1,2})[^\w\n]*$")
_LEADING: Final = re.compile(
    r"^[^\w\n]*(?P<letter>[A-Za-z]{1,2})(?:(?P<hard>\s*(?:[.):\]}>]|\n|$))"
    r"|(?P<soft>\s*[,;=–—]|\s*-\s|\s+(?:is|because|since|as|was|seems|due|looks|fits|matches)\b))"
)
_WITH_NAME: Final = re.compile(r"^[^\w\n]*([A-Z]{1,2})\s+(?=\w)")
_LINE: Final = re.compile(r"(?m)^[^\w\n]*([A-Z]{1,2})\s*[.):]\s*\S")
_JOINED: Final = re.compile(
    r"^[^\w\n]*([A-Z]{1,2})\b[\s).\]]*"
    r"(?:[,/&+、]|\b(?:or|and|and/or|und|oder|et|ou|y|o|vs)\b|或|和)[\s(\[]*(?:or\s+|and\s+)?"
    r"([B-HJ-Z]|[AI](?!\s+[a-z])|[A-Z]{2})(?![\w'’])"
)
_BEFORE_NAME: Final = re.compile(r"[^\w\n]*(?:(?:the|a|an)\s+)?[^\w\n]*", re.IGNORECASE)
_AFTER_NAME: Final = re.compile(r"[\s\"')\]*]*(?:$|[.:;\n–—(]|-\s|\b(?:because|since|as)\b)", re.IGNORECASE)
_REFUSAL: Final = re.compile(
    r"\b(?:i'?m sorry|i am sorry|sorry|apologi[sz]e|can ?not|can['’]?t|unable|not able|as an ai|i am an ai|"
    r"not (?:possible|enough|sufficient|clear|certain|sure|visible)|insufficient|impossible|don['’]?t know|"
    r"do not know|undetermined|indeterminate|unclear|unknown|uncertain|no (?:image|video|picture|frame)s?)\b",
    re.IGNORECASE,
)
_LEAST_PREFIX: Final = 5
"""Letters of a name that was cut off."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """label: number of the class that is named, None for an unparsed answer. reason: how it was found (label:
    by a number, which only the release's rules take), or why there is none."""

    label: int | None
    reason: Reason


_Found = tuple[int | None, Reason]
"""Position of the option."""


def parse_answer(text: str, question: Question, classes: Sequence[ClassWords], raw: Sequence[str]) -> Parsed:
    """What an answer names. classes, raw: by label, in words and as the manifest calls them."""
    answer = answer_of(text, question.text)
    if not answer:
        return Parsed(None, "empty")
    letters = question.targets if question.style == "letters" else ()
    position, reason = _decide(answer, options_of(letters, question.order, tuple(classes), tuple(raw)))
    return Parsed(None if position is None else question.order[position], reason)


def _decide(text: str, options: Options) -> _Found:
    """What a text states goes before what it begins with, and that before what it mentions."""
    stated: list[tuple[bool, _Found]] = []
    for match in _STATEMENT.finditer(text):
        found = _read(_clause(text, match.end()), options)
        if found[1] in ("letter", "name", "several"):
            stated.append((bool(match["final"] or match["so"]), found))
    if stated:
        finals = [found for final, found in stated if final]
        return finals[-1] if finals else _agreed([found for _, found in stated])
    return _read(text, options)


def _clause(text: str, start: int) -> str:
    """Up to its end; where the line is empty there, the next one."""
    rest = text[start:].lstrip()
    end = _CLAUSE_END.search(rest)
    # "B. polyp" is one clause.
    if end and end.start() <= 3 and end[0] == "." and (more := _CLAUSE_END.search(rest, end.end())):
        end = more
    return rest[: end.start()] if end else rest


def _agreed(found: Sequence[_Found]) -> _Found:
    positions = {position for position, _ in found}
    return found[-1] if len(positions) == 1 else (None, "several")


def _read(text: str, options: Options) -> _Found:
    found = mentions(text, options)
    for look in (_letter_lines, _leading_letter, _leading_name):
        decided = look(text, options, found)
        if decided is not None:
            return decided
    named = asserted(found)
    if len(named) == 1:
        by_letter = any(each.by_letter for each in found if not each.denied)
        return named[0], "letter" if by_letter else "name"
    if named:
        return None, "several"
    cut_off = _cut_off(text, options) if not found else None
    if cut_off is not None:
        return cut_off, "name"
    return None, "refusal" if _REFUSAL.search(text) else "nothing"


def _leading_letter(text: str, options: Options, found: Sequence[Mention]) -> _Found | None:
    """`B`, `(b)`, `B. polyp`, `B because ...`; not where several letters, or another name, stand there."""
    joined = _JOINED.match(text)
    if joined and joined[1] in options.letters and joined[2] in options.letters:
        return (None, "several") if joined[1] != joined[2] else (options.letters[joined[1]], "letter")
    lines = {line[1] for line in _LINE.finditer(text) if line[1] in options.letters}
    if len(lines) > 1:
        return None, "several"
    match = _LEADING.match(text)
    if match is None:
        with_name = _WITH_NAME.match(text)
        position = options.letters.get(with_name[1], -1) if with_name else -1
        named = _at(text, with_name.end(), found) if with_name else None
        if position < 0 or with_name is None:
            return None
        if named is None:
            begun = _cut_off(text[with_name.end() :], options)
            return (position, "letter") if begun == position else None
        if named.position == position:
            return position, "letter"
        return None if with_name[1] in ("A", "I") else (None, "several")
    letter = match["letter"]
    if letter.upper() not in options.letters or (match["soft"] and (letter.islower() or letter == "I")):
        return None
    if match["soft"] and denied_after(text, match.end("letter")):
        return None
    position = options.letters[letter.upper()]
    named = _at(text, match.end(), found)
    if named is not None and named.position != position and not named.denied:
        return None, "several"
    return position, "letter"


def _at(text: str, start: int, found: Sequence[Mention]) -> Mention | None:
    """The mention by name with which the text goes on."""
    gap = _BEFORE_NAME.match(text, start)
    at = gap.end() if gap else start
    return next((each for each in found if each.start in (start, at) and not each.by_letter), None)


def _letter_lines(text: str, options: Options, found: Sequence[Mention]) -> _Found | None:
    """Letters that stand alone on a line."""
    alone = [match[1] for match in _ALONE.finditer(text) if match[1] in options.letters]
    return _agreed([(options.letters[letter], "letter") for letter in alone]) if alone else None


def _leading_name(text: str, options: Options, found: Sequence[Mention]) -> _Found | None:
    """`Polyp.`, `The polyp: ...`."""
    named = _at(text, 0, found)
    if named is None or named.denied or not _AFTER_NAME.match(text, named.end):
        return None
    return named.position, "name"


def _cut_off(text: str, options: Options) -> int | None:
    """The option whose name begins with all of the text, or of what follows an article or a verb."""
    words = re.findall(r"[^\W_]+", text.casefold())
    for first in range(min(len(words), 12)):
        if first and words[first - 1] in (*NO, *OTHER):
            return None
        key = "".join(words[first:])
        if len(key) < _LEAST_PREFIX:
            return None
        fits: set[int] = set()
        for name, positions in options.keys.items():
            # "Grade 1" is no beginning of "grade 10".
            if name.startswith(key) and not (key[-1].isdigit() and name[len(key) :][:1].isdigit()):
                fits |= positions
        if fits:
            return fits.pop() if len(fits) == 1 else None
    return None
