"""The collapse watch in small: the commands that the experiment runs, on a handful of videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from surgrec.kernels.counter_rng import stream_key
from surgrec.loaders.packet_index import PacketIndex

from experiments.collapse import broken
from experiments.collapse.experiment import NO_TEACHER, first_flag
from experiments.lab import read_curves
from surgrec import pretrain
from surgrec.demo_data.handwriting import sklearn_digits
from surgrec.demo_data.moving_digit import MOTIONS, write_clip

STEPS = 80
RECIPE = f"""demo-jepa --steps {STEPS} --batch 8 --data.frames 4 --data.stride 8 --data.size 64
    --data.balance.video 1 --data.threads 1 --model.size mini --model.predictor-depth 2
    --model.predictor-width 96 --model.predictor-heads 3 --optim.lr 1e-3 --log.every 10
    --checkpoint.every 1000 --device cpu"""


@pytest.fixture(scope="module")
def index(build_index_of: Callable[..., PacketIndex], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of eight moving digits, one for each motion."""
    torch.set_num_threads(1)
    folder, digits = tmp_path_factory.mktemp("digits"), sklearn_digits()
    paths = [folder / f"{motion}.mp4" for motion in MOTIONS]
    for number, (path, motion) in enumerate(zip(paths, MOTIONS, strict=True)):
        write_clip(path, digits.images[number], motion, stream_key(0, motion))
    build_index_of(paths, folder / "corpus.h5")
    return folder / "corpus.h5"


def curves(main: Callable[[list[str]], int], more: str, index: Path, run: Path) -> dict[str, list[float]]:
    words = [*RECIPE.split(), *more.split(), "--data.index", str(index), "--out", str(run)]
    assert main(words) == 0
    return read_curves(run / "metrics.jsonl")


def test_a_jepa_without_stop_gradient_is_flagged(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = curves(broken.main, NO_TEACHER, index, tmp_path / "run")
    flagged = first_flag(found)
    assert flagged is not None
    assert flagged <= STEPS
    assert found["monitor/collapsed"][-1] == 1
    assert found["loss"][-1] < 0.2 * found["loss"][0]  # which looks like success
    said = capsys.readouterr().out
    assert said.count("the teacher's features are nearly the same") == 1
    assert f"COLLAPSE at step {flagged:.0f}" in said.split("loss:")[-1]


def test_a_healthy_one_is_not(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = curves(pretrain.main, "", index, tmp_path / "run")
    assert first_flag(found) is None
    assert found["loss"][-1] < found["loss"][0]
    assert "COLLAPSE" not in capsys.readouterr().out
