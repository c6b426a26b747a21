"""Configurations as plain values and YAML, and back, strictly: an unknown or ill-typed entry is an error."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

C = TypeVar("C")


class ConfigError(ValueError):
    """An entry that does not belong, is missing, or has the wrong type; the message gives its dotted name."""


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, paths as strings; other plain values as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[C], values: Any, name: str = "") -> C:
    """A dataclass `kind` from nested plain values. Missing entries take their defaults.

    Raises ConfigError naming the entry, for unknown names and values of the wrong type.
    """
    result: C = _convert(kind, values, name or "config")
    return result


def dump_yaml(values: Any) -> str:
    """Plain values as YAML, in the order in which they come."""
    import yaml

    text: str = yaml.safe_dump(
        values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )
    return text


def load_yaml(path: Path) -> Any:
    """The plain values of a YAML file. Raises ConfigError where it cannot be read or is not YAML."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error


def take_config(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The path of a leading `--config FILE` or `--config=FILE`, None where there is none; other arguments.

    Raises ConfigError where it stands elsewhere, or names no file.
    """
    if arguments and (arguments[0] == "--config" or arguments[0].startswith("--config=")):
        _, equals, name = arguments[0].partition("=")
        rest = arguments[1:]
        if not equals:
            if not rest:
                raise ConfigError("--config needs the path of a YAML file")
            name, rest = rest[0], rest[1:]
        return Path(name), rest
    if any(argument == "--config" or argument.startswith("--config=") for argument in arguments):
        raise ConfigError("--config comes first, before the options that change what its file says")
    return None, arguments


@cache
def _field_types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _convert(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _convert_dataclass(kind, value, name)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{name} is {value!r}; it may be {', '.join(repr(a) for a in arguments)}")
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, name)
    if origin is tuple:
        return _convert_tuple(arguments, value, name)
    return _convert_scalar(kind, value, name)


def _convert_dataclass(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a group of entries, not {value!r}")
    hints = _field_types(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(str(key) for key in value if key not in known)
    if unknown:
        raise ConfigError(f"{name} has no entry {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return kind(**{key: _convert(hints[key], item, f"{name}.{key}") for key, item in value.items()})


def _convert_union(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    problems = []
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _convert(kind, value, name)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError("; or ".join(problems))


def _convert_tuple(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name} must be a list, not {value!r}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{name} needs {len(kinds)} values, not {len(value)}")
    return tuple(
        _convert(kind, item, f"{name}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _convert_scalar(kind: Any, value: Any, name: str) -> Any:
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-4, which people write, as text.
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"{name} must be a number, not {value!r}") from None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{name} must be {kind.__name__}, not {value!r}")
