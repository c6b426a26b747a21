"""Results of models on benchmark sets: a line of JSON each, for one model, data set and way of evaluation.

A line is whole or not there: one that a killed run left torn at the end is cut off by the next one. Keys
that this file does not name are left to those who write them (the grid, few-shot draws).
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

FORMAT_NAME: Final = "surgrec-result"
FORMAT_VERSION: Final = 1
SAMPLING: Final = ("clips", "views", "geometry")
"""Keys of a document that say how many clips of a row are seen, in which views, and what a clip is."""

T = TypeVar("T")


class ResultsError(ValueError):
    """A file of results, or a line of one, that cannot be used; the message names file, cause and remedy."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the 95 % interval around it, None where there is none: one group only."""

    value: float
    low: float | None = None
    high: float | None = None

    def plain(self) -> dict[str, float | None]:
        """As a document has it."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class ClassResult:
    """Of a class on test: recall, None where test has no clip of it; auroc, None where it is not known."""

    name: str
    recall: Interval | None
    auroc: float | None


@dataclass(frozen=True)
class Result:
    """What a model did on a test set.

    manifest_digest, features_digest: of the split, and of the features (empty after fine-tuning). mode: how
    it was evaluated, as `probe-linear` or `finetune-full`. n: clips that were read and scored, of m in test;
    groups: theirs. figures: by name, shares of 1, such as accuracy. baselines: the same for what no model is
    needed for, such as majority. confusion: [C][C] clips by what is true (rows) and what was said; empty
    where it was not recorded. trained_parameters: None where it was not recorded. options, chosen: what was
    asked for, and what was chosen on val; plain values. sampling: of those of SAMPLING that were recorded,
    what of a test row the model saw; plain values. val_is_test: val holds the clips of test, so that what was
    chosen on val was chosen on test. date: ISO 8601. predictions: (row of the manifest,
    counted from 0; predicted class) of the n clips, in ascending order of the rows; empty where they were not
    recorded.
    """

    model: str
    dataset: str
    manifest_digest: str
    features_digest: str
    mode: str
    n: int
    m: int
    groups: int
    figures: Mapping[str, Interval]
    baselines: Mapping[str, Mapping[str, Interval]]
    classes: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]
    trained_parameters: int | None
    options: Mapping[str, Any]
    chosen: Mapping[str, Any]
    date: str
    versions: Mapping[str, str]
    commit: str
    predictions: tuple[tuple[int, int], ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    val_is_test: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Options and sampling together: what tells results of one model and mode apart."""
        return {**self.options, **self.sampling}

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What a later result with the same key replaces: data set, split, model, mode, settings."""
        settings = json.dumps(self.settings, sort_keys=True)
        return self.dataset, self.manifest_digest, self.model, self.mode, settings


def document_of(result: Result) -> dict[str, Any]:
    """A result as a line of the file has it. Plain values."""
    return {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "model": result.model,
        "dataset": result.dataset,
        "manifest_digest": result.manifest_digest,
        "features_digest": result.features_digest,
        "mode": result.mode,
        "rows": {"test": {"read": result.n, "of": result.m}},
        "val_is_test": result.val_is_test,
        "test_groups": result.groups,
        "classes": [each.name for each in result.classes],
        "figures": {name: figure.plain() for name, figure in result.figures.items()},
        "baselines": {
            name: {figure: value.plain() for figure, value in figures.items()}
            for name, figures in result.baselines.items()
        },
        "per_class": [
            {"class": each.name, "recall": each.recall and each.recall.plain(), "auroc": each.auroc}
            for each in result.classes
        ],
        "confusion": [list(row) for row in result.confusion],
        "trained_parameters": result.trained_parameters,
        "options": dict(result.options),
        **result.sampling,
        "chosen": dict(result.chosen),
        "date": result.date,
        "versions": dict(result.versions),
        "commit": result.commit,
        "predictions": [list(pair) for pair in result.predictions],
    }


def provenance() -> dict[str, Any]:
    """date, versions and commit of a result that is made now: keys of its document. commit is empty outside
    of a git checkout, and ends in `+` where files of it were changed."""
    import surgrec
    from surgrec.training.run_record import git_state, now, package_versions

    state = git_state(Path(surgrec.__file__).parent)
    commit = "" if state is None else state["commit"] + "+" * state["dirty"]
    return {"date": now(), "versions": package_versions(), "commit": commit}


def append_result(path: Path, document: Mapping[str, Any]) -> None:
    """One line more, on the disk when this returns.

    Raises ResultsError for a document that `read_results` would refuse, OSError.
    """
    result_of(dict(document))
    line = json.dumps(dict(document), allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        # Of processes that append to one file, each must see the others' lines whole.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.read()
        whole = _whole(content)
        file.truncate(whole)
        if content[:whole] and not content[:whole].endswith(b"\n"):
            line = f"\n{line}"
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _whole(content: bytes) -> int:
    """Length of the lines that are whole: the last one ends, or is JSON (a person took its end away)."""
    end = content.rfind(b"\n") + 1
    try:
        json.loads(content[end:])
    except (ValueError, RecursionError):
        return end
    return len(content)


def read_results(path: Path) -> list[Result]:
    """The results of a file, in its order; a line at the end that a killed run left torn is none.

    Raises ResultsError naming the line, the cause and the remedy.
    """
    return [result for _, result in _read(path)]


def read_documents(path: Path) -> list[dict[str, Any]]:
    """The same lines as `read_results`, with all that stands in them. Raises as it does."""
    return [document for document, _ in _read(path)]


def _read(path: Path) -> list[tuple[dict[str, Any], Result]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    found = []
    for number, line in enumerate(content[: _whole(content)].splitlines(), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line.decode("utf-8"), parse_constant=_refuse)
            found.append((document, result_of(document)))
        except (ValueError, RecursionError) as error:
            raise ResultsError(
                f"{path}, line {number}: {error}; delete the line and evaluate that model again"
            ) from error
    return found


def latest(results: Iterable[Result]) -> list[Result]:
    """The last of those with the same key, in the order in which their keys came first."""
    return list({result.key: result for result in results}.values())


def _refuse(name: str) -> float:
    raise ResultsError(f"{name} is no number of JSON")


def result_of(document: Any) -> Result:
    """The result that a line says. Raises ResultsError for what is no result."""
    if not isinstance(document, dict) or document.get("format") != FORMAT_NAME:
        raise ResultsError(f"not a result (no `format` {FORMAT_NAME!r})")
    if document.get("format_version") != FORMAT_VERSION:
        raise ResultsError(
            f"format version {document.get('format_version')!r}, this program reads {FORMAT_VERSION}"
        )
    test = _get(_get(document, "rows", dict), "test", dict)
    classes = tuple(_class(each) for each in _get(document, "per_class", list))
    result = Result(
        model=_text(document, "model"),
        dataset=_text(document, "dataset"),
        manifest_digest=_text(document, "manifest_digest"),
        features_digest=_get(document, "features_digest", str, ""),
        mode=_text(document, "mode"),
        n=_count(test, "read"),
        m=_count(test, "of"),
        groups=_count(document, "test_groups"),
        figures=_figures(document, "figures"),
        baselines={
            name: _figures(_get(document, "baselines", dict), name)
            for name in _get(document, "baselines", dict, {})
        },
        classes=classes,
        confusion=_confusion(_get(document, "confusion", list, []), len(classes)),
        trained_parameters=_optional(document, "trained_parameters", _count),
        options=_get(document, "options", dict, {}),
        chosen=_get(document, "chosen", dict, {}),
        date=_get(document, "date", str, ""),
        versions={k: str(v) for k, v in _get(document, "versions", dict, {}).items()},
        commit=_get(document, "commit", str, ""),
        predictions=_predictions(_get(document, "predictions", list, []), len(classes)),
        val_is_test=_get(document, "val_is_test", bool, False),
        sampling={name: document[name] for name in SAMPLING if document.get(name) is not None},
    )
    if not 0 < result.n <= result.m:
        raise ResultsError(
            f"`rows` says {result.n} of {result.m} test clips; at least one is needed, of as many"
        )
    counted = sum(map(sum, result.confusion))
    if result.confusion and counted != result.n:
        raise ResultsError(f"`confusion` counts {counted} clips, and {result.n} were scored")
    if result.predictions and len(result.predictions) != result.n:
        raise ResultsError(f"`predictions` are {len(result.predictions)}, and {result.n} clips were scored")
    return result


def _get(document: dict[str, Any], name: str, kind: type[T], *default: T) -> T:
    """A value of a kind; the default where it is missing or null."""
    value = document.get(name)
    if value is None and default:
        return default[0]
    if not isinstance(value, kind):
        raise ResultsError(f"`{name}` is {_short(value)}, not {_KINDS[kind]}")
    return value


_KINDS: Final[dict[type, str]] = {
    str: "a text",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


def _short(value: Any) -> str:
    text = repr(value)
    return "missing" if value is None else text if len(text) <= 60 else f"{text[:57]}..."


def _text(document: dict[str, Any], name: str) -> str:
    value = _get(document, name, str)
    if not value:
        raise ResultsError(f"`{name}` is empty")
    return value


def _count(document: dict[str, Any], name: str) -> int:
    value = document.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ResultsError(f"`{name}` is {_short(value)}, not a count")
    return value


def _optional(document: dict[str, Any], name: str, read: Callable[[dict[str, Any], str], T]) -> T | None:
    return None if document.get(name) is None else read(document, name)


def _share(document: dict[str, Any], name: str) -> float:
    value = document.get(name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:  # type: ignore[arg-type, operator]
        raise ResultsError(f"`{name}` is {_short(value)}, not a share of 1")
    return float(value)  # type: ignore[arg-type]


def _interval(document: Any, name: str) -> Interval:
    if not isinstance(document, dict):
        raise ResultsError(f"`{name}` is {_short(document)}, not an object")
    try:
        value = _share(document, "value")
        low, high = (_optional(document, bound, _share) for bound in ("low", "high"))
    except ResultsError as error:
        raise ResultsError(f"`{name}`: {error}") from error
    if (low is None) != (high is None) or (low is not None and high is not None and low > high):
        raise ResultsError(f"`{name}`: {low} to {high} is no interval")
    return Interval(value, low, high)


def _figures(document: dict[str, Any], name: str) -> dict[str, Interval]:
    """Figures of an object by name; what else stands in it (the class of majority) is left out."""
    found = _get(document, name, dict)
    figures = {key: _interval(value, key) for key, value in found.items() if isinstance(value, dict)}
    if "accuracy" not in figures:
        raise ResultsError(f"`{name}` has no accuracy")
    return figures


def _class(document: Any) -> ClassResult:
    if not isinstance(document, dict):
        raise ResultsError(f"`per_class` holds {_short(document)}, not an object")
    recall = document.get("recall")
    return ClassResult(
        _text(document, "class"),
        None if recall is None else _interval(recall, "recall"),
        _optional(document, "auroc", _share),
    )


def _predictions(pairs: list[Any], classes: int) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for pair in pairs:
        counts = isinstance(pair, list) and len(pair) == 2 and all(type(each) is int for each in pair)
        if not counts or not 0 <= pair[1] < classes or pair[0] <= (found[-1][0] if found else -1):
            raise ResultsError(
                f"`predictions` holds {_short(pair)}; rows ascend, and classes are 0 to {classes - 1}"
            )
        found.append((pair[0], pair[1]))
    return tuple(found)


def _confusion(rows: list[Any], classes: int) -> tuple[tuple[int, ...], ...]:
    counts = all(
        isinstance(row, list)
        and len(row) == classes
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in row)
        for row in rows
    )
    if not counts or len(rows) not in (0, classes):
        raise ResultsError(f"`confusion` is not {classes} rows of {classes} counts")
    return tuple(tuple(row) for row in rows)
