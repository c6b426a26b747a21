"""Values that no run can have are refused by name, by a dry run as by a real one."""

from __future__ import annotations

import pytest
from surgrec.configs.presets import PRESETS

from surgrec.pretrain import main
from surgrec.training.values import check_values

WRONG = [
    ("--steps 0", "--steps is 0; it must be at least 1"),
    ("--checkpoint.keep-last 0", "--checkpoint.keep-last is 0"),
    ("--log.every 0", "--log.every is 0"),
    ("--optim.lr nan", "--optim.lr is nan; it must be a number from 0 upwards"),
    ("--optim.lr -1", "--optim.lr is -1"),
    ("--optim.final-lr inf", "--optim.final-lr is inf"),
    ("--optim.weight-decay -1", "--optim.weight-decay is -1"),
    ("--optim.warmup -5", "--optim.warmup is -5"),
    ("--optim.stretch 0", "--optim.stretch is 0"),
    ("--optim.eps -1", "--optim.eps is -1"),
    ("--optim.betas 1.5 2", "--optim.betas is (1.5, 2.0); it must be two numbers in [0, 1)"),
    ("--optim.clip 0", "--optim.clip is 0.0; it must be above 0, or None"),
    ("--optim.clip -1", "--optim.clip is -1"),
    ("--data.frames 0", "--data.frames is 0"),
    ("--data.stride 0", "--data.stride is 0"),
    ("--data.fps -1", "--data.fps is -1"),
    ("--data.fps nan", "--data.fps is nan"),
    ("--data.prefetch 0", "--data.prefetch is 0"),
    ("--data.segment-seconds 0", "--data.segment-seconds is 0"),
    ("--data.max-failures 2", "--data.max-failures is 2.0; it must be between 0 and 1"),
    ("--data.balance.video -1", "--data.balance.video is -1"),
    ("--data.crop-scale 0.5 0.2", "crop scale is 0.5..0.2"),
    ("--data.repeats 0", "--data.repeats is 0"),
    ("--model.patch 0", "--model.patch is 0"),
    ("--model.tubelet 3", "do not divide"),
    ("--model.std 0 1 1", "--model.std is (0.0, 1.0, 1.0); it must be three numbers above 0"),
    ("--model.mean nan 0 0", "--model.mean is (nan, 0.0, 0.0)"),
    ("--model.mask-ratio 0", "mask ratio 0.0 must hide at least 1"),
    ("--model.mask-ratio 1.5", "mask ratio 1.5 must hide at least 1"),
    ("--model.mask-ratio nan", "mask ratio nan must hide at least 1"),
    ("--model.decoder-share 0", "--model.decoder-share is 0.0; it must be above 0 and at most 1"),
    ("--model.decoder-heads 7", "--model.decoder-heads is 7; it must be a divisor of the width, 192"),
]
WRONG_JEPA = [
    ("--model.ema-start 2", "--model.ema-start is 2.0; it must be between 0 and 1"),
    ("--model.predictor-heads 0", "--model.predictor-heads is 0"),
]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_right(name: str) -> None:
    check_values(PRESETS[name][1])


@pytest.mark.parametrize(
    ("preset", "option", "message"),
    [("demo", *case) for case in WRONG] + [("demo-jepa", *case) for case in WRONG_JEPA],
    ids=lambda value: value if isinstance(value, str) and value.startswith("--") else "",
)
def test_a_dry_run_refuses_what_no_run_can_have(
    preset: str, option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([preset, "--dry-run", *option.split()]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_real_run_refuses_the_same(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--optim.lr", "nan", "--out", str(tmp_path / "run")]) == 1
    assert "--optim.lr is nan" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
