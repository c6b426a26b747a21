"""What is known of a benchmark data set, and what the names of its clips say: class, group, time span."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

Unit = Literal["seconds", "frames", "unknown"]

NOT_KNOWN: Final = "not known; see the homepage"


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set, as the published splits lay it out.

    name: as papers print it. folder: below the data root and in the splits; aliases: other names of it.
    classes: their number. class_names: by label, empty where they are taken from the label map or from the
    names of the clips. pattern: a regular expression for what follows the folder in a clip's path, with any
    of the groups `name` (class), `start`, `end`. group, strict_group: templates over the pattern's groups, of
    what must not be split, and of what should not be where there is enough of it; empty where names do not
    tell. source: template of the video whose time `start` and `end` count, by default the group. unit: of the
    two. adjacent: clips that lie no further apart than this many units are neighbours.
    """

    key: str
    name: str
    domain: str
    task: str
    classes: int
    folder: str
    homepage: str
    licence: str
    access: str
    layout: str
    example: str
    pattern: str
    group: str
    group_rule: str
    class_names: tuple[str, ...] = ()
    strict_group: str = ""
    strict_rule: str = ""
    source: str = ""
    unit: Unit = "unknown"
    adjacent: float = 0.0
    aliases: tuple[str, ...] = ()
    note: str = ""
    in_paper: bool = True


@dataclass(frozen=True, slots=True)
class Span:
    """Where a clip lies in the video it was cut from: [start, end) in `unit`s of `source`."""

    source: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class NameFacts:
    """What the name of a clip says; None for what it does not."""

    group: str | None
    class_name: str | None
    span: Span | None


def read_name(dataset: DataSet, path: str, strict: bool = False) -> NameFacts | None:
    """What a path below the data root says by its name; None where it does not follow the set's pattern.

    strict: by the stricter group rule, where the set has one.
    """
    _, _, rest = path.partition("/")
    found = _compiled(dataset.pattern).fullmatch(rest)
    if found is None:
        return None
    parts = {name: value if value is not None else "unnumbered" for name, value in found.groupdict().items()}
    template = dataset.strict_group if strict and dataset.strict_group else dataset.group
    group = template.format(**parts) if template else None
    span = None
    if "start" in parts and "end" in parts:
        source = (dataset.source or dataset.group).format(**parts)
        start, end = float(parts["start"]), float(parts["end"])
        span = Span(source, start, end) if start < end else None
    return NameFacts(group, parts.get("name"), span)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)
