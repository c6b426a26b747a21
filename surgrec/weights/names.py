"""Names of models, and the options behind them: KIND:PATH#part,size=256,..."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, get_args

from surgrec.weights.errors import WeightsError
from surgrec.weights.layout import Part, ReadOptions

KINDS: Final = ("file", "hf", "timm")
NUMBERS: Final = {"size": int, "frames": int, "stride": int, "fps": float, "heads": int, "inflate": int}


def parse_name(text: str) -> tuple[str, ReadOptions, str | None]:
    """Path, options and layout of `PATH#part,size=256,...`. Raises WeightsError for an option that there is
    not."""
    # A file may have a # in its own name.
    path, _, behind = (text, "", "") if Path(text).exists() else text.partition("#")
    values: dict[str, Any] = {}
    layout = None
    for item in behind.split(",") if behind else []:
        key, equals, value = item.partition("=")
        if not equals and key in get_args(Part):
            values["part"] = key
        elif key == "layout" and value:
            layout = value
        elif key == "pooling" and value:
            values[key] = value
        elif key in NUMBERS and _number(key, value) is not None:
            values[key] = _number(key, value)
        else:
            raise WeightsError(
                f"{path}: there is no option {item!r}; behind # stand {' or '.join(get_args(Part))},"
                f" layout=NAME, pooling=NAME, or a number of {', '.join(f'{name}=' for name in NUMBERS)}"
            )
    return path, ReadOptions(**values), layout


def kind_of(path: Path) -> str:
    """Of a path alone: a run of this project, a folder of Hugging Face's, or a file."""
    if not path.is_dir():
        return "file"
    return "hf" if (path / "config.json").is_file() else "ckpt"


def _number(key: str, text: str) -> float | None:
    """A positive, finite number of the kind that an option has; None of another text."""
    try:
        value: float = NUMBERS[key](text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
