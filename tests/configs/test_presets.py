"""Presets against the recipe."""

from __future__ import annotations

import pytest
from surgrec.configs.presets import PRESETS
from surgrec.configs.pretrain import JepaPretrain, MaePretrain


@pytest.mark.parametrize("name", ["mae-vits", "mae-vitb", "mae-vitl", "mae-vith"])
def test_mae_is_videomaes_recipe(name):
    config = PRESETS[name][1]
    assert isinstance(config, MaePretrain)
    assert (config.data.frames, config.data.stride, config.data.size, config.data.flip) == (16, 4, 224, False)
    assert (config.model.mask_ratio, config.model.decoder_depth, config.model.decoder_width) == (0.9, 4, 384)
    optim = config.optim
    assert (optim.lr, optim.lr_per_256, optim.betas, optim.weight_decay) == (1.5e-4, True, (0.9, 0.95), 0.05)
    assert optim.final_weight_decay == optim.weight_decay
    assert optim.warmup == pytest.approx(40 / 150)


@pytest.mark.parametrize("name", ["jepa-vitb", "jepa-vitl", "jepa-vith"])
def test_jepa_is_vjepas_recipe(name):
    config = PRESETS[name][1]
    assert isinstance(config, JepaPretrain)
    assert (config.steps, config.batch, config.optim.stretch) == (300 * 300, 3072, 1.25)
    optim = config.optim
    assert (optim.start_lr, optim.lr, optim.final_lr, optim.lr_per_256) == (2e-4, 6.25e-4, 1e-6, False)
    assert (optim.weight_decay, optim.final_weight_decay, optim.clip) == (0.04, 0.4, 10.0)
    assert optim.warmup * config.steps == pytest.approx(40 * 300)
    assert (config.model.ema_start, config.model.ema_end) == (0.998, 1.0)
    assert [(g.blocks, g.scale, g.aspect) for g in config.model.groups] == [
        (8, 0.15, (0.75, 1.5)),
        (2, 0.7, (0.75, 1.5)),
    ]
    assert (config.data.crop_scale, config.data.crop_aspect, config.data.flip) == (
        (0.3, 1.0),
        (0.75, 1.35),
        True,
    )


def test_vjepa_2():
    config = PRESETS["jepa-vitl-256"][1]
    assert isinstance(config, JepaPretrain)
    assert (config.data.size, config.model.position, config.model.size) == (256, "rotary_3d", "large")
    assert (config.model.ema_start, config.model.ema_end) == (0.99925, 0.99925)
    assert (config.optim.lr, config.optim.weight_decay, config.optim.final_weight_decay) == (
        5.25e-4,
        0.04,
        0.04,
    )


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_batches_divide_among_usual_numbers_of_gpus(name, ranks):
    config = PRESETS[name][1]
    share, rest = divmod(config.batch, ranks)
    assert rest == 0
    assert share % min(config.micro_batch or share, share) == 0
