"""The store: lines are whole or not there, the last one of a question counts, and hostile ones are
refused."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgrec.vision_language import store as store_module
from surgrec.vision_language.records import Asked, Question, Reply, Shown
from surgrec.vision_language.store import About, AnswerStore, read_answers
from surgrec.vision_language.stored_lines import StoreError, asked_of, line_of

ABOUT = About("digits", "d" * 32, "test", "api:m", {"image": "jpeg", "look.long_side": 768})
SHOWN = Shown((12, 30), (0.48, 1.2), 2, 64, 80, "e" * 32)


def question_of(row: int | None = 0, **more: Any) -> Question:
    given = {"prompt": "plain", "style": "letters", "order": (1, 0), "system": "", "text": "What?"}
    return Question(row, **(given | {"targets": ("A", "B")} | more))


def asked_at(row: int, text: str = "B") -> Asked:
    return Asked(question_of(row), "generate", Reply(text, (), (), "stop", 7, 1), shown=SHOWN)


TEXTS = st.text(max_size=20)
COUNTS = st.integers(0, 2**40)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
QUESTIONS = st.builds(
    Question,
    st.none() | COUNTS,
    TEXTS,
    st.sampled_from(["letters", "names"]),
    st.lists(COUNTS, max_size=4).map(tuple),
    TEXTS,
    TEXTS,
    st.lists(TEXTS, max_size=4).map(tuple),
)
REPLIES = st.builds(
    Reply,
    TEXTS,
    st.lists(NUMBERS, max_size=4).map(tuple),
    st.lists(COUNTS, max_size=4).map(tuple),
    TEXTS,
    st.none() | COUNTS,
    st.none() | COUNTS,
)
WAYS = st.sampled_from(["generate", "options"])
ASKED = st.builds(Asked, QUESTIONS, WAYS, REPLIES, shown=st.none() | st.just(SHOWN)) | st.builds(
    Asked, QUESTIONS, WAYS, st.none(), TEXTS.filter(bool), st.booleans(), st.none() | st.just(SHOWN)
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ASKED, TEXTS, st.floats(0, 1e6))
def test_a_line_and_back(asked: Asked, key: str, seconds: float) -> None:
    line = line_of(key, seconds, asked)
    assert line.isascii()
    assert line.count("\n") == 1
    assert asked_of(json.loads(line)) == (key, seconds, asked)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.integers(0, 10_000))
def test_a_store_cut_anywhere_goes_on(tmp_path: Path, cut: int) -> None:
    """Whole lines count, a torn one is cut off, and each question is there once in the end."""
    path = tmp_path / "answers.jsonl"
    path.unlink(missing_ok=True)
    with AnswerStore(path, ABOUT) as store:
        for row in range(5):
            store.add(asked_at(row), f"key{row}")
    content = path.read_bytes()
    head = content.index(b"\n") + 1
    cut = head + cut % (len(content) - head + 1)
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n") - 1
    assert read_answers(path) == (ABOUT, [asked_at(row) for row in range(whole)])
    with AnswerStore(path, ABOUT) as store:
        left = [row for row in range(5) if not store.settled(question_of(row), "generate", f"key{row}")]
        assert left == list(range(whole, 5))
        for row in left:
            store.add(asked_at(row), f"key{row}")
    assert read_answers(path)[1] == [asked_at(row) for row in range(5)]


def test_the_last_line_of_a_question_counts(tmp_path: Path) -> None:
    path = tmp_path / "a" / "answers.jsonl"
    failed = Asked(question_of(0), "generate", None, "timeout: 3 s", True, SHOWN)
    with AnswerStore(path, ABOUT) as store:
        store.add(failed, "k0")
        assert not store.settled(question_of(0), "generate", "k0")
        store.add(asked_at(1), "k1")
        store.add(asked_at(0, "C"), "k0")
        assert store.settled(question_of(0), "generate", "k0")
        # The other way is another question.
        assert not store.settled(question_of(0), "options", "k0")
    assert read_answers(path)[1] == [asked_at(0, "C"), asked_at(1)]


def test_what_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, ABOUT) as store:
        for row, (failure, passes, settled) in enumerate(
            [
                ("context overflow: 5000 tokens", False, True),
                ("clip unreadable: no such file", False, False),
                ("server error: status 500", True, False),
            ]
        ):
            store.add(Asked(question_of(row), "generate", None, failure, passes), f"k{row}")
            assert store.settled(question_of(row), "generate", f"k{row}") == settled
            # A clip or a wording that has changed is asked anew where there was no answer.
            assert not store.settled(question_of(row), "generate", "other")
        size = path.stat().st_size
        store.add(Asked(question_of(1), "generate", None, "clip unreadable: no such file", False), "k1")
        assert path.stat().st_size == size
        store.add(Asked(question_of(1), "generate", None, "clip unreadable: damaged", False), "k1")
        assert path.stat().st_size > size


def test_answers_of_another_wording_or_video_are_refused(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "answers.jsonl", ABOUT) as store:
        store.add(asked_at(3), "k")
        with pytest.raises(
            StoreError, match="prompt 'plain' of row 3 was answered already, and its wording has"
        ):
            store.settled(question_of(3, text="Why?"), "generate", "other")
        with pytest.raises(StoreError, match="and the video has changed since; choose another --out"):
            store.settled(question_of(3), "generate", "other")


def test_two_runs_at_a_time_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, ABOUT), pytest.raises(StoreError, match="another run is writing it"):
        AnswerStore(path, ABOUT).__enter__()
    with AnswerStore(path, ABOUT):
        pass


def test_threads_add_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, ABOUT) as store:

        def add(first: int) -> None:
            for row in range(first, first + 50):
                store.add(asked_at(row, "long " * 300), f"k{row}")

        threads = [threading.Thread(target=add, args=(50 * k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(each.question.row or 0 for each in read_answers(path)[1]) == list(range(200))


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    write = os.write

    def half_then_full(descriptor: int, data: bytes) -> int:
        if len(data) < 200:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) - 100])

    with AnswerStore(path, ABOUT) as store:
        store.add(asked_at(0), "k0")
        with monkeypatch.context() as patch:
            patch.setattr(store_module.os, "write", half_then_full)
            with pytest.raises(OSError, match="No space left") as caught:
                store.add(asked_at(1), "k1")
            assert caught.value.filename == str(path)
        assert not store.settled(question_of(1), "generate", "k1")
    assert read_answers(path)[1] == [asked_at(0)]


def test_files_that_are_no_store(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerStore(path, ABOUT) as store:
        store.add(asked_at(0), "k0")
    head, line = path.read_bytes().splitlines(keepends=True)
    document = json.loads(line)

    def changed(**more: Any) -> bytes:
        return json.dumps(document | more).encode() + b"\n"

    question = document["question"]
    for content, text in (
        (b"text\n" + line, "line 1: Expecting value"),
        (b"{}\n", "not a store of answers"),
        (b'{"format": "surgrec-result"}\n', "not a store of answers"),
        (
            head.replace(b'"format_version": 1', b'"format_version": 9'),
            "format version 9, this program reads 1",
        ),
        (head.replace(b'"test"', b"3"), "line 1: `split` is 3, not a str"),
        (b"torn", "holds no whole line"),
        (head + b"\xff\xfe\n" + line, "line 2: 'utf-8' codec"),
        (head + b"[" * 100_000 + b"\n", "line 2: "),
        (head + b"[]\n", "line 2: `line` is no object"),
        (head + changed(way="sing"), "line 2: `way` is 'sing'; expected generate or options"),
        (head + changed(reply=None), "line 2: a line has a reply or a failure"),
        (head + changed(failure="x"), "line 2: a line has a reply or a failure"),
        (head + changed(question=question | {"row": -1}), "`row` is -1, not a count"),
        (head + changed(question=question | {"row": True}), "`row` is True, not a count"),
        (head + changed(question=question | {"order": "10"}), "`order` is '10', not a list"),
        (head + changed(question=question | {"targets": [1]}), "`targets` holds 1, not a text"),
        (head + changed(reply={"text": "B", "log_likelihoods": [1e999], "tokens": []}), "not a number"),
        (head + changed(seconds="now"), "`seconds` is 'now', not a number"),
        (head + changed(passes=0), "`passes` is 0, not a bool"),
    ):
        path.write_bytes(content)
        with pytest.raises(StoreError) as caught:
            read_answers(path)
        assert text in str(caught.value)
        assert str(path) in str(caught.value)
        with pytest.raises(StoreError):
            AnswerStore(path, ABOUT).__enter__()
        assert path.read_bytes() == content
    with pytest.raises(StoreError, match="cannot be read"):
        read_answers(tmp_path / "nothing")
    with pytest.raises(StoreError, match="cannot be read"):
        read_answers(tmp_path)
