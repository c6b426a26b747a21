"""Results: what is written is read, lines torn by a kill are none, and bad lines are named."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import surgrec
from surgrec.benchmark import main
from surgrec.evaluation.results import (
    ClassResult,
    Interval,
    Result,
    ResultsError,
    append_result,
    document_of,
    latest,
    provenance,
    read_results,
)

RESULT = Result(
    model="mae-vitb",
    dataset="cholec80",
    manifest_digest="ab" * 16,
    features_digest="cd" * 16,
    mode="probe-linear",
    n=9,
    m=10,
    groups=3,
    figures={"accuracy": Interval(0.6, 0.4, 0.8), "macro_f1": Interval(0.5)},
    baselines={"majority": {"accuracy": Interval(0.5, 0.3, 0.7)}},
    classes=(ClassResult("clip", Interval(0.75, 0.5, 1.0), 0.8), ClassResult("cut", None, None)),
    confusion=((6, 3), (0, 0)),
    trained_parameters=1538,
    options={"seed": 0},
    chosen={"lr": 0.1},
    date="2026-01-02T03:04:05+0000",
    versions={"torch": "2.11"},
    commit="abc+",
    predictions=tuple((row, row % 2) for row in range(9)),
    sampling={"clips": 1, "views": ["centre"], "geometry": {"frames": 16, "stride": 4, "size": 224}},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    other = replace(
        RESULT, model="other", val_is_test=True, confusion=(), trained_parameters=None, features_digest=""
    )
    append_result(path, document_of(RESULT))
    append_result(path, document_of(other) | {"val": [1, 2], "few_shot": None})
    assert read_results(path) == [RESULT, other]
    assert path.read_text().count("\n") == 2


def test_lines_of_a_probe_need_not_hold_all(tmp_path: Path) -> None:
    """What a line may lack, and what stands among its baselines and is no figure."""
    document = document_of(RESULT)
    left_out = ("confusion", "trained_parameters", "options", "chosen", "date", "versions", "commit")
    for name in (*left_out, "predictions"):
        del document[name]
    document["baselines"]["majority"]["class"] = "clip"
    append_result(tmp_path / "results.jsonl", document)
    (found,) = read_results(tmp_path / "results.jsonl")
    assert found == replace(
        RESULT,
        confusion=(),
        trained_parameters=None,
        options={},
        chosen={},
        date="",
        versions={},
        commit="",
        predictions=(),
    )


def test_a_torn_line_is_none_and_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, document_of(RESULT))
    whole = path.read_bytes()
    for end in (1, 40, len(whole) - 2):
        path.write_bytes(whole + whole[:end])
        assert read_results(path) == [RESULT]
    append_result(path, document_of(RESULT))
    assert path.read_bytes() == whole * 2
    path.write_bytes(whole[:-1])  # an editor took the last line end away
    assert read_results(path) == [RESULT]
    append_result(path, document_of(RESULT))
    assert path.read_bytes() == whole * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a result"),
        ({"format_version": 2}, "format version 2, this program reads 1"),
        ({"model": ""}, "`model` is empty"),
        ({"dataset": 3}, "`dataset` is 3, not a text"),
        ({"rows": {"test": {"read": 11, "of": 10}}}, "11 of 10 test clips"),
        ({"rows": {"test": {"read": 0, "of": 10}}}, "0 of 10 test clips"),
        ({"rows": {"test": {"read": True, "of": 10}}}, "`read` is True, not a count"),
        ({"rows": None}, "`rows` is missing, not an object"),
        ({"figures": {"macro_f1": {"value": 0.5}}}, "`figures` has no accuracy"),
        ({"figures": {"accuracy": {"value": 51.2}}}, "`accuracy`: `value` is 51.2, not a share of 1"),
        ({"figures": {"accuracy": {"value": 0.5, "low": 0.6, "high": 0.4}}}, "0.6 to 0.4 is no interval"),
        ({"figures": {"accuracy": {"value": 0.5, "low": 0.4}}}, "0.4 to None is no interval"),
        ({"confusion": [[1, 2, 3], [4, 5, 6]]}, "not 2 rows of 2 counts"),
        ({"confusion": [[6, 3], [0, -1]]}, "not 2 rows of 2 counts"),
        ({"confusion": [[6, 3], [0, 1]]}, "counts 10 clips, and 9 were scored"),
        ({"per_class": [{"recall": None}]}, "`class` is missing"),
        ({"predictions": [[0, 1]]}, "`predictions` are 1, and 9 clips were scored"),
        ({"predictions": [[0, 1], [0, 0]]}, "`predictions` holds [0, 0]; rows ascend"),
        ({"predictions": [[0, 2]]}, "`predictions` holds [0, 2]; rows ascend, and classes are 0 to 1"),
        ({"predictions": [[0, 1.0]]}, "`predictions` holds [0, 1.0]"),
        ({"predictions": [3]}, "`predictions` holds 3"),
    ],
)
def test_what_is_no_result_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "results.jsonl"
    document = document_of(RESULT) | change
    with pytest.raises(ResultsError, match=re.escape(message)):
        append_result(path, document)
    assert not path.exists()
    path.write_text(json.dumps(document_of(RESULT)) + "\n" + json.dumps(document) + "\n")
    with pytest.raises(ResultsError) as error:
        read_results(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert "delete the line" in str(error.value)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with pytest.raises(ResultsError, match="cannot be read"):
        read_results(path)
    for content in (b"no json\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"[1]\n"):
        path.write_bytes(content)
        with pytest.raises(ResultsError, match="line 1: "):
            read_results(path)
    document = document_of(RESULT)
    document["figures"]["accuracy"]["value"] = math.nan
    path.write_text(json.dumps(document) + "\n")
    with pytest.raises(ResultsError, match="NaN is no number"):
        read_results(path)
    path.write_text("")
    assert read_results(path) == []


def test_a_later_result_replaces_an_earlier_one() -> None:
    again = replace(RESULT, n=10, confusion=(), predictions=())
    others = [
        replace(RESULT, manifest_digest="ff"),
        replace(RESULT, mode="probe-knn"),
        replace(RESULT, options={"seed": 1}),
        replace(RESULT, sampling={**RESULT.sampling, "views": ["centre", "mirror"]}),
        replace(RESULT, model="other"),
    ]
    assert latest([RESULT, *others, again]) == [again, *others]


def test_provenance_is_this_program() -> None:
    found = provenance()
    assert set(found) == {"date", "versions", "commit"}
    assert found["versions"]["torch"]
    assert len(found["commit"].rstrip("+")) in (0, 40)
    assert Path(surgrec.__file__).exists()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """`surgrec.benchmark table`."""
    status = main(["table", *map(str, arguments)])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_tables_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page = tmp_path / "results.jsonl", tmp_path / "table.html"
    append_result(path, document_of(RESULT))
    append_result(path, document_of(replace(RESULT, model="other")))
    status, text, _ = run(capsys, path)
    assert status == 0
    assert text.count("| 9 of 10 |") == 2 + 1  # both, and the baseline
    assert "60.0 \\[40.0, 80.0\\]" in text
    assert run(capsys, path, "--form", "html", "--out", page) == (0, f"{page}: 2 results\n", "")
    assert page.read_text().lower().startswith("<!doctype html>")
    path.write_text("")
    status, _, error = run(capsys, path)
    assert status == 1
    assert "no results in" in error
    status, _, error = run(capsys, tmp_path / "none.jsonl")
    assert status == 1
    assert "none.jsonl: cannot be read" in error
