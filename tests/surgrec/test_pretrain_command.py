"""The command line of surgrec.pretrain."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from surgrec.configs.presets import PRESETS
from surgrec.configs.pretrain import from_document, to_document
from surgrec.configs.yaml_io import ConfigError, dump_yaml

from surgrec.pretrain import main, parse

HELP = """
import sys
from surgrec.pretrain import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    heavy = {"torch", "numba", "nvidia", "av", "h5py", "numpy", "tensorboard"} & set(sys.modules)
    sys.exit(f"{heavy} imported" if heavy else end.code)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["demo", "--help"], ["no-such-preset"], ["demo", "--stepz", "3"]]
)
def test_the_command_line_is_parsed_before_anything_heavy_is_imported(arguments):
    result = subprocess.run([sys.executable, "-c", HELP, *arguments], capture_output=True, text=True)
    assert result.returncode == (0 if "--help" in arguments else 2), result.stderr
    if arguments == ["--help"]:
        for name in PRESETS:
            assert name in result.stdout
    if arguments[0] == "demo" and "--help" in arguments:
        assert "--data.index" in result.stdout
        assert "--optim.lr" in result.stdout


def test_presets_are_what_the_subcommands_give():
    for name, (_, config) in PRESETS.items():
        assert parse([name]) == config
        assert config.name == name


def test_every_field_can_be_overridden():
    config = parse(
        [
            *(
                "jepa-vitl",
                "--data.index",
                "x.h5",
                "--steps",
                "20",
                "--out",
                "runs/x",
                "--optim.clip",
                "None",
            ),
            *("--data.balance.domain", "0.5", "--model.size", "huge", "--optim.betas", "0.8", "0.9"),
            *("--data.fps", "4", "--checkpoint.fall-back", "--resume", "none", "--micro-batch", "8"),
        ]
    )
    assert (config.data.index, config.steps, config.out) == (Path("x.h5"), 20, Path("runs/x"))
    assert (config.optim.clip, config.optim.betas) == (None, (0.8, 0.9))
    assert (config.data.balance.domain, config.data.fps, config.model.size) == (0.5, 4.0, "huge")
    assert (config.checkpoint.fall_back, config.resume, config.micro_batch) == (True, "none", 8)


@pytest.fixture
def written(tmp_path):
    """A configuration unlike any preset, and the file that it is written to."""
    config = replace(PRESETS["demo-jepa"][1], steps=77, seed=5, micro_batch=None)
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(to_document(config)))
    return config, path


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_a_config_file_takes_the_place_of_the_preset(written, form):
    config, path = written
    assert parse(form.format(path).split(" ")) == config
    overridden = parse([*form.format(path).split(" "), "--steps", "78", "--out", "runs/y"])
    assert overridden == replace(config, steps=78, out=Path("runs/y"))


def test_mistakes_in_a_config_file_are_named(written, tmp_path, capsys):
    _, path = written
    document = yaml.safe_load(path.read_text())
    for change, expected in (
        ({"stepz": 3}, "config has no entry stepz"),
        ({"steps": "many"}, "config.steps must be int, not 'many'"),
        ({"objective": "gan"}, "config.objective must be one of mae, jepa"),
        ({"device": "tpu"}, "config.device is 'tpu'"),
        ({"out": "runs/x"}, "give it on the command line"),
    ):
        bad = tmp_path / "bad.yaml"
        bad.write_text(dump_yaml(document | change))
        assert main(["--config", str(bad)]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert "bad.yaml" in error
    assert main(["--config", str(tmp_path / "none.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_config_comes_first(written):
    _, path = written
    with pytest.raises(ConfigError, match="comes first"):
        parse(["demo", "--config", str(path)])
    with pytest.raises(ConfigError, match="needs the path"):
        parse(["--config"])


@pytest.mark.parametrize("name", PRESETS)
def test_dry_run_needs_no_data(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([name, "--dry-run", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    # The estimate is in comments: what is printed is a configuration.
    config = from_document(yaml.safe_load(printed))
    assert config == replace(PRESETS[name][1], device="cpu")
    for line in ("# tokens a clip: ", "# FLOPs a clip", "# parameters: ", "# memory a rank"):
        assert line in printed
    assert list(tmp_path.iterdir()) == []


def test_dry_run_refuses_what_a_run_would(capsys):
    assert main(["demo", "--dry-run", "--batch", "10", "--micro-batch", "3"]) == 1
    assert "--micro-batch 3 does not divide" in capsys.readouterr().err
    assert main(["demo", "--dry-run", "--data.size", "100"]) == 1
    assert "100" in capsys.readouterr().err


def test_user_errors_are_one_message_and_no_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("surgrec.pretrain: corpus.h5: no such index")
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()
