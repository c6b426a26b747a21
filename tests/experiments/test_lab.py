"""Steps are run once, failures end an experiment and are recorded, and results are never overwritten."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import run
from experiments.lab import Check, ExperimentError, Lab, Measure, Step, read_curves, wall_seconds

COUNTS = "import sys; open(sys.argv[1], 'a').write('x'); print('said'); sys.exit(int(sys.argv[2]))"


@dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...] = (3,)


def experiment_of(measure: Callable[..., None]) -> SimpleNamespace:
    """A module of an experiment that prepares and claims nothing."""
    return SimpleNamespace(
        Config=Config, prepare=lambda lab, config: None, measure=measure, check=lambda lab, config: []
    )


def test_a_step_that_has_ended_well_is_not_run_again(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for _ in range(2):
        lab = Lab(tmp_path / "out", "cpu", 1)
        lab.run("step", ["-c", COUNTS, mark, 0])
        assert [step.status for step in lab.steps] == [0]
    assert mark.read_text() == "x"
    assert (tmp_path / "out" / "logs" / "step.log").read_text() == "said\n"


def test_a_step_that_fails_is_recorded_and_run_again(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for tries in (1, 2):
        lab = Lab(tmp_path / "out", "cpu", 1)
        with pytest.raises(ExperimentError, match=r"step step ended with status 4 .*\n?said"):
            lab.run("step", ["-c", COUNTS, mark, 4])
        assert lab.steps[0].status == 4
        assert mark.read_text() == "x" * tries


def test_a_torn_line_of_a_killed_experiment_counts_for_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "out", "cpu", 1)
    mark = tmp_path / "mark"
    lab.run("step", ["-c", COUNTS, mark, 0])
    with open(lab.out / "steps.jsonl", "a") as file:
        file.write('{"name": "step", "comm')
    lab.run("other", ["-c", COUNTS, mark, 0, "other"])
    again = Lab(lab.out, "cpu", 1)
    again.run("step", ["-c", COUNTS, mark, 0])
    again.run("other", ["-c", COUNTS, mark, 0, "other"])
    assert mark.read_text() == "xx"


def test_commands_in_records_name_no_folder_of_this_machine(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "out", "cpu", 1)
    lab.run("step", ["-c", "pass", lab.out / "digits", run.ROOT / "bench" / "harness.py"])
    assert str(tmp_path) not in lab.steps[0].command
    assert str(run.ROOT) not in lab.steps[0].command


def test_curves(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "loss": 2.0, "monitor/rankme": 9.0, "lr": 1},
        {"step": 5, "loss": 1.0, "monitor/rankme": 8.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_curves(path) == {"step": [1, 5], "loss": [2.0, 1.0], "monitor/rankme": [9.0, 8.0]}
    with pytest.raises(ExperimentError, match="No such file"):
        read_curves(tmp_path / "gone")


@pytest.mark.parametrize(("claims", "status"), [((True, True), 0), ((True, False), 1), ((), 1)])
def test_the_exit_status_says_whether_all_claims_hold(
    claims: tuple[bool, ...], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(lab: Lab, config: Config, data: str, seed: int) -> None:
        assert data == "made"
        lab.measures.append(Measure("model", "task", "accuracy", seed, 50.0))

    module = SimpleNamespace(
        Config=Config,
        prepare=lambda lab, config: "made",
        measure=measure,
        check=lambda lab, config: [Check("it works", "so so", held) for held in claims],
    )
    monkeypatch.setattr(run, "import_module", lambda name: module)
    config = tmp_path / "config.yaml"
    config.write_text("seeds: [1, 2]\n")
    words = ["collapse", "--config", str(config), "--out", str(tmp_path / "out")]
    words += ["--results", str(tmp_path / "results")]
    for _ in range(2):
        assert run.main(words) == status
    files = sorted((tmp_path / "results").glob("cpu-*.json"))
    assert len(files) == 2
    found = json.loads(files[0].read_text())
    assert [measure["seed"] for measure in found["measures"]] == [1, 2] == found["seeds"]
    assert [check["holds"] for check in found["checks"]] == list(claims)
    assert found["failure"] == ""
    assert {"machine", "versions", "commit", "date", "config", "steps", "curves", "seconds"} <= found.keys()


def test_a_failed_experiment_leaves_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(lab: Lab, config: Config, data: None, seed: int) -> None:
        lab.run("bad", ["-c", "raise SystemExit('out of luck')"])

    module = experiment_of(measure)
    monkeypatch.setattr(run, "import_module", lambda name: module)
    config = tmp_path / "config.yaml"
    config.write_text("{}\n")
    words = ["collapse", "--config", str(config), "--out", str(tmp_path / "out")]
    assert run.main([*words, "--results", str(tmp_path / "results")]) == 1
    (file,) = (tmp_path / "results").glob("*.json")
    found = json.loads(file.read_text())
    assert "out of luck" in found["failure"]
    assert str(tmp_path) not in file.read_text()
    assert [step["status"] for step in found["steps"]] == [1]
    assert "out of luck" in capsys.readouterr().err


def test_bad_configurations_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("seeds: [0]\ntrain: 1\nsteps: many\njepa: demo-jepa\n")
    assert run.main(["collapse", "--config", str(config), "--out", str(tmp_path)]) == 2
    assert "config.steps must be int, not 'many'" in capsys.readouterr().err
    assert run.main(["collapse", "--videos", "a.mp4"]) == 2
    assert "leave it out for collapse" in capsys.readouterr().err


def test_ctrl_c_in_a_step_stops_the_experiment_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"

    def measure(lab: Lab, config: Config, data: None, seed: int) -> None:
        lab.run("first", ["-c", COUNTS, mark, 0])
        lab.run("second", ["-c", COUNTS, mark, 130])

    module = experiment_of(measure)
    monkeypatch.setattr(run, "import_module", lambda name: module)
    config = tmp_path / "config.yaml"
    config.write_text("{}\n")
    words = ["collapse", "--config", str(config), "--out", str(tmp_path / "out")]
    for _ in range(2):
        assert run.main([*words, "--results", str(tmp_path / "results")]) == 130
    assert mark.read_text() == "xxx"  # the first step once, the second twice
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


WAITS_FOR = (
    "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch()\n"
    "while not all(pathlib.Path(path).exists() for path in sys.argv[2:]): time.sleep(0.01)"
)


def test_parts_run_side_by_side_and_are_recorded_in_their_order(tmp_path: Path) -> None:
    """Each waits for the mark of the other."""
    lab = Lab(tmp_path / "out", "cpu", 1, jobs=2)
    marks = [tmp_path / name for name in "abc"]

    def part(lab: Lab, number: int) -> None:
        lab.run(f"part{number}", ["-c", WAITS_FOR, marks[number], marks[1 - number]])
        if number == 0:
            lab.run("later", ["-c", WAITS_FOR, marks[2]])
        lab.measures.append(Measure("model", "task", "accuracy", number, 1.0))
        lab.curves[f"run{number}"] = {"step": [number]}

    lab.together([partial(part, number=number) for number in (0, 1)])
    assert [step.name for step in lab.steps] == ["part0", "later", "part1"]
    assert [measure.seed for measure in lab.measures] == [0, 1]
    assert list(lab.curves) == ["run0", "run1"]


def test_no_more_commands_run_than_there_are_jobs(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; f = sys.argv[1]; n = len(os.listdir(f)); open(f + '/' + sys.argv[2], 'w')\n"
        "time.sleep(0.05); os.remove(f + '/' + sys.argv[2]); sys.exit(n > 1)"
    )
    (tmp_path / "now").mkdir()
    lab = Lab(tmp_path / "out", "cpu", 1, jobs=2)

    def part(lab: Lab, number: int) -> None:
        lab.together(
            [
                lambda lab, k=k: lab.run(f"{number}-{k}", ["-c", code, tmp_path / "now", f"{number}-{k}"])
                for k in (0, 1)
            ]
        )

    lab.together([partial(part, number=number) for number in range(3)])
    assert len(lab.steps) == 6


def test_a_part_that_fails_lets_no_other_command_begin(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "out", "cpu", 1, jobs=2)
    mark = tmp_path / "mark"

    def fails(lab: Lab) -> None:
        lab.run("fails", ["-c", "raise SystemExit('out of luck')"])

    def goes_on(lab: Lab) -> None:
        lab.run("slow", ["-c", "import time; time.sleep(1.5)"])
        lab.run("next", ["-c", COUNTS, mark, 0])

    with pytest.raises(ExperimentError, match="out of luck"):
        lab.together([goes_on, fails])
    assert not mark.exists()
    assert {step.name: step.status for step in lab.steps} == {"slow": 0, "fails": 1}


def test_ctrl_c_stops_all_commands_that_run(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "out", "cpu", 1, jobs=2)
    marks = [tmp_path / name for name in "ab"]
    code = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"

    def interrupt() -> None:
        while not all(mark.exists() for mark in marks):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        lab.together([lambda lab, mark=mark: lab.run(mark.name, ["-c", code, mark]) for mark in marks])
    assert time.monotonic() - began < 30
    assert not lab.commands.running


def test_the_time_of_an_experiment_counts_what_ran_side_by_side_once() -> None:
    steps = [Step("", "", 0, 10.0, 100.0), Step("", "", 0, 5.0, 102.0), Step("", "", 0, 10.0, 105.0)]
    assert wall_seconds([*steps, Step("", "", 0, 1.0, 500.0)]) == 16
