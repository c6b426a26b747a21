"""What the tests of asking share: clips of moving digits, prompts, tiny models, a scripted server."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from surgrec.configs.vlm import RunConfig

from surgrec.demo_data.encode import write_h264
from surgrec.demo_data.handwriting import sklearn_digits
from surgrec.demo_data.moving_digit import FPS, frames
from surgrec.evaluation.manifest import Row, SplitManifest, write_manifest

CLASSES = ("left", "clockwise", "growing")
SECONDS = 3
PROMPTS = """
style: letters
prompts:
  - name: plain
    text: "What does the clip show?\\n{options}\\n{reply}"
    reply: {letters: Answer with a letter., names: Answer with a name.}
  - name: expert
    family: expert
    system: You have seen many digits.
    text: "Which motion is it?\\n{options}\\n{reply}"
    reply: {letters: The letter alone., names: The name alone.}
"""


def _module(name: str) -> ModuleType:
    full = f"surgrec_test_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


@pytest.fixture(scope="session")
def tiny_models() -> ModuleType:
    """tests/vision_language/tiny_models.py: `make_model(family, folder)` and `FAMILIES`."""
    return _module("tiny_models")


@pytest.fixture(scope="session")
def scripted() -> ModuleType:
    """tests/vision_language/scripted_server.py: `serve(script)`, `good`, `Action`, `completion`."""
    return _module("scripted_server")


@pytest.fixture(scope="session")
def tiny_folder(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the family of Qwen2-VL."""
    made = tiny_models.make_model("qwen2_vl", tmp_path_factory.mktemp("tiny"))
    assert isinstance(made, Path)
    return made


@dataclass(frozen=True)
class Clips:
    """Videos of digits that move, and a manifest: eight rows in test, of four groups, one of which is gone
    and one is no video."""

    root: Path
    manifest: Path
    prompts: Path

    def config(self, folder: Path, model: str, **more: Any) -> RunConfig:
        """A run into a folder of its own."""
        given = RunConfig(
            self.manifest, self.root, model, folder / "answers.jsonl", str(self.prompts), workers=1
        )
        return replace(given, **more)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("vlm")
    material = sklearn_digits()
    for number, motion in enumerate(CLASSES):
        made = frames(material.images[number], motion, number, SECONDS * FPS)
        write_h264(folder / f"digit{number}.mp4", (np.ascontiguousarray(each) for each in made), FPS)
    (folder / "text.mp4").write_text("no video")
    rows = [Row("digit0.mp4", 0, "train", "t"), Row("digit1.mp4", 1, "val", "v")]
    for number in range(3):
        rows += [
            Row(f"digit{number}.mp4", number, "test", f"g{number}", 0.0, 1.0),
            Row(f"digit{number}.mp4", number, "test", f"g{number}", 1.0, 3.0),
        ]
    rows += [Row("gone.mp4", 0, "test", "lost"), Row("text.mp4", 1, "test", "lost")]
    write_manifest(folder / "split.json", SplitManifest("digits", CLASSES, tuple(rows)))
    (folder / "prompts.yaml").write_text(PROMPTS)
    return Clips(folder, folder / "split.json", folder / "prompts.yaml")
