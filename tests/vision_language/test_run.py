"""Asking, end to end: what is asked, answered, kept, and not asked again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from surgrec.evaluation.manifest import Row, SplitManifest, read_manifest, write_manifest
from surgrec.vision_language.backend import BackendError
from surgrec.vision_language.row_choice import choose_rows
from surgrec.vision_language.run_setup import check_options, open_backend
from surgrec.vision_language.store import read_answers
from surgrec.vlm import main

QUESTIONS = 8 * 2
"""Rows of test and prompts; in each of two ways, and two prompts of the grey picture in one way."""
UNREADABLE = 2 * 2
"""Of QUESTIONS."""
IMPORTS = ("surgrec.vision_language.run", "surgrec.vision_language.endpoint")
"""What the command imports before its first question."""


def arguments(config: Any, *more: str) -> list[str]:
    """A command line."""
    given = [
        "run",
        "--manifest",
        str(config.manifest),
        "--data-root",
        str(config.data_root),
        "--workers",
        "1",
    ]
    return [*given, "--model", config.model, "--out", str(config.out), "--prompts", config.prompts, *more]


def at(server: Any, *more: str) -> tuple[str, ...]:
    """Options of an endpoint that is asked without long waits."""
    return ("--endpoint.url", server.url, "--endpoint.backoff", "0.01", *more)


def test_a_tiny_model_end_to_end(
    clips: Any, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = clips.config(tmp_path, f"hf:{tiny_folder}")
    given = arguments(config, "--local.device", "cpu", "--local.batch", "3", "--max-new-tokens", "4")
    assert main(given) == 0
    printed = capsys.readouterr()
    readable = QUESTIONS - UNREADABLE
    orders = len(
        {each.question.order for each in read_answers(config.out)[1] if each.question.row is not None}
    )
    grey = 2 * orders
    total = 2 * QUESTIONS + grey
    assert f"{2 * readable + grey} of {total} questions are answered" in printed.out
    assert "unreadable: gone.mp4: no such file" in printed.err
    assert "8 questions without an answer: clip unreadable" in printed.err
    about, asked = read_answers(config.out)
    manifest = read_manifest(config.manifest)
    assert (about.manifest_digest, about.split, about.model) == (manifest.digest, "test", config.model)
    assert about.settings["max_new_tokens"] == 4
    assert about.settings["look.kind"] == "middle"
    assert len(asked) == total
    for each in asked:
        row = each.question.row
        if row is not None and manifest.rows[row].group == "lost":
            assert each.reply is None
            assert each.failure.startswith("clip unreadable: no")
            assert not each.passes
            continue
        assert each.reply is not None
        assert each.shown is not None
        assert each.reply.prompt_tokens
        if each.way == "generate":
            assert row is not None
            assert 1 <= (each.reply.reply_tokens or 0) <= 4
            assert each.reply.log_likelihoods == ()
        else:
            assert len(each.reply.log_likelihoods) == 3
            assert max(each.reply.log_likelihoods) < 0
            assert each.reply.tokens == (1, 1, 1)
        if row is None:
            assert (each.shown.frames, each.shown.height, each.shown.width) == ((), 576, 768)
        else:
            # Spans are frames 0 to 24 and 25 to 74 of 25 a second: their middles.
            assert each.shown.frames == ((12,) if manifest.rows[row].start == 0 else (50,))
            assert each.shown.seconds == (each.shown.frames[0] / 25,)
    before = config.out.read_bytes()
    assert main(given) == 0
    assert "0 were asked now" in capsys.readouterr().out
    assert config.out.read_bytes() == before


def test_a_server_end_to_end(
    clips: Any, scripted: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(payload: dict[str, Any], number: int) -> Any:
        return scripted.Action(body=scripted.good(payload).body, wait=0.05)

    with scripted.serve(script) as server:
        config = clips.config(tmp_path, "api:gpt-any")
        assert main(arguments(config, *at(server), "--endpoint.concurrency", "3")) == 0
        asked = read_answers(config.out)[1]
        with_reply = [each for each in asked if each.reply is not None]
        assert len(server.seen) == len(with_reply) == len(asked) - 2 * UNREADABLE
        assert 1 < server.most_at_a_time <= 3
        for each in with_reply:
            assert each.reply is not None
            if each.way == "generate":
                assert (each.reply.text, each.reply.finish, each.reply.prompt_tokens) == ("B", "stop", 77)
            else:
                # 1/20 for the letter, and (k + 1)/200 with a space before it.
                shares = [0.05 + (k + 1) / 200 for k in range(3)]
                assert [round(2.718281828459045**each, 9) for each in each.reply.log_likelihoods] == [
                    pytest.approx(share) for share in shares
                ]
        assert main(arguments(config, *at(server))) == 0
        assert len(server.seen) == len(with_reply)
    capsys.readouterr()


def test_what_failed_is_asked_again_by_the_next_run(
    clips: Any,
    scripted: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And only that; the key is written nowhere."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-77")
    down, overflow = True, b'{"code": "context_length_exceeded"}'

    def script(payload: dict[str, Any], number: int) -> Any:
        expert = payload["messages"][0]["role"] == "system"
        if expert and "A. left" in scripted.text_of(payload):
            return scripted.Action(400, overflow)
        return scripted.Action(500, b"key sk-secret-77") if expert and down else scripted.good(payload)

    with scripted.serve(script) as server:
        config = clips.config(tmp_path, "api:m")
        given = arguments(config, *at(server), "--ways", "generate", "--endpoint.retries", "0")
        assert main(given) == 1
        errors = capsys.readouterr().err
        asked = read_answers(config.out)[1]
        long = sum(each.failure.startswith("context overflow") for each in asked)
        failed = sum(each.passes for each in asked)
        assert min(long, failed) > 0
        assert long + failed == 6
        assert f"{failed} questions without an answer: server error" in errors
        assert f"{long} questions without an answer: context overflow" in errors
        seen, down = len(server.seen), False
        assert main(given) == 0
        assert len(server.seen) - seen == failed
        again = read_answers(config.out)[1]
        assert len(again) == len(asked)
        assert not any(each.passes for each in again)
        assert {header["Authorization"] for header in server.headers} == {"Bearer sk-secret-77"}
        assert b"secret" not in config.out.read_bytes()
        assert "secret" not in errors + capsys.readouterr().err


def test_a_server_that_is_not_there(
    clips: Any, scripted: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted.serve(lambda payload, number: scripted.good(payload)) as server:
        pass
    config = clips.config(tmp_path, "api:m")
    given = arguments(config, *at(server), "--endpoint.retries", "1", "--endpoint.concurrency", "2")
    assert main(given) == 1
    assert "requests have failed, the last one by: connection: " in capsys.readouterr().err
    assert all(each.passes for each in read_answers(config.out)[1])


def test_kill_and_resume_repeat_no_request(
    clips: Any, scripted: ModuleType, warm_start: Callable[..., Any], tmp_path: Path
) -> None:
    """The server goes silent at the tenth request; the run is killed there, twice."""
    silent = [9, 20]

    def script(payload: dict[str, Any], number: int) -> Any:
        return scripted.Action(hang=True) if number in silent else scripted.good(payload)

    with scripted.serve(script) as server:
        config = clips.config(tmp_path, "api:m")
        given = arguments(config, *at(server), "--endpoint.concurrency", "1")
        for stop in silent:
            run = warm_start("surgrec.vlm", *given, imports=IMPORTS)
            try:
                wait_for(lambda stop=stop: len(server.seen) > stop)
            finally:
                run.kill()
                run.wait(20)
            assert len(server.answered) == stop - silent.index(stop)
            with config.out.open("ab") as file:
                file.write(b'{"key": "torn')
        assert main(given) == 0
        asked = read_answers(config.out)[1]
        answered = Counter(json.dumps(payload, sort_keys=True) for payload in server.answered)
        assert len(server.answered) == sum(each.reply is not None for each in asked) == len(server.seen) - 2
        assert all(line for line in config.out.read_text().splitlines())
        # Clips look different, so that no two requests are the same.
        assert set(answered.values()) == {1}


def test_interrupt(clips: Any, scripted: ModuleType, tmp_path: Path) -> None:
    """Ctrl-C while the server is silent ends at once, and keeps what was answered."""

    def script(payload: dict[str, Any], number: int) -> Any:
        return scripted.Action(hang=True) if number >= 5 else scripted.good(payload)

    with scripted.serve(script) as server:
        config = clips.config(tmp_path, "api:m")
        command = [sys.executable, "-m", "surgrec.vlm", *arguments(config, *at(server))]
        run = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        try:
            wait_for(lambda: len(server.seen) > 12 and len(server.answered) == 5)
            time.sleep(0.2)
            run.send_signal(signal.SIGINT)
            _, errors = run.communicate(timeout=20)
        finally:
            run.kill()
            run.wait()
        assert run.returncode == 130
        assert "stopped; what is answered is kept" in errors
        assert "Traceback" not in errors
        assert sum(each.reply is not None for each in read_answers(config.out)[1]) == 5


def wait_for(there: Any) -> None:
    """Until it is so, 300 s at most: a process may start slowly on a busy machine."""
    end = time.monotonic() + 300
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_dry_run_asks_nothing(
    clips: Any, tiny_folder: Path, scripted: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted.serve(lambda payload, number: scripted.good(payload)) as server:
        config = clips.config(tmp_path, "api:m")
        given = arguments(config, *at(server), "--ways", "generate")
        assert main([*given, "--dry-run"]) == 0
        assert server.seen == []
        assert not config.out.exists()
        printed = capsys.readouterr().out
        assert "12 of 16 questions would be asked of api:m, about 6 clips, with 12 pictures" in printed
        assert "2 clips cannot be read" in printed
        assert "tokens of the prompts: not known" in printed
        assert "tokens that the model writes: at most 192" in printed
        assert "time: not known" in printed
        # What was answered tells tokens and time.
        assert main([*given, "--limit", "4"]) == 0
        seen = len(server.seen)
        assert main([*arguments(config, *at(server), "--permutations", "3"), "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert "by those of" in printed
        assert len(server.seen) == seen
    local = clips.config(tmp_path, f"hf:{tiny_folder}", out=tmp_path / "local.jsonl")
    assert main([*arguments(local, "--local.device", "cpu", "--ways", "generate"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    # The counts of the run itself, see below.
    assert main([*arguments(local, "--local.device", "cpu", "--ways", "generate")]) == 0
    replies = [each.reply for each in read_answers(local.out)[1] if each.reply]
    tokens = sum(reply.prompt_tokens or 0 for reply in replies)
    assert f"tokens of the prompts: about {tokens:,}, by those of all prompts" in printed


def test_time_is_told_by_the_store(
    clips: Any, scripted: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = 0.1

    def script(payload: dict[str, Any], number: int) -> Any:
        made = scripted.good(payload)
        return scripted.Action(body=made.body, wait=slow)

    with scripted.serve(script) as server:
        config = clips.config(tmp_path, "api:m")
        assert main(arguments(config, *at(server), "--endpoint.concurrency", "1")) == 0
        capsys.readouterr()
        assert main([*arguments(config, *at(server), "--permutations", "3"), "--dry-run"]) == 0
        printed = capsys.readouterr().out
        asked = int(printed.split(" of ")[0].replace(",", ""))
        seconds = float(printed.split("time: about ")[1].split(" s")[0])
        assert slow * asked <= seconds + 1
        assert seconds <= 3 * slow * asked


def test_limit_takes_groups_in_turn() -> None:
    rows = [(number, Row("a.mp4", 0, "test", f"g{number % 5}")) for number in range(40)]
    for seed in (0, 1):
        before: set[int] = set()
        for limit in (1, 5, 7, 20, 39, 40, 99):
            chosen = choose_rows(rows, limit, seed)
            numbers = [number for number, _ in chosen]
            assert numbers == sorted(numbers)
            assert len(numbers) == min(limit, 40)
            counts = Counter(row.group for _, row in chosen)
            assert max(counts.values()) - min(counts.get(f"g{k}", 0) for k in range(5)) <= 1
            assert before <= set(numbers)
            before = set(numbers)
    assert choose_rows(rows, 10, 0) != choose_rows(rows, 10, 1)


def test_a_wording_that_changed_is_refused(
    clips: Any, scripted: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "own.yaml"
    text = Path(clips.prompts).read_text()
    prompts.write_text(text)
    with scripted.serve(lambda payload, number: scripted.good(payload)) as server:
        config = clips.config(tmp_path, "api:m", prompts=str(prompts))
        assert main(arguments(config, *at(server), "--limit", "2", "--ways", "generate")) == 0
        seen = len(server.seen)
        prompts.write_text(text.replace("Which motion", "What motion"))
        assert main(arguments(config, *at(server), "--ways", "generate")) == 1
        assert "prompt 'expert' of row" in (errors := capsys.readouterr().err)
        assert "its wording has changed" in errors
        assert len(server.seen) == seen
        # Under another name it is a prompt like any other.
        prompts.write_text(text.replace("name: expert", "name: other").replace("Which motion", "What motion"))
        assert main(arguments(config, *at(server), "--limit", "2", "--ways", "generate")) == 0


def test_a_store_of_something_else_is_refused(
    clips: Any, scripted: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted.serve(lambda payload, number: scripted.good(payload)) as server:
        config = clips.config(tmp_path, "api:m")
        given = arguments(config, *at(server), "--limit", "2")
        assert main(given) == 0
        seen = len(server.seen)
        before = config.out.read_bytes()
        manifest = read_manifest(config.manifest)
        other = tmp_path / "other.json"
        write_manifest(other, SplitManifest("digits", manifest.classes, manifest.rows[::-1]))
        for change, text in (
            (["--model", "api:n"], "these differ: model"),
            (["--manifest", str(other)], "these differ: manifest_digest"),
            (["--split", "val"], "these differ: split"),
            (["--max-new-tokens", "5"], "max_new_tokens (16 there, 5 now)"),
            (["--look.kind", "frames"], "look.kind (middle there, frames now)"),
            (["--endpoint.quality", "50"], "quality (95 there, 50 now)"),
            (["--seed", "1"], "order_seed (0 there, 1 now)"),
        ):
            assert main([*given, *change]) == 1
            assert text in capsys.readouterr().err
        assert len(server.seen) == seen
        assert config.out.read_bytes() == before
        # How fast, and where, changes no answer.
        assert main([*given, "--endpoint.concurrency", "2", "--endpoint.retries", "0"]) == 0


def test_options_that_make_no_sense(clips: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    config = clips.config(tmp_path, "api:m")
    for given, text in (
        (replace(config, permutations=0), "--permutations is 0"),
        (replace(config, limit=0), "--limit is 0"),
        (replace(config, max_new_tokens=0), "--max-new-tokens is 0"),
        (replace(config, ways=()), "--ways are empty"),
        (replace(config, ways=("options", "options")), "name each once"),
        (replace(config, look=replace(config.look, frames=0)), "--look.frames is 0"),
        (replace(config, look=replace(config.look, fps=0.0)), "--look.fps is 0.0"),
        (replace(config, look=replace(config.look, short_side=0)), "--look.short-side is 0"),
        (replace(config, data_root=tmp_path / "nowhere"), "nowhere: no such folder"),
    ):
        with pytest.raises(ValueError, match=text):
            check_options(given)
    for model, text in (
        ("gpt", "there is no model 'gpt': give hf:FOLDER, hf:NAME, or api:NAME"),
        ("api:", "there is no model"),
        (f"hf:{tmp_path}", "a folder without config.json or"),
    ):
        with pytest.raises(BackendError, match=text):
            open_backend(replace(config, model=model))


def test_a_split_without_rows(clips: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = tmp_path / "only.json"
    write_manifest(only, SplitManifest("digits", ("a", "b"), (Row("digit0.mp4", 0, "train", "t"),)))
    config = clips.config(tmp_path, "api:m", manifest=only)
    assert main(arguments(config)) == 1
    assert "has no rows in test; give another --split" in capsys.readouterr().err


def test_a_wrong_folder_of_videos_is_said_before_anything_is_asked(
    clips: Any, scripted: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grey pictures cost as much as others."""
    with scripted.serve(lambda payload, number: scripted.good(payload)) as server:
        config = clips.config(tmp_path, "api:m", data_root=tmp_path)
        for more in ((), ("--dry-run",)):
            assert main([*arguments(config, *at(server)), *more]) == 1
            errors = capsys.readouterr().err
            assert (
                f"none of the 8 clips can be read, {tmp_path}/digit0.mp4 among them: no such file" in errors
            )
            assert "check --data-root" in errors
        assert server.seen == []


def test_nothing_but_grey_pictures_is_a_failure(
    clips: Any, scripted: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one video begins well, so that it is asked about, but of its later frames nothing is left."""
    made = bytearray((clips.root / "digit0.mp4").read_bytes())
    place = made.index(b"mdat") + 4
    begin, end = place, place - 8 + int.from_bytes(made[place - 8 : place - 4], "big")
    while place < end:  # of each later NAL unit its length and its type are left
        length = int.from_bytes(made[place : place + 4], "big")
        if place > (begin + end) // 2:
            made[place + 5 : place + 4 + length] = bytes(length - 1)
        place += 4 + length
    (tmp_path / "empty.mp4").write_bytes(made)
    only = tmp_path / "only.json"
    write_manifest(only, SplitManifest("digits", ("a", "b"), (Row("empty.mp4", 0, "test", "t", 2.0, 3.0),)))
    with scripted.serve(lambda payload, number: scripted.good(payload)) as server:
        config = clips.config(tmp_path, "api:m", manifest=only, data_root=tmp_path)
        assert main(arguments(config, *at(server))) == 1
        assert "unreadable: empty.mp4: " in capsys.readouterr().err
        assert len(server.seen) == 2  # each prompt with the grey picture
