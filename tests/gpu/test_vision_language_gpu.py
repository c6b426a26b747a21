"""A tiny vision-language model on a GPU answers as it does on the CPU."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from surgrec.configs.vlm import LocalConfig

from surgrec.vision_language.backend import Failure, Request
from surgrec.vision_language.frames import Pictures
from surgrec.vision_language.local_backend import LocalBackend
from surgrec.vision_language.model_files import find_model
from surgrec.vision_language.records import Question, Reply, Shown, Way

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
TINY = Path(__file__).parents[1] / "vision_language" / "tiny_models.py"
TARGETS = ("polyp", "no polyp", "bleeding of the mucosa")


def make(family: str, folder: Path) -> Path:
    spec = importlib.util.spec_from_file_location("surgrec_test_tiny_models", TINY)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.make_model(family, folder)
    assert isinstance(made, Path)
    return made


def request_of(number: int, way: Way) -> Request:
    question = Question(number, "p", "names", (0, 1, 2), "", "What is it? " * (number + 1), TARGETS)
    pixels = np.random.default_rng(number).integers(0, 256, (2, 60, 80, 3), np.uint8)
    return Request(
        f"{number}/{way}", question, way, Pictures(Shown((0, 1), (0.0, 0.5), 2, 60, 80, ""), pixels)
    )


def ask(folder: Path, options: LocalConfig) -> dict[str, Reply]:
    found: dict[str, Reply] = {}

    def take(request: Request, answer: Reply | Failure) -> None:
        assert isinstance(answer, Reply)
        found[request.key] = answer

    ways: tuple[Way, Way] = ("generate", "options")
    backend = LocalBackend(find_model(str(folder), "frames", options, with_weights=True), 4)
    backend.ask(iter([request_of(number, way) for number in range(4) for way in ways]), take)
    assert backend.settings["device"] == ("cpu" if options.device == "cpu" else "cuda")
    return found


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_next", "internvl"])
def test_a_gpu_answers_as_the_cpu_does(family: str, tmp_path: Path) -> None:
    folder = make(family, tmp_path / "model")
    cpu = LocalConfig(batch=3, device="cpu")
    expected = ask(folder, cpu)
    for device in ("cuda", "spread"):
        found = ask(folder, replace(cpu, device=device, dtype="float32"))
        for key, reply in expected.items():
            scores = found[key].log_likelihoods, reply.log_likelihoods
            # TF32 moves these by up to 2.1 nats (emulated on a CPU, and seen on an H200).
            np.testing.assert_allclose(*scores, rtol=0.001, atol=0.01)
            assert found[key].prompt_tokens == reply.prompt_tokens
    half = ask(folder, replace(cpu, device="cuda"))
    assert half.keys() == expected.keys()
    assert all(np.isfinite(reply.log_likelihoods).all() for reply in half.values())
