"""What the classes of the benchmark's data sets are called in words, and what they mean.

The words stand in registry_classes.yaml. Files of prompts may change them or add those of other data sets,
in the same form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import as_file, files
from typing import Any, Final

from surgrec.configs.yaml_io import ConfigError, from_plain, load_yaml
from surgrec.evaluation.registry_table import DATASETS

_NUMBER: Final = re.compile(r"^(?:(?:phase|step|label|class)[_\s-]*)?\d+[_\s-]+(?=\D)", re.IGNORECASE)
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class ClassWords:
    """A class in words. name: as it is shown. definition: what is seen, in a few words; empty where it is
    not known. synonyms: what else it is called in answers."""

    name: str = ""
    definition: str = ""
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class SetWords:
    """A data set in words. subject: what its classes are kinds of. domain: what its videos show. Empty where
    nothing is said. classes: by the name in the manifest, as `key_of` has it."""

    subject: str = ""
    domain: str = ""
    classes: Mapping[str, ClassWords] = field(default_factory=dict)


def key_of(name: str) -> str:
    """A class name without its number, case and punctuation: `phase_03_rhexis` and `Rhexis` are one."""
    return "".join(letter for letter in _NUMBER.sub("", name).casefold() if letter.isalnum())


def readable_name(name: str) -> str:
    """The name of a manifest in words: `01_ClippingCutting` is `clipping cutting`. What has a capital that
    is not its first letter only, or a digit, such as `G11`, keeps its case."""
    text = _CAMEL.sub(" ", _NUMBER.sub("", name.strip())).replace("_", " ").replace("|", "or")
    words = re.sub(r"\s*-\s*|\s+", " ", text).split()
    kept = [word if word[1:] != word[1:].lower() or not word.isalpha() else word.lower() for word in words]
    return " ".join(kept) or name


def words_from_plain(document: Any, name: str, named: bool = False) -> dict[str, SetWords]:
    """Data sets by key, from plain values: {key: {subject, domain, classes: {name: {name, definition,
    synonyms}}}}. named: classes without a name get a readable one. Raises ConfigError giving the entry."""
    if not isinstance(document, Mapping):
        raise ConfigError(f"{name} must be a group of data sets, not {document!r:.80}")
    return {str(key): _set(value, f"{name}.{key}", named) for key, value in document.items()}


def _set(document: Any, name: str, named: bool) -> SetWords:
    if not isinstance(document, Mapping):
        raise ConfigError(f"{name} must be a group of entries, not {document!r:.80}")
    classes = document.get("classes", {})
    if not isinstance(classes, Mapping):
        raise ConfigError(f"{name}.classes must be a group of classes, not {classes!r:.80}")
    found: dict[str, ClassWords] = {}
    for raw, value in classes.items():
        key = key_of(str(raw))
        if not key or key in found:
            raise ConfigError(f"{name}.classes.{raw}: the name is empty, or that of another class")
        words = from_plain(ClassWords, value, f"{name}.classes.{raw}")
        found[key] = replace(words, name=readable_name(str(raw))) if named and not words.name else words
    rest = {entry: value for entry, value in document.items() if entry != "classes"}
    unknown = sorted(str(entry) for entry in rest if entry not in ("subject", "domain"))
    if unknown:
        raise ConfigError(f"{name} has no entry {', '.join(unknown)}; it has subject, domain, classes")
    for entry, value in rest.items():
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{name}.{entry} must be a text, not {value!r:.80}")
    return SetWords(**rest, classes=found)


@cache
def registry_words() -> dict[str, SetWords]:
    """Those of the registry, by key of the data set."""
    with as_file(files("surgrec.evaluation").joinpath("registry_classes.yaml")) as path:
        return words_from_plain(load_yaml(path), "registry_classes.yaml", named=True)


def words_of(
    dataset: str, names: tuple[str, ...], own: Mapping[str, SetWords]
) -> tuple[SetWords, tuple[ClassWords, ...]]:
    """A data set in words, and its classes by label. Subject, domain and names are never empty.

    names: of the classes in the manifest. own: words that go before those of the registry, entry by entry.
    """
    known = [found for found in (own.get(dataset), registry_words().get(dataset)) if found]
    registered = DATASETS.get(dataset)
    subject = next((each.subject for each in known if each.subject), "")
    domain = next((each.domain for each in known if each.domain), "")
    subject = subject or (registered.task if registered else "class")
    domain = domain or (registered.domain if registered else "surgery")
    classes = []
    for name in names:
        found = [each.classes[key_of(name)] for each in known if key_of(name) in each.classes]
        classes.append(
            ClassWords(
                next((each.name for each in found if each.name), readable_name(name)),
                next((each.definition for each in found if each.definition), ""),
                next((each.synonyms for each in found if each.synonyms), ()),
            )
        )
    return SetWords(subject, domain), tuple(classes)
