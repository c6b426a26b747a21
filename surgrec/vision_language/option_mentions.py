"""Where a text mentions an option, by letter or by name, and whether it denies it there."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from surgrec.evaluation.registry_classes import ClassWords, readable_name

_BRACKETS: Final = re.compile(r"(?<!\w)[(\[{]\s*([A-Za-z]{1,2})\s*[)\]}](?!\w)")
_CUES: Final = (
    *("is", "be", "it's", "that's", "choose", "chose", "chosen", "select", "selected", "pick", "picked"),
    *("say", "guess", "think", "believe", "suspect", "with", "towards?", "for", "like", "likely", "probably"),
    *("maybe", "perhaps", "possibly", "option", "choice", "letter", "answer", "label", "class", "not", "nor"),
    *("phase", "category", "step", "gesture", "finding", "as", "yes,", "neither", "nicht", "sondern", "or"),
    *("and", "but", "than", "of", "rather", "between", "either", "est", "ist", "es", "è", "é"),
)
_AFTER_CUE: Final = re.compile(rf"\b(?i:{'|'.join(_CUES)})[\s:\"'(*_]+([A-Z]{{1,2}})(?![\w'’]|-\w)")
_AFTER_CHINESE: Final = re.compile(
    r"(?:选项|選項|选择|選擇|选|答案是|答案|答えは|正解は)\s*[:：]?\s*([A-Z])(?![A-Za-z])"
)
_LAST: Final = re.compile(r"[.!?:]\s+([A-Z]{1,2})\s*[.!]?\s*$")
_BEFORE_VERB: Final = re.compile(
    r"(?<![\w'’-])([A-HJ-Z][A-Z]?)\s+(?:is|would|seems|looks|fits|matches|describes|and|or|nor|but)\b"
)
_ARTICLE: Final = re.compile(
    r"\s+(?!(?:because|since|as|and|or|nor|but|with|due|which|for|given|is|was|seems|would|based|fits|matches)\b)\w"
)
"""What follows an A that is no letter."""
_PLAIN_A: Final = ("A", "I")

_DENIED_BEFORE: Final = re.compile(
    r"(?:\b(?:not|no|never|without|neither|nor|cannot|rather\s+than|instead\s+of|unlike|exclud(?:es?|ed|ing)|"
    r"rul(?:es?|ed|ing)\s+out|absence\s+of|lack\s+of|lacks|other\s+than|except|although|though|while|"
    r"differs?\s+from|different\s+from|distinguish(?:ed|es)?\s+from|opposed\s+to|nicht|kein|keine|pas|sin)"
    r"|n['’]t)\b(?:\W+\w+){0,4}?\W*$|(?:不是|并非|没有|沒有|未见|未見|未发现|[无無](?!法))\w{0,4}$",
    re.IGNORECASE,
)
_DOUBTED_BEFORE: Final = re.compile(
    r"\b(?:whether|if|ob|si)\b(?:\W+\w+){0,4}?\W*$|是否\w{0,4}$", re.IGNORECASE
)
_DENIED_AFTER: Final = re.compile(
    r"^(?:[\s)\]\"'*]*(?:is|are|was|were|can|could|may|seems?|appears?)?\s*(?:"
    r"(?:not|n['’]t)\s+(?:be\s+)?(?:correct|right|visible|seen|present|shown|the|likely|possible|supported|"
    r"consistent|here|in view|identified|detected|found|evident|apparent|it)\b"
    r"|(?:be\s+)?(?:incorrect|wrong|absent|excluded|ruled\s+out|unlikely|impossible)\b)"
    r"|[-–]free\b|[\s\"']*[:=?]\s*(?:no|none|absent|negative|false)"
    r"(?:\s+(?:visible|seen|present|detected|found|identified))?\s*(?:$|[.,;}\n])|\s*(?:は|が)?(?:ありません|ない|なし|見られ(?:ません|ない))"
    r"|\s*(?:이|가|은|는)?\s*(?:없|아니|아닙))",
    re.IGNORECASE,
)
_BREAK: Final = re.compile(
    r"[,;.!?\n。，、]|\b(?:but|however|sondern|mais|sino|because|so|therefore)\b|而是", re.IGNORECASE
)
_SPELLINGS: Final = (
    *(("oe", "o?e"), ("ae", "a?e"), ("our", "ou?r"), ("isation", "i[sz]ation"), ("ization", "i[sz]ation")),
    *(("centre", "cent(?:re|er)"), ("center", "cent(?:re|er)"), ("hemo", "ha?emo"), ("esoph", "o?esoph")),
)

_UNSPACED: Final = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Letters of scripts without spaces between words (Thai, Lao, Burmese, Khmer, Chinese, Japanese), or that
join endings to words (Korean): a name begins and ends anywhere there."""
NO: Final = ("no", "not", "non", "without")
OTHER: Final = ("anti", "counter", "pre", "post", "non")
"""Behind these a name is that of another thing: "anti-clockwise" is not clockwise."""
_NOT_BEHIND: Final = "".join(rf"(?<!\b{prefix}[-\s])" for prefix in OTHER)

Patterns = tuple[tuple[re.Pattern[str], int], ...]


@dataclass(frozen=True, slots=True)
class Mention:
    """Of the option at a position, in text[start:end]."""

    start: int
    end: int
    position: int
    denied: bool
    by_letter: bool


@dataclass(frozen=True)
class Options:
    """What options are called. letters: upper case -> position, empty for named options. patterns: of names,
    the longest first. opposites: position of `X` -> that of `no X`. keys: letters and digits of every name
    -> positions that it has."""

    letters: Mapping[str, int]
    patterns: Patterns
    opposites: Mapping[int, int]
    keys: Mapping[str, frozenset[int]]


@lru_cache(maxsize=4096)
def options_of(
    letters: tuple[str, ...], order: tuple[int, ...], classes: tuple[ClassWords, ...], raw: tuple[str, ...]
) -> Options:
    """letters: in the order shown, none for named options. order: classes as they are shown. classes, raw: by
    label, in words and as the manifest calls them. A name that two classes share is none of either."""
    terms: dict[str, set[int]] = {}
    for position, label in enumerate(order):
        words = classes[label]
        for term in (words.name, *words.synonyms, readable_name(raw[label]), raw[label]):
            split = " ".join(words_in(term)).lower()
            if split:
                terms.setdefault(split, set()).add(position)
    own = {term: next(iter(positions)) for term, positions in terms.items() if len(positions) == 1}
    patterns = [(_pattern(term), own[term]) for term in sorted(own, key=lambda term: (-len(term), term))]
    singular = {_singular(term): position for term, position in own.items()}
    opposites = {
        singular[term[3:]]: position
        for term, position in singular.items()
        if term.startswith("no ") and term[3:] in singular
    }
    keys = {term.replace(" ", "").casefold(): frozenset(positions) for term, positions in terms.items()}
    return Options({letter: k for k, letter in enumerate(letters)}, tuple(patterns), opposites, keys)


def words_in(name: str) -> list[str]:
    """Letters and digits of a name, word by word; accents that stand by themselves are put on their letters,
    as in the answers."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", name))


def _singular(term: str) -> str:
    return term[:-1] if len(term) > 4 and term.endswith("s") and not term.endswith("ss") else term


def _pattern(term: str) -> re.Pattern[str]:
    first, *others = term.split()
    text = _spelled(first)
    for word in others:
        # "No, polyps are visible" does not say "no polyp".
        gap = r"(?:_|[^\w,.;:!?\n])" if first in NO and word is others[0] else r"[\W_]"
        text += rf"{gap}{{0,3}}{'(?:and|&)' if word == 'and' else _spelled(word)}"
    plural = "s?" if len(term) > 3 and term[-1].isascii() and term[-1].isalpha() and term[-1] != "s" else ""
    begin, end = (
        "" if re.match(f"[{_UNSPACED}]", edge) else f"(?{look}[^\\W_])"
        for edge, look in ((term[0], "<!"), (term[-1], "!"))
    )
    return re.compile(f"{begin}{_NOT_BEHIND}{text}{plural}{end}", re.IGNORECASE)


def _spelled(word: str) -> str:
    text = re.escape(word)
    for one, both in _SPELLINGS:
        if one in text:
            return text.replace(one, both)
    return text


def mentions(text: str, options: Options) -> list[Mention]:
    """In their order; where two overlap, the longer one."""
    found: list[Mention] = []
    for pattern, position in options.patterns:
        for match in pattern.finditer(text):
            if all(match.end() <= other.start or other.end <= match.start() for other in found):
                found.append(_mention(text, match.start(), match.end(), position, False, options))
    for start, end, letter in _letters(text):
        position = options.letters.get(letter, -1)
        if position >= 0 and all(end <= other.start or other.end <= start for other in found):
            found.append(_mention(text, start, end, position, True, options))
    return sorted(found, key=lambda each: each.start)


def _letters(text: str) -> Iterator[tuple[int, int, str]]:
    for match in _BRACKETS.finditer(text):
        yield match.start(), match.end(), match[1].upper()
    for pattern in (_AFTER_CUE, _BEFORE_VERB, _AFTER_CHINESE, _LAST):
        for match in pattern.finditer(text):
            start, end = match.span(1)
            if match[1] not in _PLAIN_A or not _ARTICLE.match(text, end):
                yield start, end, match[1]


def _mention(text: str, start: int, end: int, position: int, by_letter: bool, options: Options) -> Mention:
    """What is denied is a mention of the opposite, where that is an option."""
    clause = _BREAK.split(text[max(0, start - 80) : start])[-1]
    if _DOUBTED_BEFORE.search(clause):
        return Mention(start, end, position, True, by_letter)
    denied = bool(_DENIED_BEFORE.search(clause)) or denied_after(text, end)
    if denied and not by_letter and position in options.opposites:
        return Mention(start, end, options.opposites[position], False, by_letter)
    return Mention(start, end, position, denied, by_letter)


def denied_after(text: str, end: int) -> bool:
    """Whether what follows `end` says that what stands before it is wrong."""
    return bool(_DENIED_AFTER.match(text[end : end + 60]))


def asserted(found: Sequence[Mention]) -> list[int]:
    """Positions of the options that are mentioned and not denied, each once."""
    return list(dict.fromkeys(each.position for each in found if not each.denied))
