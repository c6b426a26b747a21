"""The demo's table: three models on the moving digits, by the demo's own commands, as a page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from surgrec.configs.demo import DemoConfig
from surgrec.configs.presets import PRESETS
from surgrec.configs.pretrain import to_document

from surgrec import demo
from surgrec.benchmark import main as benchmark
from surgrec.evaluation.results import read_results
from surgrec.models.build import build_objective
from surgrec.training.checkpoint import Checkpoint, save_checkpoint


def run_small(arguments: list[str]) -> int:
    """A command of the demo in this process: 240 clips in the place of 560, and few steps."""
    _, module, *rest = arguments
    if module == "surgrec.demo":
        return demo.main([*rest, "--train", "1", "--val", "1", "--test", "1"])
    more = ["--probe.steps", "20", "--probe.resamples", "100"] if rest[0] == "run" else []
    return benchmark([*rest, *more])


def test_three_models_and_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    torch.set_num_threads(1)
    preset = PRESETS["demo"][1]
    objective = build_objective(preset.model, 1, preset.data.frames, preset.data.size)
    values = {"config": to_document(preset), "index_digest": ""}
    run = tmp_path / "runs" / "demo"
    save_checkpoint(run / "checkpoints", Checkpoint(300, objective.state_dict(), {}, values))
    monkeypatch.setattr(demo, "run_command", run_small)
    assert demo.make_table(DemoConfig(tmp_path, workers=1), run) == 0
    found = read_results(tmp_path / "matrix" / "results.jsonl")
    models = ["random:demo", f"ckpt:{run}", demo.IMAGE_MODEL]
    assert {(each.model, each.mode) for each in found} == {
        (model, mode) for model in models for mode in ("probe-knn", "probe-linear")
    }
    assert all((each.n, each.m) == (80, 80) for each in found)
    assert len({each.features_digest for each in found}) == 3
    browser = request.getfixturevalue("browser")  # last: where it is missing, the rest was tested
    browser.visit(tmp_path / "table.html")
    assert browser.errors() == []
    assert browser.requested() == {(tmp_path / "table.html").as_uri()}
    shown = browser.find_element("css selector", "body").text
    for text in (*models, "always the most frequent class", "look-up of the source", "80 of 80", "12.5 ["):
        assert text in shown


@pytest.mark.parametrize("failing", ["dataset", "run", "table"])
def test_stops_at_the_first_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    seen: list[str] = []

    def run(arguments: list[str]) -> int:
        seen.append(arguments[2])
        return 7 if arguments[2] == failing else 0

    monkeypatch.setattr(demo, "run_command", run)
    assert demo.make_table(DemoConfig(tmp_path), tmp_path / "run") == 7
    assert seen == ["dataset", "run", "table"][: len(seen)]
    assert seen[-1] == failing
