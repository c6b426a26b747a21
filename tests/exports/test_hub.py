"""SurgRecModel and its folder: read without a network, strict, with a card of the run's record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi

from surgrec.convert import main
from surgrec.evaluation.results import Interval, Result, append_result, document_of
from surgrec.exports.comparison import clips_for
from surgrec.exports.source import open_source
from surgrec.hub import SurgRecModel
from surgrec.models.video_encoder import encoder_of
from surgrec.weights.errors import WeightsError

Convert = Callable[..., Path]
LOAD = """
import torch
from surgrec.configs.model import VIT_SHAPES, ViTShape
VIT_SHAPES["tiny"] = ViTShape(2, 192, 3)
from surgrec.hub import SurgRecModel
clips, expected = torch.load(sys.argv[2])
model = SurgRecModel.from_pretrained(sys.argv[1])
assert not model.training
with torch.no_grad():
    torch.testing.assert_close(model.forward_features(clips), expected, atol=1e-4, rtol=1e-4)
    floats = model.forward_features(clips.float() / 255)
torch.testing.assert_close(floats, expected, atol=1e-3, rtol=1e-3)
"""


def result(model: str, dataset: str = "digits") -> dict[str, Any]:
    figures = {"accuracy": Interval(0.875, 0.8125, 0.9375)}
    return document_of(
        Result(
            model=model,
            dataset=dataset,
            manifest_digest="aa" * 16,
            features_digest="bb" * 16,
            mode="probe-linear",
            n=39,
            m=40,
            groups=20,
            figures=figures,
            baselines={"majority": {"accuracy": Interval(0.25)}},
            classes=(),
            confusion=(),
            trained_parameters=7,
            options={},
            chosen={},
            date="2026-01-02T03:04:05+0000",
            versions={},
            commit="abc",
        )
    )


def test_from_pretrained_offline(
    runs: Any, convert: Convert, offline: Callable[..., None], tmp_path: Path
) -> None:
    folder = convert(runs["jepa2"].path, "hub", "folder")
    clips = clips_for(open_source(runs["jepa2"].path))
    with torch.no_grad():
        torch.save((clips, encoder_of(runs["jepa2"].objective)(clips)), tmp_path / "both.pt")
    offline(LOAD, folder, tmp_path / "both.pt")


def test_saved_again_it_is_the_same(runs: Any, convert: Convert, tmp_path: Path) -> None:
    folder = convert(runs["mae"].path, "hub", "folder", "--license", "apache-2.0")
    SurgRecModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_push_to_hub_sends_the_folder(runs: Any, convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of the Hub stands in for itself: what it is given is looked at, nothing is sent."""
    folder = convert(runs["mae"].path, "hub", "folder")
    sent: dict[str, bytes] = {}

    class Made:
        repo_id = "someone/model"

    def create(self: HfApi, repo_id: str, **keywords: Any) -> Made:
        assert (repo_id, keywords["private"]) == ("someone/model", True)
        return Made()

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, **keywords: Any) -> str:
        sent.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        return "https://example.org/commit"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    model = SurgRecModel.from_pretrained(folder)
    assert model.push_to_hub("someone/model", private=True) == "https://example.org/commit"
    assert sent == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_card_tells_the_record(runs: Any, convert: Convert, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    append_result(results, result("ckpt:runs/mae"))
    options = ("--results", str(results), "--license", "apache-2.0")
    text = (convert(runs["mae"].path, "hub", "folder", *options) / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    about = yaml.safe_load(head)
    assert (about["library_name"], about["license"]) == ("surgrec", "apache-2.0")
    for said in (
        "the encoder of MAE after 9 steps",
        "1,234 videos, packet index `0123abcd`",
        "98,765 segments, plan of curation `feed5678`",
        "commit `abc123+`, python 3.11, torch 2.11",
        "| model.mask\\_ratio | 0.9 |",
        "87.5",
        "81.2",
        "93.8",
        "39 of 40",
        "always the most frequent class",
        "Not a medical device",
        "## Intended use",
    ):
        assert said in body, said
    for private in ("/home", "secret-host", "corpus.h5", "plan.h5"):
        assert private not in text


def test_card_without_a_record_says_so(runs: Any, convert: Convert) -> None:
    file = convert(runs["mae"].path, "safetensors", "whole.safetensors")
    text = (convert(file, "hub", "folder") / "README.md").read_text()
    assert "holds no record of a run: index `0123abcd`" in text
    assert "The schedule is not in the file" in text
    assert "optim.lr" not in text
    assert "Not a medical device" in text


def test_names_of_strangers_are_escaped(
    runs: Any, convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    append_result(results, result("ckpt:x", "<script>|\u202e"))
    options = ("--results", str(results), "--license", 'mine: "#1"')
    text = (convert(runs["mae"].path, "hub", "folder", *options) / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == 'mine: "#1"'
    assert r"\<script\>\|\\u202e" in body
    assert "<script>" not in body
    assert "\u202e" not in text
    for license in ("mit\n---\n<script>", ""):
        command = [str(runs["mae"].path), "--to", "hub", "--out", str(tmp_path / "out"), "--license", license]
        assert main(command) == 1
        assert "it is one line of text" in capsys.readouterr().err


def test_results_of_several_models_are_refused(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    for model in ("ckpt:one", "ckpt:two"):
        append_result(results, result(model))
    command = [str(runs["mae"].path), "--to", "hub", "--out", str(tmp_path / "out")]
    assert main([*command, "--results", str(results)]) == 1
    assert "has rows of ckpt:one, ckpt:two; give a file of this model's rows" in capsys.readouterr().err
    assert main([*command, "--results", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_record_is_told(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(runs["mae"].path, run)
    for content in ("{", '{"starts": []}', '{"starts": [{"index": 3}]}'):
        (run / "run.json").write_text(content)
        assert main([str(run), "--to", "hub", "--out", str(tmp_path / "out")]) == 1
        assert "run.json: not the record of a run" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config.pop("part"), "config.json has no part"),
        (lambda config: config.update(part="decoder"), "`part` is 'decoder'"),
        (lambda config: config.update(about={}), "`identity` is None"),
        (lambda config: config["about"].update(step=10), "of another model than the config.json"),
        (lambda config: config["about"]["pretraining"]["model"].update(size="giant"), "config.json"),
        (lambda config: config["about"]["pretraining"]["data"].update(frames=1 << 30), "more than 1048576"),
        (
            lambda config: config["about"]["pretraining"]["data"].update(frames=15),
            "do not divide into tokens",
        ),
    ],
)
def test_configuration_that_does_not_fit(
    change: Callable[[dict[str, Any]], None], said: str, runs: Any, convert: Convert
) -> None:
    folder = convert(runs["mae"].path, "hub", "folder")
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=said):
        SurgRecModel.from_pretrained(folder)


def test_weights_that_were_changed(runs: Any, convert: Convert) -> None:
    folder = convert(runs["mae"].path, "hub", "folder")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model.safetensors: damaged, or changed by hand"):
        SurgRecModel.from_pretrained(folder)
