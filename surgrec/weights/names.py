"""Names of models, and the options behind them: KIND:PATH#part,size=256,..."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, get_args

from surgrec.weights.errors import WeightsError
from surgrec.weights.layout import Part, ReadOptions

KINDS: Final = ("file", "hf", "timm")
NUMBERS: Final[dict[str, tuple[type, int]]] = {
    "size": (int, 1 << 14),
    "frames": (int, 1 << 14),
    "stride": (int, 1 << 14),
    "fps": (float, 1 << 10),
    "heads": (int, 1 << 10),
    "inflate": (int, 1 << 10),
}
"""Options that are numbers above 0: their kind, and the largest that is no slip of the hand."""


def parse_name(text: str) -> tuple[str, ReadOptions, str | None]:
    """Path, options and layout of `PATH#part,size=256,...`. Raises WeightsError for an option that there is
    not, or that is given twice."""
    # A file may have a # in its own name.
    path, _, behind = (text, "", "") if os.path.exists(text) else text.partition("#")
    values: dict[str, Any] = {}
    layout = None
    for item in behind.split(",") if behind else []:
        key, equals, value = item.partition("=")
        name = "part" if not equals and key in get_args(Part) else key
        if name in values or (name == "layout" and layout is not None):
            raise WeightsError(f"{path}: {name} is given twice behind its #; give it once")
        if name == "part" and not equals:
            values[name] = key
        elif key == "layout" and value:
            layout = value
        elif key == "pooling" and value:
            values[key] = value
        elif key in NUMBERS and _number(key, value) is not None:
            values[key] = _number(key, value)
        else:
            raise WeightsError(
                f"{path}: there is no option {item!r}; behind # stand {' or '.join(get_args(Part))},"
                f" layout=NAME, pooling=NAME, or a number above 0 of"
                f" {', '.join(f'{each}= (to {most})' for each, (_, most) in NUMBERS.items())}"
            )
    return path, ReadOptions(**values), layout


def check_options(name: str, options: ReadOptions) -> None:
    """Raises WeightsError, for the model `name`, where a caller gave what no text behind a # can say."""
    for key, (kind, most) in NUMBERS.items():
        value = getattr(options, key)
        what = "a whole number" if kind is int else "a number"
        if value is not None and not (type(value) in (kind, int) and 0 < value <= most):
            raise WeightsError(f"{name}: {key}={value!r}; {what} above 0, to {most}, is needed")
    if options.part is not None and options.part not in get_args(Part):
        raise WeightsError(f"{name}: part={options.part!r}; it is {' or '.join(get_args(Part))}")


def kind_of(path: Path) -> str:
    """Of a path alone: a run of this project, a folder of Hugging Face's, or a file."""
    if not os.path.isdir(path):
        return "file"
    return "hf" if os.path.isfile(path / "config.json") else "ckpt"


def _number(key: str, text: str) -> float | None:
    """Of the kind that an option has; None of another text, or a number that is out of bounds."""
    kind, most = NUMBERS[key]
    try:
        value: float = kind(text)
    except ValueError:
        return None
    return value if 0 < value <= most else None
