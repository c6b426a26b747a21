"""What was written wrongly does not get its name: a tensor changed on its way to the file is found."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surgrec.convert import main
from surgrec.exports import original, timm_file, transformers_folder
from surgrec.exports.comparison import compare
from surgrec.weights.errors import WeightsError

CASES = [
    ("mae", "timm", "patch_embed.proj.weight"),
    ("mae", "timm", "pos_embed"),
    ("jepa2", "timm", "blocks.1.attn.qkv.bias"),
    ("mae", "transformers-videomae", "videomae.layernorm.bias"),
    ("mae", "transformers-videomae", "videomae.encoder.layer.0.attention.attention.value.bias"),
    ("mae", "transformers-videomae", "mask_token"),
    ("mae", "transformers-videomae", "encoder_to_decoder.weight"),
    ("mae", "transformers-videomae", "decoder.head.weight"),
    ("jepa2", "transformers-vjepa2", "encoder.layer.1.mlp.fc2.bias"),
    ("jepa2", "transformers-vjepa2", "predictor.embeddings.mask_tokens"),
    ("jepa2", "transformers-vjepa2", "predictor.layer.1.attention.query.weight"),
    ("mae", "videomae", "encoder.norm.weight"),
    ("mae", "videomae", "encoder.blocks.0.attn.v_bias"),
    ("mae", "videomae", "mask_token"),
    ("mae", "videomae", "decoder.blocks.1.mlp.fc1.weight"),
    ("jepa", "vjepa", "encoder/module.backbone.norm.bias"),
    ("jepa", "vjepa", "target_encoder/module.backbone.pos_embed"),
    ("jepa", "vjepa", "predictor/module.backbone.mask_tokens.1"),
    ("jepa", "vjepa", "predictor/module.backbone.predictor_pos_embed"),
    ("jepa2", "vjepa", "predictor/module.backbone.predictor_blocks.0.attn.qkv.weight"),
]
"""Run, format, tensor of the file."""


@pytest.mark.parametrize(("name", "to", "tensor"), CASES, ids=lambda value: str(value))
def test_changed_tensor_is_found(
    name: str,
    to: str,
    tensor: str,
    runs: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = []

    def change(tensors: dict[str, Any], key: str) -> None:
        assert key in tensors, sorted(tensors)
        tensors[key] = tensors[key] * 1.5 + 0.1
        changed.append(key)

    def writing(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Path, tensors: dict[str, Tensor], about: Any = None) -> Any:
            tensors = dict(tensors)
            change(tensors, tensor)
            return write(path, tensors, about)

        return wrapped

    def saving(top: dict[str, Any], path: Path) -> None:
        part, _, key = tensor.rpartition("/")
        change(top[part or "model"], key)
        save(top, path)

    save = original._save
    monkeypatch.setattr(original, "_save", saving)
    for module in (timm_file, transformers_folder):
        monkeypatch.setattr(module, "write_tensors", writing(module.write_tensors))
    out = tmp_path / {"timm": "out.safetensors"}.get(to, "out.pth")
    assert main([str(runs[name].path), "--to", to, "--out", str(out)]) == 1
    assert changed
    assert re.search(r"the written model differs by [\d.e+-]+", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_missing_tensor_is_found(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers would fill it with first weights and go on."""
    whole = transformers_folder.videomae_tensors

    def without(source: Any) -> dict[str, Tensor]:
        tensors = whole(source)
        del tensors["decoder.norm.bias"]
        return tensors

    monkeypatch.setattr(transformers_folder, "videomae_tensors", without)
    out = tmp_path / "out"
    assert main([str(runs["mae"].path), "--to", "transformers-videomae", "--out", str(out)]) == 1
    assert "missing keys: decoder.norm.bias" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_compare_refuses_what_is_no_number(value: float) -> None:
    tokens = torch.ones(2, 3)
    bad = tokens.clone()
    bad[1, 2] = value
    for ours, theirs in ((tokens, bad), (bad, tokens), (bad, bad)):
        with pytest.raises(WeightsError, match="differs by"):
            compare("features", ours, theirs)


def test_compare_goes_by_the_largest_value() -> None:
    big = torch.tensor([1000.0, 1.0])
    assert compare("features", big, big + 0.05).difference == pytest.approx(5e-5, rel=1e-3)
    small = torch.tensor([0.5, 0.1])
    assert compare("features", small, small + 5e-5).difference == pytest.approx(5e-5, rel=1e-2)
    with pytest.raises(WeightsError, match=r"more than 0.0001"):
        compare("features", small, small + 2e-4)
    with pytest.raises(WeightsError, match=r"\(2,\), the written model \(1,\)"):
        compare("features", big, big[:1])
