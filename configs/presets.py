"""Named pretraining runs. docs/pretraining.md says where each value comes from."""

from __future__ import annotations

from dataclasses import replace

from surgrec.configs.data import BalanceConfig, DataConfig
from surgrec.configs.model import JepaConfig, MaeConfig, Size
from surgrec.configs.pretrain import (
    CheckpointConfig,
    JepaPretrain,
    LogConfig,
    MaePretrain,
    OptimConfig,
    PretrainConfig,
)

_MAE = MaePretrain(
    steps=75_000,
    batch=1024,
    micro_batch=64,
    data=DataConfig(frames=16, stride=4, size=224, crop_scale=(0.5, 1.0), flip=False),
    optim=OptimConfig(
        lr=1.5e-4,
        start_lr=1e-6,
        final_lr=1e-5,
        lr_per_256=True,
        warmup=40 / 150,
        weight_decay=0.05,
        final_weight_decay=0.05,
        betas=(0.9, 0.95),
    ),
)

_JEPA = JepaPretrain(
    steps=90_000,
    batch=3072,
    micro_batch=24,
    data=DataConfig(
        frames=16, stride=4, size=224, crop_scale=(0.3, 1.0), crop_aspect=(0.75, 1.35), flip=True
    ),
    optim=OptimConfig(
        lr=6.25e-4,
        start_lr=2e-4,
        final_lr=1e-6,
        lr_per_256=False,
        warmup=40 / 300,
        weight_decay=0.04,
        final_weight_decay=0.4,
        stretch=1.25,
        betas=(0.9, 0.999),
        clip=10.0,
    ),
)

_DEMO_CHECKPOINT = CheckpointConfig(every=50, keep_last=2)
_DEMO_LOG = LogConfig(every=10, panels_every=50)

_DEMO = MaePretrain(
    steps=300,
    batch=16,
    data=DataConfig(frames=8, stride=4, size=64, balance=BalanceConfig(domain=0.0, dataset=0.5, video=0.5)),
    # Raw pixels and fewer hidden ones: normalised targets take thousands of steps before they show anything.
    model=MaeConfig(
        size="tiny",
        mask_ratio=0.75,
        decoder_depth=2,
        decoder_width=192,
        decoder_heads=3,
        normalise_target=False,
    ),
    optim=OptimConfig(lr=1e-3, start_lr=1e-5, final_lr=1e-5, lr_per_256=False, warmup=0.1, clip=1.0),
    checkpoint=_DEMO_CHECKPOINT,
    log=_DEMO_LOG,
)

_DEMO_JEPA = JepaPretrain(
    steps=100,
    batch=16,
    data=replace(_DEMO.data, size=96),
    model=JepaConfig(
        size="tiny", predictor_depth=4, predictor_width=96, predictor_heads=3, ema_start=0.99, ema_end=1.0
    ),
    optim=OptimConfig(
        lr=5e-4, start_lr=1e-5, final_lr=1e-6, lr_per_256=False, warmup=0.1, betas=(0.9, 0.999), clip=10.0
    ),
    checkpoint=_DEMO_CHECKPOINT,
    log=_DEMO_LOG,
)


def _mae(size: Size) -> MaePretrain:
    return replace(_MAE, model=MaeConfig(size=size))


def _jepa(size: Size) -> JepaPretrain:
    return replace(_JEPA, model=JepaConfig(size=size))


_JEPA_2 = replace(
    _JEPA,
    data=replace(_JEPA.data, size=256, fps=4.0),
    model=JepaConfig(size="large", position="rotary_3d", ema_start=0.99925, ema_end=0.99925),
    optim=replace(
        _JEPA.optim, lr=5.25e-4, start_lr=1e-4, final_lr=5.25e-4, weight_decay=0.04, final_weight_decay=0.04
    ),
)


_ABOUT: dict[str, tuple[str, PretrainConfig]] = {
    "mae-vits": ("VideoMAE's recipe, ViT-S, 16 x 224 px.", _mae("small")),
    "mae-vitb": ("SurgRec-MAE: VideoMAE's recipe, ViT-B, 16 x 224 px.", _mae("base")),
    "mae-vitl": ("VideoMAE's recipe, ViT-L, 16 x 224 px.", _mae("large")),
    "mae-vith": ("VideoMAE's recipe, ViT-H, 16 x 224 px.", _mae("huge")),
    "jepa-vitb": ("V-JEPA's recipe, ViT-B, 16 x 224 px.", _jepa("base")),
    "jepa-vitl": ("SurgRec-JEPA: V-JEPA's recipe, ViT-L, 16 x 224 px.", _jepa("large")),
    "jepa-vith": ("V-JEPA's recipe, ViT-H, 16 x 224 px.", _jepa("huge")),
    "jepa-vitl-256": (
        "V-JEPA 2's recipe, ViT-L, 16 x 256 px at 4 frames/s: rotary positions, constant EMA.",
        _JEPA_2,
    ),
    "demo": ("A small MAE, 8 x 64 px, for two CPU cores and two minutes.", _DEMO),
    "demo-jepa": ("A small JEPA, 8 x 96 px, for two CPU cores and a few minutes.", _DEMO_JEPA),
}

PRESETS: dict[str, tuple[str, PretrainConfig]] = {
    name: (about, replace(config, name=name)) for name, (about, config) in _ABOUT.items()
}
"""Name -> (what it is, configuration)."""
