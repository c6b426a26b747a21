"""Prompts: wordings in plain files, orders of options, classes in words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgrec.evaluation.manifest import Row, SplitManifest
from surgrec.evaluation.registry_classes import readable_name, registry_words, words_of
from surgrec.evaluation.registry_table import DATASETS
from surgrec.vision_language.option_order import BASES, most_orders, orders_of
from surgrec.vision_language.prompt_set import PromptError
from surgrec.vision_language.prompts import SHIPPED, load_prompts, questions
from surgrec.vision_language.wording import letter_of

NAMED = [key for key, dataset in DATASETS.items() if dataset.class_names]


def manifest(dataset: str = "cholec80", classes: tuple[str, ...] = ()) -> SplitManifest:
    names = classes or DATASETS[dataset].class_names
    return SplitManifest(dataset, names, tuple(Row(f"{k}.mp4", 0, "test", str(k)) for k in range(20)))


def test_the_default_has_four_wordings_of_each_family() -> None:
    prompts = load_prompts("default")
    assert Counter(prompt.family for prompt in prompts.prompts) == {
        "neutral": 4,
        "expert": 4,
        "definitions": 4,
    }
    assert len({prompt.text for prompt in prompts.prompts}) == 12
    assert any(prompt.system for prompt in prompts.prompts)


@pytest.mark.parametrize("key", NAMED)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_set_can_be_asked_by_every_file(name: str, key: str) -> None:
    prompts, split = load_prompts(name), manifest(key)
    asked = list(questions(prompts, split, [3], permutations=1, seed=0, content_free=False))
    assert len(asked) == len(prompts.prompts)
    for question in asked:
        names = [question.text.find(line) for line in question.targets]
        assert -1 not in names
        assert sorted(question.order) == list(range(len(split.classes)))
        assert not set("{}") & set(question.text)
        assert len(set(question.targets)) == len(split.classes)


def test_named_options_and_the_release() -> None:
    (named, *_) = questions(
        load_prompts("default-names"), manifest(), [0], permutations=1, seed=0, content_free=False
    )
    assert set(named.targets) >= {"preparation", "clipping and cutting"}
    assert "A." not in named.text
    first, second = questions(
        load_prompts("release"), manifest(), [0], permutations=1, seed=0, content_free=False
    )
    assert first.order == second.order == tuple(range(7))
    assert "C. Clipping_Cutting" in first.text
    assert load_prompts("release").parser == "release"
    with pytest.raises(PromptError, match="its order is fixed: 1 to 1 are possible"):
        questions(load_prompts("release"), manifest(), [0], permutations=2, seed=0, content_free=False)


def test_row_by_row_and_content_free_in_every_order_that_occurred() -> None:
    prompts = load_prompts("default")
    asked = list(questions(prompts, manifest(), range(20), permutations=2, seed=0, content_free=True))
    of_rows, of_none = asked[: 20 * 12 * 2], asked[20 * 12 * 2 :]
    assert [question.row for question in of_rows] == [row for row in range(20) for _ in range(24)]
    assert {question.row for question in of_none} == {None}
    assert {(q.prompt, q.order) for q in of_rows} == {(q.prompt, q.order) for q in of_none}
    assert len(of_none) == len({(q.prompt, q.order) for q in of_none})
    by_row = {row: {q.prompt: [] for q in of_rows} for row in range(20)}  # type: ignore[var-annotated]
    for question in of_rows:
        by_row[question.row or 0][question.prompt].append(question.order)
    for orders in by_row.values():  # the same orders for every wording, so that answers can be compared
        assert len({tuple(each) for each in orders.values()}) == 1
    again = list(questions(prompts, manifest(), [7], permutations=2, seed=0, content_free=False))
    assert again == [question for question in of_rows if question.row == 7]
    other = list(questions(prompts, manifest(), range(20), permutations=2, seed=1, content_free=False))
    assert [q.order for q in other] != [q.order for q in of_rows]


@given(
    classes=st.integers(1, 30), row=st.integers(0, 10**6), seed=st.integers(0, 2**31), share=st.floats(0, 1)
)
def test_orders(classes: int, row: int, seed: int, share: float) -> None:
    count = max(1, round(share * most_orders(classes)))
    orders = orders_of(row, classes, count, seed)
    assert len(set(orders)) == count
    assert all(sorted(order) == list(range(classes)) for order in orders)
    if count >= classes:  # each class once at each position
        assert all(len(set(column)) == classes for column in zip(*orders[:classes], strict=True))
    with pytest.raises(ValueError, match="there are 1 to"):
        orders_of(row, classes, most_orders(classes) + 1, seed)


def test_few_orders_occur_and_none_is_favoured() -> None:
    drawn = Counter(orders_of(row, 5, 1, 0)[0] for row in range(4000))
    assert len(drawn) == BASES * 5 == most_orders(5)
    assert max(drawn.values()) < 2 * min(drawn.values())
    assert [most_orders(classes) for classes in (1, 2, 3, 4)] == [1, 2, 6, 16]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("phase_05_irrigation-and-aspiration", "irrigation and aspiration"),
        ("04_blunt_dissection", "blunt dissection"),
        ("CalotTriangleDissection", "calot triangle dissection"),
        ("G11", "G11"),
        ("no_polyps", "no polyps"),
        ("a | b", "a or b"),
        ("Ileocecal valve", "ileocecal valve"),
        ("12", "12"),
        ("___", "___"),
    ],
)
def test_readable_names(raw: str, name: str) -> None:
    assert readable_name(raw) == name


@pytest.mark.parametrize("key", NAMED)
def test_the_registry_defines_every_class(key: str) -> None:
    words, classes = words_of(key, DATASETS[key].class_names, {})
    assert words.subject
    assert all(each.name and each.definition for each in classes)
    assert key in registry_words()


def test_letters() -> None:
    assert [letter_of(k) for k in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "extends: default\nfamilies: [definitions]\n"
        "prompts:\n"
        "  - {name: definitions-plain, family: definitions, text: 'Say {subject}: {options}',"
        " option: {letters: '{letter} {name} {definition}'}, reply: {letters: x}}\n"
        "datasets:\n"
        "  mine: {subject: kind, domain: toys, classes: {Left: {name: '{reply}', definition: to the left},"
        " right: {definition: to the right}}}\n"
        "  cholec80: {classes: {Cleaning: {name: tidying up}}}\n"
    )
    prompts = load_prompts(path)
    assert [prompt.name for prompt in prompts.prompts] == [
        "definitions-criteria", "definitions-expert", "definitions-first", "definitions-plain"
    ]  # fmt: skip
    *_, last = questions(
        prompts, manifest("mine", ("left", "right")), [0], permutations=1, seed=0, content_free=False
    )
    assert last.text.startswith("Say kind: ")
    assert "{reply} to the left" in last.text  # what stands in a name is not filled in
    *_, last = questions(prompts, manifest(), [0], permutations=1, seed=0, content_free=False)
    assert "tidying up the liver bed is rinsed" in last.text


def test_the_data_set_in_the_system_message_and_the_reply(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "prompts:\n"
        "  - name: a\n"
        "    system: You know {domain}.\n"
        '    text: \'{options} {reply} As JSON: {"answer": "A"}\'\n'
        "    reply: {letters: 'The letter of one {subject}.'}\n"
        "datasets: {mine: {subject: kind, domain: '{toys}'}}\n"
    )
    (asked,) = questions(
        load_prompts(path),
        manifest("mine", ("one", "two")),
        [0],
        permutations=1,
        seed=0,
        content_free=False,
    )
    assert asked.system == "You know {toys}."
    assert asked.text.endswith('The letter of one kind. As JSON: {"answer": "A"}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a group of entries"),
        ("prompts: [", "is not YAML"),
        ("prompts: []", "holds no prompt"),
        ("style: numbers", "'numbers'; it may be 'letters', 'names'"),
        ("prompts: [{name: a, text: 'x {options} {reply}'}]", "needs name, text, and option and reply"),
        (
            "prompts: [{name: a, text: '{options} {answer}', reply: {letters: x}}]",
            r"text has \{answer\}; known are",
        ),
        ("prompts: [{name: a, text: 'x', reply: {letters: x}}]", r"must hold \{options\}"),
        (
            "prompts: [{name: a, text: '{options}', option: {letters: '{name}'}, reply: {letters: x}}]",
            r"an option \{letter\}",
        ),
        (
            "prompts: [{name: a, text: '{options}', system: 'For {options}', reply: {letters: x}}]",
            r"system has \{options\}; known are subject, domain",
        ),
        (
            "prompts: [{name: a, text: '{options}', reply: {letters: 'One {letter}'}}]",
            r"reply has \{letter\}; known are",
        ),
        (
            "prompts: [{name: a, text: 'Which { subject }? {options}', reply: {letters: x}}]",
            r"text has '\{ subject \}\?', which is no field",
        ),
        (
            "prompts: [{name: a, text: 'Which {subject? {options}', reply: {letters: x}}]",
            r"text has '\{subject\? \{', which is no field",
        ),
        ("extends: nothing", "nothing: no such file of prompts"),
        ("extends: bad.yaml", "extends itself"),
        ("extends: default\nprompt: []", "has no entry prompt"),
        (
            "extends: default\ndatasets: {a: {classes: {x: {nam: y}}}}",
            "datasets.a.classes.x has no entry nam",
        ),
        ("extends: default\ndatasets: {a: {classes: {X-1: {}, x1: {}}}}", "or that of another class"),
        ("extends: default\ndatasets: []", "must be a group of data sets"),
        ("extends: default\ndatasets: {a: {subject: 3}}", "datasets.a.subject must be a text"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(PromptError, match=message) as caught:
        load_prompts(path)
    assert "bad.yaml" in str(caught.value) or "nothing" in str(caught.value)


def test_classes_that_cannot_be_shown(tmp_path: Path) -> None:
    def ask(split: SplitManifest, name: str = "default") -> None:
        questions(load_prompts(name), split, [0], permutations=1, seed=0, content_free=False)

    with pytest.raises(PromptError, match=r"there is none of 'one', 'two'; .* take --prompts default-plain"):
        ask(manifest("mine", ("one", "two")))
    ask(manifest("mine", ("one", "two")), "default-plain")
    with pytest.raises(PromptError, match="the classes 'a_b' and '01_aB' are both shown as 'a b'"):
        ask(manifest("mine", ("a_b", "01_aB")), "default-plain")
    # A letter tells them apart, their names do not.
    names_only = tmp_path / "names.yaml"
    names_only.write_text("extends: default-plain\nstyle: names\n")
    for classes, message in (
        (("grade 1", "grade 1+"), "differ in signs alone"),
        (("+", "positive"), "'\\+' is shown as '\\+', which has no letter"),
    ):
        ask(manifest("mine", classes), "default-plain")
        with pytest.raises(PromptError, match=message):
            ask(manifest("mine", classes), str(names_only))
    with pytest.raises(PromptError, match="are both shown as"):  # one letter, written in two ways
        ask(manifest("mine", ("\u00e9", "e\u0301")), "default-plain")
