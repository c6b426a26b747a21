"""Names of classes, from the JSON files beside published splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

FILE_NAMES: Final = ("label_map.json", "label_mapping.json")
MOST_CLASSES: Final = 10_000


class LabelMapError(ValueError):
    """A label map that cannot be used; the message names the file, the cause and the remedy."""


def read_label_map(folder: Path) -> dict[int, str] | None:
    """Class names by label, from a folder of published splits; None where it has no label map.

    Three shapes are taken: {name: label}; {label: name}; and an object with `index_to_label`,
    `label_to_index` or both, of which the first has the last word. Names that share a label stand side by
    side, "a | b".
    Raises LabelMapError.
    """
    path = next((folder / name for name in FILE_NAMES if (folder / name).exists()), None)
    if path is None:
        return None
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise LabelMapError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise LabelMapError(f"{path}: not a JSON file in UTF-8 ({error}); repair or remove it") from error
    if not isinstance(document, dict) or not document:
        raise LabelMapError(f"{path}: not a JSON object of names and labels; repair or remove it")
    if "index_to_label" in document or "label_to_index" in document:
        names = _by_name(path, document.get("label_to_index", {}))
        return names | _by_label(path, document.get("index_to_label", {}))
    if all(isinstance(value, str) for value in document.values()):
        return _by_label(path, document)
    return _by_name(path, document)


def _by_name(path: Path, table: Any) -> dict[int, str]:
    names: dict[int, list[str]] = {}
    for name, label in _items(path, table):
        names.setdefault(_label(path, label), []).append(_name(path, name))
    return {label: " | ".join(sorted(same)) for label, same in names.items()}


def _by_label(path: Path, table: Any) -> dict[int, str]:
    return {_label(path, label): _name(path, name) for label, name in _items(path, table)}


def _items(path: Path, table: Any) -> list[tuple[Any, Any]]:
    if not isinstance(table, dict):
        raise LabelMapError(f"{path}: {table!r:.80} is no object of names and labels; repair or remove it")
    return list(table.items())


def _label(path: Path, value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value[:9])
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_CLASSES:
        raise LabelMapError(f"{path}: label {value!r:.80} is no whole number from 0 on; repair or remove it")
    return value


def _name(path: Path, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise LabelMapError(f"{path}: {value!r:.80} is no name of a class; repair or remove it")
    return value.strip()
