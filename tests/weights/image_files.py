"""A video, and files of image models with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from surgrec.evaluation.manifest import Row, SplitManifest, write_manifest
from surgrec.models.timesformer import TimeSformer

NAME = "vit_tiny_patch16_224"


def made(streams: ModuleType, folder: Path) -> Path:
    """A folder with a video of three seconds, 25 frames a second, a split of it, and weights of an image
    model."""
    shutil.copy(streams.make_stream("h264_default", folder / "made", frames=75), folder / "video.mp4")
    rows = (Row("video.mp4", 0, "train", "a"), Row("video.mp4", 1, "test", "b", 1.0, 2.0))
    write_manifest(folder / "split.json", SplitManifest("films", ("one", "two"), rows))
    generator = torch.Generator().manual_seed(11)
    state = timm.create_model(NAME, num_classes=0, img_size=32).state_dict()
    tensors = {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in state.items()}
    save_file(tensors, folder / "vit.safetensors")
    return folder


def random_dinov3() -> dict[str, Tensor]:
    """By the names of its own files: two blocks, two heads of 32."""
    width, generator = 64, torch.Generator().manual_seed(14)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "storage_tokens": (1, 4, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for number in range(2):
        block = f"blocks.{number}."
        for name, shape in (
            ("norm1", (width,)),
            ("norm2", (width,)),
            ("attn.proj", (width, width)),
            ("mlp.fc1", (96, width)),
            ("mlp.fc2", (width, 96)),
            ("attn.qkv", (3 * width, width)),
        ):
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        shapes |= {f"{block}ls{k}.gamma": (width,) for k in (1, 2)}
    found = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    for number in range(2):
        mask = torch.ones(3 * width)
        mask[width : 2 * width] = 0
        found[f"blocks.{number}.attn.qkv.bias_mask"] = mask
    return found | {"rope_embed.periods": 100 ** (torch.arange(8) / 8)}


def random_endofm() -> dict[str, Tensor]:
    """Four frames of 32 x 32 pixels."""
    model = TimeSformer(1, 64, 1, 96, 4, 32, 16, (0.5,) * 3, (0.5,) * 3)
    names = {
        "class_token": "cls_token",
        "place": "pos_embed",
        "time": "time_embed",
        "patch_embedding": "patch_embed.proj",
        "time_norm": "temporal_norm1",
        "time_attention": "temporal_attn",
        "time_linear": "temporal_fc",
        "attention": "attn",
    }
    generator = torch.Generator().manual_seed(12)
    return {
        ".".join(names.get(part, part) for part in key.split(".")): torch.randn(
            value.shape, generator=generator
        )
        * 0.1
        for key, value in model.state_dict().items()
    }
