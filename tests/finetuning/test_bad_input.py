"""Input that fine-tuning refuses, before it trains and after: files, options, saved networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from surgrec.configs.finetune import FinetuneConfig

from surgrec.evaluation.features import FeatureError
from surgrec.evaluation.manifest import ManifestError
from surgrec.finetuning.network_file import NetworkFileError, read_network
from surgrec.finetuning.options import check_options
from surgrec.finetuning.session import Finished, Progress, finetune
from surgrec.training.checkpoint import list_checkpoints
from surgrec.training.errors import UserError
from surgrec.weights.errors import WeightsError


def run(config: FinetuneConfig) -> Finished:
    return finetune(config, 1, Progress())


def test_options_that_make_no_sense() -> None:
    config = FinetuneConfig(Path("m.json"), Path("."), "random:demo")
    check_options(config)
    for options, text in (
        ({"epochs": 0}, "--epochs is 0; it is at least 1"),
        ({"batch": 0}, "--batch is 0"),
        ({"batch": 7}, "--batch is 7; mixup and cutmix mix pairs"),
        ({"lr": 0.0}, "--lr is 0.0"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"weight_decay": -1.0}, "--weight-decay is -1.0"),
        ({"warmup": 1.0}, "--warmup is 1.0"),
        ({"ema": 1.0}, "--ema is 1.0"),
        ({"clip": 0.0}, "--clip is 0.0"),
        ({"label_smoothing": 1.5}, "--label-smoothing is 1.5"),
        ({"layer_decay": 0.0}, "--layer-decay is 0.0"),
        ({"layer_decay": 1.1}, "--layer-decay is 1.1"),
        ({"drop_path": 1.0}, "--drop-path is 1.0"),
        ({"mode": "lora", "rank": 0}, "--rank is 0"),
        ({"mode": "lora", "alpha": -2.0}, "--alpha is -2.0"),
        ({"rank": 4}, "--rank has no effect with --mode full"),
        ({"mode": "head", "drop_path": 0.1}, "--drop-path has no effect with --mode head"),
        ({"randaugment_magnitude": 31}, "--randaugment-magnitude is 31; it is 0 to 30"),
        ({"randaugment_ops": -1}, "--randaugment-ops is -1"),
        ({"mixup": -0.1}, "--mixup is -0.1"),
        ({"cutmix": float("inf")}, "--cutmix is inf"),
        ({"crop_scale": (0.0, 1.0)}, "crop scale is 0.0..1.0"),
        ({"crop_aspect": (2.0, 1.0)}, "crop aspect is 2.0..1.0"),
        ({"test_clips": 0}, "--test-clips is 0"),
        ({"test_views": ()}, "--test-views are empty"),
        ({"test_views": ("centre", "centre")}, "name each once"),
        ({"blocks": 5, "head": "attentive"}, "--blocks is 5"),
        ({"blocks": 2}, "--blocks 2 is of an attentive head"),
        ({"resamples": 0}, "--resamples is 0"),
        ({"seed": -1}, "--seed is -1"),
    ):
        with pytest.raises(ValueError, match=text):
            check_options(replace(config, **options))  # type: ignore[arg-type]


def test_input_that_cannot_be_trained_on(indexed: Any, tmp_path: Path) -> None:
    config = indexed.config(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    for given, error, text in (
        (
            replace(config, model="random:timm:resnet18", mode="lora"),
            ValueError,
            "no linear layers .* give --mode full or head",
        ),
        (
            replace(config, model="random:nothing"),
            ValueError,
            "no model 'random:nothing': give --model",
        ),
        (replace(config, model=f"ckpt:{tmp_path / 'none'}"), WeightsError, "there is no such folder"),
        (replace(config, data_root=tmp_path / "nowhere"), ValueError, "nowhere: no such folder"),
        (replace(config, manifest=tmp_path / "none.json"), ManifestError, "no such manifest"),
        (replace(config, out=tmp_path / "other"), UserError, "holds other files"),
        (replace(config, mode="lora", rank=65), ValueError, "--rank is 65; .* at most 64"),
    ):
        with pytest.raises(error, match=text):
            run(given)
    assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"


def test_splits_of_which_nothing_can_be_learned_or_said(indexed: Any, tmp_path: Path) -> None:
    rows = list(indexed.rows)
    for name, given, text in (
        ("one", [replace(row, label=1) for row in rows], "one class only, 'up'"),
        (
            "empty",
            [replace(row, split="train") if row.split == "val" else row for row in rows],
            "no row of it",
        ),
        (
            "lost",
            [replace(row, path="gone.mp4") if row.split == "test" else row for row in rows],
            "all 20 rows",
        ),
    ):
        with pytest.raises(FeatureError, match=text):
            run(indexed.config(tmp_path / name, given))


def test_a_training_that_diverges_is_stopped(indexed: Any, tmp_path: Path) -> None:
    config = indexed.config(tmp_path, lr=1e30, epochs=2, clip=None)
    with pytest.raises(
        UserError, match=r"the training diverges. Give a smaller --lr than 1e\+30|every epoch diverged"
    ):
        run(config)
    assert not config.results.exists()


def test_another_process_in_the_folder(indexed: Any, tmp_path: Path) -> None:
    from surgrec.training.run_folder import RunFolder, open_folder

    config = indexed.config(tmp_path)
    with open_folder(RunFolder(config.out)), pytest.raises(UserError, match="another process"):
        run(config)


def test_files_of_a_run_that_are_damaged(indexed: Any, tmp_path: Path) -> None:
    config = indexed.config(tmp_path, epochs=1)
    finished = run(config)
    result = finished.run.result.read_text()
    finished.run.result.write_text(result[:-20])
    with pytest.raises(
        UserError, match=r"result.json is damaged: not JSON .* Remove it, and test is asked again"
    ):
        run(config)
    finished.run.result.unlink()
    assert run(config).result["network_digest"] == json.loads(result)["network_digest"]
    finished.run.result.unlink()
    (_, path), *_ = list_checkpoints(finished.run.checkpoints)
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"\1\2\3\4")
    with pytest.raises(UserError, match=r"model.safetensors is damaged.*another --out"):
        run(config)


def test_networks_that_cannot_be_read(indexed: Any, tmp_path: Path) -> None:
    network = run(indexed.config(tmp_path, epochs=1)).run.network
    cpu = torch.device("cpu")
    with safe_open(network, "pt") as file:
        about = json.loads(file.metadata()["surgrec"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    for name, change, text in (
        ("format", lambda: about | {"format": "x"}, "no saved network"),
        ("version", lambda: about | {"format_version": 9}, "format version 9"),
        ("classes", lambda: about | {"classes": ["a", "b"]}, "its digest is"),
        ("head", lambda: about | {"head": "deep"}, "`head` is 'deep'"),
        ("geometry", lambda: about | {"geometry": 3}, "`geometry` is 3"),
    ):
        copy = tmp_path / f"{name}.safetensors"
        save_file(tensors, copy, {"surgrec": json.dumps(change())})
        with pytest.raises(NetworkFileError, match=text) as caught:
            read_network(copy, cpu)
        assert str(copy) in str(caught.value)
        assert "surgrec.finetune" in str(caught.value)
    changed = tensors | {"head.classify.bias": tensors["head.classify.bias"] + 1}
    save_file(changed, tmp_path / "weights.safetensors", {"surgrec": json.dumps(about)})
    (tmp_path / "short.safetensors").write_bytes(network.read_bytes()[:-100])
    save_file(tensors, tmp_path / "bare.safetensors")
    for name, text in (
        ("weights", "its digest is"),
        ("short", "not a safetensors file, or a truncated one"),
        ("bare", "no saved network"),
        ("gone", "no such file"),
    ):
        with pytest.raises(NetworkFileError, match=text):
            read_network(tmp_path / f"{name}.safetensors", cpu)
