"""Wordings of the question that a vision-language model is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

import xxhash

from surgrec.configs.yaml_io import to_plain
from surgrec.evaluation.registry_classes import SetWords
from surgrec.vision_language.records import Style

Family = Literal["neutral", "expert", "definitions"]
ParserName = Literal["standard", "release"]

_FIELD: Final = re.compile(r"\{(\w+)\}")
_ALMOST: Final = re.compile(
    r"\{(?:\s+(?:subject|domain|options|reply|letter|name|definition)\b"
    r"|(?:subject|domain|options|reply|letter|name|definition)\b(?!\})).{0,3}"
)
"""A field with spaces inside its braces, or without the closing one."""


class PromptError(ValueError):
    """Prompts that cannot be used; the message names file, cause and remedy."""


@dataclass(frozen=True, slots=True)
class ByStyle:
    """A text for lettered options, and one for named ones."""

    letters: str = ""
    names: str = ""

    def of(self, style: Style) -> str:
        """That of a style."""
        return self.letters if style == "letters" else self.names


@dataclass(frozen=True, slots=True)
class Prompt:
    """A wording. text: with {subject}, {domain}, {options}, {reply}. option: a line for each, with {letter},
    {name}, {definition}. reply: how to answer, and system: the system message, empty for none; with
    {subject}, {domain}."""

    name: str = ""
    family: Family = "neutral"
    text: str = ""
    system: str = ""
    option: ByStyle = ByStyle("{letter}. {name}", "- {name}")
    reply: ByStyle = ByStyle()


@dataclass(frozen=True)
class PromptSet:
    """The wordings of a file. name: of the file. style: of the options. order: drawn, or fixed as the classes
    of the manifest are. names: of classes in words, or raw as in the manifest. parser: by which answers are
    read. datasets: words that go before those of the registry."""

    name: str
    prompts: tuple[Prompt, ...]
    style: Style = "letters"
    order: Literal["drawn", "fixed"] = "drawn"
    names: Literal["words", "raw"] = "words"
    parser: ParserName = "standard"
    datasets: Mapping[str, SetWords] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """XXH3-128 over all that decides what is asked and how answers are read: 32 hex digits."""
        return xxhash.xxh3_128_hexdigest(json.dumps(to_plain(self)).encode())

    @cached_property
    def by_name(self) -> dict[str, Prompt]:
        """The wordings by name."""
        return {prompt.name: prompt for prompt in self.prompts}


def fields_of(template: str) -> set[str]:
    """Names of the fields in a template."""
    return set(_FIELD.findall(template))


def almost_field(template: str) -> str:
    """What is meant as a field and is none, such as `{ subject }`; empty where there is nothing."""
    found = _ALMOST.search(template)
    return found[0] if found else ""


def filled(template: str, values: Mapping[str, str]) -> str:
    """Fields are replaced once: a class that is called `{reply}` stays what it is called."""
    return _FIELD.sub(lambda found: values[found[1]], template)
