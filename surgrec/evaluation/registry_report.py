"""The registry, to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from surgrec.evaluation.registry import DataSet
from surgrec.evaluation.registry_classes import SetWords, registry_words

_HEAD = ("key", "domain", "task", "classes", "licence", "access", "group")


def table(datasets: Sequence[DataSet]) -> str:
    """A line a data set."""
    rows = [
        (
            dataset.key,
            dataset.domain,
            dataset.task,
            str(dataset.classes),
            dataset.licence,
            dataset.access,
            dataset.group_rule,
        )
        for dataset in datasets
    ]
    widths = [max(len(row[column]) for row in (_HEAD, *rows)) for column in range(len(_HEAD) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in (_HEAD, *rows)
    ]
    return "\n".join(
        [*lines, "", "`list NAME` shows one in full: homepage, how to arrange its files, classes."]
    )


def in_full(dataset: DataSet) -> str:
    """All that is known of a data set."""
    names = ", ".join(dataset.class_names) or "named by the label map, or by the names of the clips"
    lines = [
        f"{dataset.name} ({dataset.key})",
        f"  what      {dataset.domain}, {dataset.task}, {dataset.classes} classes",
        f"  classes   {names}",
        f"  homepage  {dataset.homepage}",
        f"  licence   {dataset.licence}; access: {dataset.access}",
        f"  folder    DATA_ROOT/{dataset.folder}/",
        f"  files     {dataset.layout}",
        f"  example   DATA_ROOT/{dataset.folder}/{dataset.example}",
        f"  group     {dataset.group_rule}",
    ]
    words = registry_words().get(dataset.key, SetWords())
    lines += [f"  meaning   {each.name}: {each.definition}" for each in words.classes.values()]
    if dataset.strict_rule:
        lines.append(f"  stricter  {dataset.strict_rule}, with --strict-groups")
    if "(?P<start>" in dataset.pattern:
        unit = "in a unit that is not known" if dataset.unit == "unknown" else f"in {dataset.unit}"
        lines.append(f"  span      from names, {unit}; neighbours are at most {dataset.adjacent:g} apart")
    if dataset.note:
        lines.append(f"  note      {dataset.note}")
    return "\n".join(lines)


def as_records(datasets: Sequence[DataSet]) -> str:
    """A JSON list."""
    return json.dumps([asdict(dataset) for dataset in datasets], indent=1)
