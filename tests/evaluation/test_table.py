"""Tables of results: every figure where it belongs, and names that mean harm inert in each format."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest

from surgrec.evaluation.published import MEAN, MODELS, TOP1, published_name
from surgrec.evaluation.results import ClassResult, Interval, Result
from surgrec.evaluation.table import FORMATS, make_table, overview, render

HOSTILE = "<script>document.title='owned'</script>|$\\input{x}\n=1+1"


def result(model: str = "mae", dataset: str = "moving-digits-motion", **changes: object) -> Result:
    made = Result(
        model=model,
        dataset=dataset,
        manifest_digest="0123456789abcdef" * 2,
        features_digest="fe" * 16,
        mode="probe-linear",
        n=9,
        m=10,
        groups=4,
        figures={"accuracy": Interval(0.6, 0.4, 0.8), "macro_f1": Interval(0.55), "odd_one": Interval(0.25)},
        baselines={
            "majority": {"accuracy": Interval(0.5, 0.3, 0.7)},
            "source_lookup": {"accuracy": Interval(0.1)},
        },
        classes=(ClassResult("left", Interval(0.75, 0.5, 1.0), 0.8), ClassResult("right", None, None)),
        confusion=((6, 3), (0, 0)),
        trained_parameters=1538,
        options={"seed": 0},
        chosen={"lr": 0.1},
        date="2026-01-02T03:04:05+0000",
        versions={"torch": "2.11"},
        commit="abc",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def cells(text: str) -> list[list[str]]:
    """Of the tables of a Markdown text."""
    rows = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_published_numbers_have_the_published_means() -> None:
    assert len(TOP1) == 16
    for number, mean in enumerate(MEAN):
        assert sum(row[number] for row in TOP1.values()) / 16 == pytest.approx(mean, abs=0.006)
    assert (published_name("hyper-kvasir"), published_name("SAR_RARP50")) == ("Hyper-Kvasir", "SAR-RARP50")
    assert published_name("pitvis") is None


def test_markdown() -> None:
    head, *rows = cells(render([result()], "markdown"))
    assert head == ["Model", "Evaluation", "Test clips", "Groups", "Top-1", "Macro F1", "odd one"]
    assert rows == [
        ["mae", "probe-linear", "9 of 10", "4", "60.0 \\[40.0, 80.0\\]", "55.0", "25.0"],
        ["always the most frequent class", "baseline", "9 of 10", "4", "50.0 \\[30.0, 70.0\\]", "", ""],
        ["look-up of the source", "baseline", "9 of 10", "4", "10.0", "", ""],
    ]


def test_sections_of_each_split_and_an_overview() -> None:
    """The digest, not the name, tells splits apart."""
    results = [
        result(),
        result("jepa"),
        result(manifest_digest="ff" * 16, figures={"accuracy": Interval(0.7)}),
        result(dataset="cholec80"),
    ]
    table = make_table(results)
    names, rows = overview(table)
    assert names == ["mae, probe-linear", "jepa, probe-linear"]
    assert [[figure and figure.value for figure in row] for row in rows] == [
        [0.6, 0.6],
        [0.7, None],
        [0.6, None],
    ]
    text = render(results, "markdown")
    assert text.count("\n## ") == 3
    assert "(split ffffffff)" in text
    # One line for both models, as their clips are the same.
    assert len(table.sections[0].of("baseline")) == 2
    assert [line.name for line in table.sections[2].of("published")] == list(MODELS)
    assert table.sections[0].of("published") == []
    assert ["SurgRec-JEPA", "arXiv 2603.29966, Table 2", "", "", "31.14", "", ""] in cells(text)


def test_baselines_on_other_clips_are_lines_of_their_own() -> None:
    other = result("jepa", n=8, confusion=(), baselines={"majority": {"accuracy": Interval(0.4)}})
    (section,) = make_table([result(), other]).sections
    assert [(line.name, line.n) for line in section.of("baseline")] == [
        ("always the most frequent class", 9),
        ("always the most frequent class", 8),
        ("look-up of the source", 9),
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_options_tell_lines_apart_and_repeats_are_told(form: str) -> None:
    results = [
        result(options={"seed": 0, "blocks": 1}),
        result(options={"seed": 0, "blocks": 4}),
        result(options={"seed": 0, "blocks": 4}, figures={"accuracy": Interval(0.625)}),
    ]
    text = render(results, form)
    assert "probe-linear, blocks 1" in text.replace("{-}", "-")
    assert "probe-linear, blocks 4" in text.replace("{-}", "-")
    assert "62.5" in text or "0.625" in text
    assert ("Not shown: 1 earlier result" in text) == (form != "csv")


@pytest.mark.parametrize("form", FORMATS)
def test_views_and_clips_are_always_named_and_replace_nothing(form: str) -> None:
    plain = {"clips": 1, "views": ["centre"], "geometry": {"pictures": 8}}
    mirrored = plain | {"clips": 3, "views": ["centre", "mirror"]}
    alone = render([result(sampling=mirrored)], form).replace("{-}", "-")
    assert "probe-linear, clips 3, views" in alone
    assert "mirror" in alone
    assert "probe-linear, clips" not in render([result(sampling=plain)], form).replace("{-}", "-")
    results = [result(sampling=plain), result(sampling=mirrored, figures={"accuracy": Interval(0.7)})]
    (section,) = make_table(results).sections
    assert [line.mode for line in section.of("measured")] == [
        'probe-linear, clips 1, views ["centre"]',
        'probe-linear, clips 3, views ["centre", "mirror"]',
    ]
    assert "Not shown" not in render(results, form)
    more = [result(sampling=plain), result(sampling=plain | {"geometry": {"pictures": 16}})]
    modes = [line.mode for line in make_table(more).sections[0].of("measured")]
    assert modes == [f'probe-linear, geometry {{"pictures": {count}}}' for count in (8, 16)]


@pytest.mark.parametrize("form", FORMATS)
def test_what_was_chosen_on_test_is_said(form: str) -> None:
    text = render([result(val_is_test=True), result("jepa")], form).replace("{-}", "-")
    assert "probe-linear, chosen on test" in text
    modes = [line.mode for line in make_table([result("jepa")]).sections[0].of("measured")]
    assert modes == ["probe-linear"]


def test_fine_tuning_names_its_views_once() -> None:
    found = [
        result(mode="finetune-full", options={"test_views": views}, sampling={"clips": 1, "views": views})
        for views in (["centre"], ["centre", "mirror"])
    ]
    assert [line.mode for line in make_table(found).sections[0].of("measured")] == [
        'finetune-full, views ["centre"]',
        'finetune-full, views ["centre", "mirror"]',
    ]


def test_csv_is_exact() -> None:
    rows = list(csv.DictReader(io.StringIO(render([result(dataset="cholec80")], "csv"))))
    assert len(rows) == 3 + 2 + len(MODELS)
    first = rows[0]
    assert (first["figure"], first["value"], first["low"], first["high"]) == ("accuracy", "0.6", "0.4", "0.8")
    assert (first["scored"], first["of"], first["groups"]) == ("9", "10", "4")
    assert (first["kind"], first["trained_parameters"], first["commit"]) == ("measured", "1538", "abc")
    assert {row["kind"] for row in rows} == {"measured", "baseline", "published"}
    assert (rows[-1]["name"], float(rows[-1]["value"])) == ("SurgRec-JEPA", pytest.approx(0.3114))


def test_latex_is_balanced_and_has_as_many_cells_in_each_line() -> None:
    text = render([result(dataset="cholec80", model="a_b & 50% #1 {x} ~^")], "latex")
    assert r"a\_b \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{}" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + 1 + 2 + 7
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {6}
    assert r"\begin{tabular}{llrrrrr}" in text
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")


@pytest.mark.parametrize("form", FORMATS)
def test_names_that_mean_harm(form: str) -> None:
    hostile = result(
        HOSTILE,
        HOSTILE,
        mode=HOSTILE,
        classes=(ClassResult(HOSTILE, Interval(0.5), None), ClassResult("=cmd\u202e", None, None)),
        options={HOSTILE: HOSTILE},
        chosen={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        commit=HOSTILE,
        date=HOSTILE,
        figures={"accuracy": Interval(0.5), HOSTILE: Interval(0.5)},
        baselines={HOSTILE: {"accuracy": Interval(0.5)}},
    )
    text = render([hostile], form)
    assert "\u202e" not in text
    if form == "html":
        assert "<script" not in text
        assert "owned" in text
    elif form == "markdown":
        assert not re.search(r"(?<!\\)<", text)
        assert {len(row) for row in cells(text)} == {6}
    elif form == "latex":
        assert "\\input" not in text
        assert not re.search(r"(?<!\\)\$", text)
    else:
        for row in csv.reader(io.StringIO(render([replace(hostile, model="=1+1", dataset="@x")], form))):
            assert not any(cell.startswith(("=", "@", "+")) for cell in row)
            assert all("\n" not in cell for cell in row)


def test_the_same_results_have_the_same_text() -> None:
    for form in FORMATS:
        assert render([result()], form) == render([result()], form)


def test_nothing_to_render() -> None:
    with pytest.raises(ValueError, match="no result to show"):
        render([], "html")
    with pytest.raises(ValueError, match="format 'pdf'; expected markdown, latex, csv, html"):
        render([result()], "pdf")
