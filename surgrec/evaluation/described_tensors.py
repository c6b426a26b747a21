"""Tensors in a safetensors file, and in its header, as JSON under `surgrec`, what they are and what made it.

format, format_version   of the kind of file
...                      the fields of its dataclass: plain values
digest                   XXH3-128 over what it is and its tensors, whatever made it and when
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from surgrec.loaders.whole_file import replacing
from surgrec.training.tensor_file import write_tensors

MADE: Final = ("date", "versions", "commit")
"""Fields that say what made it and when."""
About = TypeVar("About")


@dataclass(frozen=True)
class Kind:
    """A kind of file. noun: as in "no saved head". remedy: how it is written. error: what is raised."""

    format: str
    version: int
    noun: str
    remedy: str
    error: type[ValueError]

    def write(self, path: Path, about: Any, tensors: dict[str, Tensor]) -> str:
        """Writes a file, whole or not at all; returns its digest. about: a dataclass. Raises OSError."""
        digest = digest_of(about, tensors)
        plain = {"format": self.format, "format_version": self.version, **asdict(about), "digest": digest}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write_tensors(temporary, tensors, {"surgrec": json.dumps(plain, allow_nan=False)})
        return digest

    def read(
        self,
        path: Path,
        made_of: type[About],
        check: Callable[[About, dict[str, Tensor]], None] = lambda about, tensors: None,
    ) -> tuple[About, dict[str, Tensor], str]:
        """What it is, its tensors, and its digest. check: raises ValueError for what does not fit together.
        Raises `error`, naming the file, the cause and the remedy."""
        if not path.is_file():
            raise self.error(f"{path}: no such file; {self.remedy}")
        try:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get("surgrec", "null")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            document = json.loads(text)
        except (OSError, SafetensorError, ValueError, RecursionError) as error:
            raise self.error(
                f"{path}: not a safetensors file, or a truncated one ({error}); {self.remedy}"
            ) from error
        if not isinstance(document, dict) or document.get("format") != self.format:
            raise self.error(
                f"{path}: no saved {self.noun} (no `format` {self.format!r} in its header); {self.remedy}"
            )
        if document.get("format_version") != self.version:
            raise self.error(
                f"{path}: a {self.noun} of format version {document.get('format_version')!r}, this program"
                f" reads {self.version}; {self.remedy} again"
            )
        try:
            about = _about(made_of, document)
            check(about, tensors)
            digest = digest_of(about, tensors)
        except (TypeError, ValueError) as error:
            raise self.damaged(path, error) from error
        if document.get("digest") != digest:
            raise self.error(
                f"{path}: its digest is {document.get('digest')!r}, its content has {digest!r}: it was"
                f" changed or is damaged; {self.remedy} again"
            )
        return about, tensors, digest

    def damaged(self, path: Path, cause: Exception) -> ValueError:
        """The error of a file whose content does not fit together."""
        return self.error(f"{path}: damaged ({cause}); {self.remedy} again")


def format_of(path: Path) -> str:
    """The format that the header of a safetensors file names; empty where none can be read."""
    try:
        with safe_open(path, "pt") as file:
            document = json.loads((file.metadata() or {}).get("surgrec", "null"))
    except (OSError, SafetensorError, ValueError, RecursionError):
        return ""
    return str(document.get("format", "")) if isinstance(document, dict) else ""


def digest_of(about: Any, tensors: dict[str, Tensor]) -> str:
    """32 hex digits over what a dataclass says, but for MADE, and over tensors on the CPU."""
    plain = {name: value for name, value in asdict(about).items() if name not in MADE}
    state = xxhash.xxh3_128(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(tensors):
        state.update(name.encode())
        state.update(tensors[name].contiguous().numpy().data)
    return state.hexdigest()


def _about(made_of: type[About], document: dict[str, Any]) -> About:
    """Raises ValueError for values that are not there, or of another kind than the field's."""
    hints = typing.get_type_hints(made_of)
    values: dict[str, Any] = {}
    for field in fields(made_of):  # type: ignore[arg-type]
        value, hint = document.get(field.name), hints[field.name]
        origin = typing.get_origin(hint)
        if origin is tuple:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"`{field.name}` is no list of texts")
            value = tuple(value)
        elif origin is typing.Literal:
            if value not in typing.get_args(hint):
                raise ValueError(f"`{field.name}` is {value!r}")
        elif not isinstance(value, origin or hint) or isinstance(value, bool):
            raise ValueError(f"`{field.name}` is {value!r}")
        values[field.name] = value
    return made_of(**values)
