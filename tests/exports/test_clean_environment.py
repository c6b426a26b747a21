"""The wheel in a new environment: nothing of this checkout, no settings, no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from surgrec.configs.data import DataConfig
from surgrec.configs.model import MaeConfig
from surgrec.configs.pretrain import MaePretrain, to_document

from surgrec.exports.video_vit import normalised
from surgrec.models.build import build_objective
from surgrec.models.video_encoder import encoder_of
from surgrec.training.checkpoint import Checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("configs", "kernels", "loaders", "surgrec")
CONFIG = MaePretrain(
    data=DataConfig(frames=4, stride=4, size=64),
    model=MaeConfig(size="tiny", decoder_depth=1, decoder_width=36, decoder_heads=3),
)
CLEAN = """
import socket, sys
def refuse(*arguments, **keywords):
    raise AssertionError("the network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
import json
from importlib.metadata import distribution
from pathlib import Path
folder = Path(sys.argv[1])
import surgrec
assert Path(surgrec.__file__).is_relative_to(sys.prefix), surgrec.__file__
assert Path(distribution("surgrec").locate_file("")).is_relative_to(sys.prefix)
"""
USE = """
import timm, torch
import surgrec.timm_models
from surgrec.hub import SurgRecModel
clips, pixels, expected = torch.load(folder / "clips.pt")
options = {"frames": 4, "img_size": 64, "checkpoint_path": str(folder / "timm.safetensors")}
network = timm.create_model("surgrec_vit_tiny_patch16_16x224", **options).eval()
assert "surgrec_vit_base_patch16_16x224" in timm.list_models("surgrec*")
with torch.no_grad():
    found = {
        "timm": network.forward_features(pixels),
        "from_pretrained": SurgRecModel.from_pretrained(str(folder / "hub")).forward_features(clips),
        "load_model": surgrec.load_model(f"hf:{folder / 'hub'}").forward_features(clips),
        "of timm's file": surgrec.load_model(folder / "timm.safetensors").forward_features(clips),
    }
for name, tokens in found.items():
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4, msg=lambda text: f"{name}: {text}")
from surgrec.convert import main
assert main([str(folder / "hub"), "--report"]) == 0
"""
HELP = """
import runpy
for name in json.loads((folder / "commands.json").read_text()):
    sys.argv = [f"surgrec.{name}", "--help"]
    try:
        runpy.run_module(f"surgrec.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        assert not stop.code, name
"""


@pytest.fixture(autouse=True)
def small() -> None:
    """Sizes are the registered ones here: the other environment knows no others."""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """clean(code, *arguments): what a program prints in an environment of its own, in which the wheel of
    this checkout is installed, and of all else what this environment has."""
    folder = tmp_path_factory.mktemp("clean")
    source, home = folder / "source", folder / "home"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--quiet"]
    run([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(folder), str(source)], folder)
    (wheel,) = folder.glob("surgrec-*.whl")
    shutil.rmtree(source)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    run([*pip, "--python", str(python), "install", *offline, str(wheel)], folder)
    # Only now: what is installed there already would be put aside. Folders in a .pth file are plain ones, so
    # that no editable installation of theirs comes along.
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    paths = dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    (packages / "others.pth").write_text("\n".join(paths))
    home.mkdir()

    def ask(code: str, *arguments: object) -> str:
        return run([str(python), "-c", CLEAN + code, *map(str, arguments)], home)

    return ask


def run(command: list[str], home: Path) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home / "hf")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_models_are_made_and_read_offline(
    clean: Callable[..., str], convert: Callable[..., Path], tmp_path: Path
) -> None:
    objective = build_objective(CONFIG.model, 5, CONFIG.data.frames, CONFIG.data.size)
    values = {"config": to_document(CONFIG), "index_digest": ""}
    save_checkpoint(tmp_path / "run" / "checkpoints", Checkpoint(2, objective.state_dict(), {}, values))
    convert(tmp_path / "run", "hub", "hub")
    convert(tmp_path / "run", "timm", "timm.safetensors")
    clips = torch.randint(0, 256, (2, 4, 64, 64, 3), dtype=torch.uint8, generator=torch.manual_seed(1))
    with torch.no_grad():
        expected = encoder_of(objective.eval())(clips)
    pixels = normalised(clips, CONFIG.model.mean, CONFIG.model.std)
    torch.save((clips, pixels, expected), tmp_path / "clips.pt")
    shutil.rmtree(tmp_path / "run")
    assert "surgrec" in clean(USE, tmp_path)


def test_the_wheel_holds_what_the_checkout_holds(clean: Callable[..., str], tmp_path: Path) -> None:
    """Modules, and files that are no modules: templates of reports, and whatever else lies beside them."""
    listed = json.loads(
        clean(
            "print(json.dumps([str(path.relative_to(Path(surgrec.__file__).parent)) for path in"
            " Path(surgrec.__file__).parent.rglob('*') if path.is_file()]))",
            tmp_path,
        )
    )
    wanted = set()
    for top in FOLDERS:
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wanted.add(str(path.relative_to(ROOT / top if top == "surgrec" else ROOT)))
    assert wanted <= set(listed), sorted(wanted - set(listed))


def test_commands_answer(clean: Callable[..., str], tmp_path: Path) -> None:
    names = [path.stem for path in (ROOT / "surgrec").glob("*.py") if "__main__" in path.read_text()]
    (tmp_path / "commands.json").write_text(json.dumps(names))
    assert clean(HELP, tmp_path).count("usage") >= len(names) > 10
