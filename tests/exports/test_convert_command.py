"""The command: what it refuses, what it leaves behind, and its report."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from surgrec.convert import main
from surgrec.exports import formats, write

Convert = Callable[..., Path]
Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """refuse(*arguments): by the command, which must fail and leave nothing; what it says."""

    def run(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        assert sorted(tmp_path.rglob("*")) == before
        said = capsys.readouterr()
        assert said.out == ""
        return said.err.splitlines()[-1]

    return run


def test_says_what_it_measured(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "model.safetensors"
    assert main([str(runs["mae"].path), "--to", "timm", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"features, by timm: largest difference \d.*e-0[5-9] \(bound 0.0001\)", lines[0])
    assert lines[1] == f"wrote {out}"
    assert [path.name for path in out.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "to", "out", "said"),
    [
        ("jepa", "videomae", "a.pth", "VideoMAE has an encoder with sinusoid_1d.*JEPA with sincos_3d"),
        ("jepa", "transformers-vjepa2", "a", "rotary_3d positions; this model is JEPA with sincos_3d"),
        ("mae", "transformers-vjepa2", "a", "this model is MAE with sinusoid_1d"),
        ("mae", "vjepa", "a.pt", "V-JEPA has a predictor.*MAE with sinusoid_1d"),
        ("jepa2", "transformers-videomae", "a", "pixel decoder; this model is JEPA with rotary_3d"),
    ],
)
def test_format_of_another_objective(
    name: str, to: str, out: str, said: str, runs: Any, tmp_path: Path, refuse: Refuse
) -> None:
    assert re.search(said, refuse(runs[name].path, "--to", to, "--out", tmp_path / out))


def test_options_that_do_not_fit(runs: Any, tmp_path: Path, refuse: Refuse) -> None:
    run, out = runs["mae"].path, tmp_path / "a.safetensors"
    assert "give --report, or --to" in refuse(run)
    assert "give --report, or --to" in refuse(run, "--report", "--to", "timm")
    assert "--to needs --out" in refuse(run, "--to", "timm")
    part = ("--part", "target_encoder")
    assert "MAE has one encoder" in refuse(run, "--to", "timm", "--out", out, *part)
    said = refuse(run, "--to", "safetensors", "--out", out, *part)
    assert "safetensors holds all of a model" in said
    assert "--license is for" in refuse(run, "--to", "timm", "--out", out, "--license", "mit")
    assert "--results is for" in refuse(run, "--to", "timm", "--out", out, "--results", "r.jsonl")
    assert "--out is for --to" in refuse(run, "--report", "--out", out)
    for to, ends in (
        ("timm", ".safetensors"),
        ("onnx", ".onnx"),
        ("torch-export", ".pt2"),
        ("vjepa", ".pt or"),
    ):
        assert f"ends in {ends}" in refuse(run, "--to", to, "--out", tmp_path / "model.bin")


def test_nothing_is_replaced(runs: Any, tmp_path: Path, refuse: Refuse) -> None:
    file, folder, link = tmp_path / "a.safetensors", tmp_path / "b", tmp_path / "c.safetensors"
    file.write_text("mine")
    folder.mkdir()
    link.symlink_to(tmp_path / "nowhere")
    (tmp_path / "d.onnx.data").write_text("mine")
    for to, out in (("timm", file), ("hub", folder), ("timm", link), ("onnx", tmp_path / "d.onnx")):
        assert "is there already" in refuse(runs["mae"].path, "--to", to, "--out", out)
    assert file.read_text() == (tmp_path / "d.onnx.data").read_text() == "mine"


def test_what_came_meanwhile_is_not_replaced(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.safetensors"
    chosen = formats.FORMATS["timm"]

    def verify(*arguments: Any) -> Any:
        out.write_text("mine")
        return chosen.verify(*arguments)

    monkeypatch.setitem(write.FORMATS, "timm", replace(chosen, verify=verify))
    assert main([str(runs["mae"].path), "--to", "timm", "--out", str(out)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_what_is_no_model(runs: Any, tmp_path: Path, refuse: Refuse) -> None:
    to = ("--to", "timm", "--out", tmp_path / "out.safetensors")
    assert "no such folder" in refuse(tmp_path / "nowhere", *to)
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in refuse(tmp_path / "empty", *to)
    save_file({"a": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    said = refuse(tmp_path / "foreign.safetensors", *to)
    assert re.search(r"foreign.safetensors: no model of this project.*--to safetensors", said)
    (tmp_path / "nothing.safetensors").touch()
    assert "nothing.safetensors: an empty file" in refuse(tmp_path / "nothing.safetensors", *to)
    damaged = tmp_path / "damaged"
    shutil.copytree(runs["mae"].path, damaged)
    (weights,) = damaged.rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors is damaged" in refuse(damaged, *to)


def test_truncated_file_of_ours(runs: Any, convert: Convert, tmp_path: Path, refuse: Refuse) -> None:
    file = convert(runs["mae"].path, "safetensors", "whole.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = refuse(file, "--to", "timm", "--out", tmp_path / "a.safetensors")
    assert "whole.safetensors: not a safetensors file, or a truncated one" in said


def test_one_encoder_is_no_whole_model(runs: Any, convert: Convert, tmp_path: Path, refuse: Refuse) -> None:
    folder = convert(runs["mae"].path, "hub", "folder")
    file = folder / "model.safetensors"
    said = refuse(file, "--to", "videomae", "--out", tmp_path / "a.pth")
    assert re.search(r"model.safetensors: not a whole model \(Missing key.*decoder", said)


def test_weights_that_are_not_finite(runs: Any, tmp_path: Path, refuse: Refuse) -> None:
    from surgrec.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

    (whole,) = (runs["mae"].path / "checkpoints").iterdir()
    found = load_checkpoint(whole)
    found.model["encoder.norm.weight"][0] = float("nan")
    save_checkpoint(tmp_path / "checkpoints", Checkpoint(9, found.model, {}, found.values))
    said = refuse(tmp_path, "--to", "timm", "--out", tmp_path / "a.safetensors")
    assert "differs by nan" in said
    assert "give an earlier checkpoint" in said


def test_library_that_is_absent(
    runs: Any, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write.importlib.util, "find_spec", lambda name: None)
    said = refuse(runs["mae"].path, "--to", "onnx", "--out", tmp_path / "a.onnx")
    assert "needs onnx, onnxscript, onnxruntime, which are not installed: pip install 'surgrec[" in said


def test_library_that_fails(
    runs: Any, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setitem(formats.FORMATS, "timm", formats.ExportFormat(fail, fail, True))  # type: ignore[arg-type]
    said = refuse(runs["mae"].path, "--to", "timm", "--out", tmp_path / "a.safetensors")
    assert "timm: the model could not be written, or read again (no kernel)" in said


def test_interrupted(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(source: Any, config: Any, path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setitem(formats.FORMATS, "timm", formats.ExportFormat(stop, stop, True))  # type: ignore[arg-type]
    out = tmp_path / "a.safetensors"
    assert main([str(runs["mae"].path), "--to", "timm", "--out", str(out)]) == 130
    assert "stopped; nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


FULL = """
import json, resource, signal, sys
sys.dont_write_bytecode = True  # cut off, it would stay in the environment
from surgrec.configs.model import VIT_SHAPES, ViTShape
VIT_SHAPES["tiny"] = ViTShape(2, 192, 3)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
from surgrec.convert import main
for to, name in json.loads(sys.argv[3]):
    assert main([sys.argv[1], "--to", to, "--out", f"{sys.argv[2]}/{name}"]) == 1, to
"""


def test_disk_full(runs: Any, tmp_path: Path) -> None:
    """The limit on the size of a file stands for it."""
    asked = [
        ("safetensors", "a.safetensors"),
        ("hub", "folder"),
        ("timm", "b.safetensors"),
        ("transformers-videomae", "folder2"),
        ("videomae", "c.pth"),
        ("torch-export", "d.pt2"),
    ]
    if importlib.util.find_spec("onnxruntime") is not None:
        asked.append(("onnx", "e.onnx"))
    arguments = [sys.executable, "-c", FULL, str(runs["mae"].path), str(tmp_path), json.dumps(asked)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("File too large; nothing was written") == len(asked), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_report(runs: Any, convert: Convert, capsys: pytest.CaptureFixture[str]) -> None:
    file = convert(runs["jepa"].path, "vjepa", "weights.pt")
    capsys.readouterr()
    assert main([f"{file}#target_encoder", "--report"]) == 0
    said = capsys.readouterr().out
    assert "predictor/*" in said
    assert "clips of 16 frames (stride 4) of 224 x 224 pixels; tokens of 2 x 32 x 32, width 192" in said
    assert "identity file:vjepa/" in said
    assert main([str(file), "--report"]) == 1
    assert "holds two encoders" in capsys.readouterr().err


def test_report_of_a_run_tells_its_record(
    runs: Any, convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["mae"].path, run)
    record = json.loads((run / "run.json").read_text())
    record["starts"][0]["device"] = "a processor\x1b[31m"
    (run / "run.json").write_text(json.dumps(record))
    checkpoint = next((run / "checkpoints").iterdir())
    for name in (str(run), f"ckpt:{run}", str(checkpoint)):
        assert main([name, "--report"]) == 0
        said = capsys.readouterr().out
        for wanted in (
            "MAE with sinusoid_1d positions, ViT-tiny",
            "pretrained for 9 steps",
            "1,234 videos, packet index `0123abcd`",
            "98,765 segments, plan of curation `feed5678`",
            r"2 x a processor\x1b[31m, commit `abc123+`, python 3.11, torch 2.11",
            "model.mask_ratio",
            "optim.lr",
            "clips of 16 frames (stride 4) of 224 x 224 pixels; tokens of 2 x 32 x 32, width 192",
            "identity ckpt:",
        ):
            assert wanted in said, wanted
        for private in ("/home", "secret-host", "corpus.h5", "plan.h5", "\x1b"):
            assert private not in said
    (run / "run.json").write_text("{")
    assert main([str(run), "--report"]) == 1
    assert "run.json: not the record of a run" in capsys.readouterr().err
    assert main([f"ckpt:{tmp_path / 'gone'}", "--report"]) == 1
    assert "there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("to", "name"), [("safetensors", "a.safetensors"), ("hub", "folder"), ("timm", "b.safetensors")]
)
def test_report_of_our_files_tells_what_they_say(
    to: str, name: str, runs: Any, convert: Convert, capsys: pytest.CaptureFixture[str]
) -> None:
    path = convert(runs["jepa"].path, to, name)
    capsys.readouterr()
    assert main([str(path), "--report"]) == 0
    said = capsys.readouterr().out
    for wanted in (
        "loaded (",
        "pretrained for 9 steps",
        "packet index `0123abcd`; the file holds no record of a run",
        "model (the schedule is not in the file)",
        "model.predictor_depth",
        "objective",
    ):
        assert wanted in said, wanted
    assert "optim.lr" not in said
