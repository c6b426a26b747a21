"""Fine-tuning end to end on handwriting in motion: what can be learned is, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from surgrec.configs.finetune import FinetuneConfig
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.ledger import read_ledger
from surgrec.loaders.packet_index import PacketIndex

from surgrec.evaluation.manifest import Row
from surgrec.evaluation.results import read_results
from surgrec.finetune import main, parse
from surgrec.finetuning import session
from surgrec.finetuning.labelled_clips import Clips, clips_in_order
from surgrec.finetuning.network_file import read_network
from surgrec.finetuning.session import Finished, Progress, finetune
from surgrec.training.checkpoint import list_checkpoints, load_checkpoint
from surgrec.training.errors import UserError

CPU = torch.device("cpu")
AUGMENTED: dict[str, Any] = {
    "mixup": 0.8,
    "cutmix": 1.0,
    "randaugment_ops": 2,
    "label_smoothing": 0.1,
    "crop_scale": (0.5, 1.0),
    "drop_path": 0.3,
}
LEARNED: dict[str, Any] = {"epochs": 24, "drop_path": 0.0, "layer_decay": 1.0}


def run(config: FinetuneConfig) -> Finished:
    return finetune(config, 1, Progress())


def said_of_test(config: FinetuneConfig, digits: Any, network: Path) -> list[list[int]]:
    """[row, class] of all rows of test, by the saved network on one clip of each."""
    loaded = read_network(network, CPU)
    found = []
    index = PacketIndex.open(digits.index)
    numbers = {path: number for number, path in enumerate(index.videos.path)}
    with ClipStream(index, replace(loaded.cut.data, index=digits.index), CPU, 1) as stream:
        for number, row in enumerate(digits.rows):
            if row.split == "test":
                # Of 32 frames a clip of 8, 4 apart, takes 29: of its starts, 0 to 3, the middle is 2.
                request = ClipRequest(0, numbers[str(config.data_root / row.path)], tuple(range(2, 32, 4)))
                frames = next(stream.read([[request]])).frames
                found.append([number, int(loaded(frames).argmax())])
    return found


def test_full_fine_tuning_learns_motion(indexed: Any, tmp_path: Path) -> None:
    config = indexed.config(tmp_path, **LEARNED)
    finished = run(config)
    result = finished.result
    accuracy = result["figures"]["accuracy"]
    assert accuracy["value"] >= 0.75
    assert result["baselines"]["majority"]["accuracy"]["value"] == 0.5
    assert result["rows"] == {s: {"read": n, "of": n} for s, n in (("train", 40), ("val", 20), ("test", 20))}
    assert (result["mode"], result["features_digest"], result["substitutes"]) == ("finetune-full", "", 0)
    assert result["geometry"] == {"frames": 8, "stride": 4, "size": 32}
    assert [entry["epoch"] for entry in result["val"]] == list(range(1, 25))
    best = min(result["val"], key=lambda entry: (-entry["score"], entry["loss"]))
    assert result["chosen"] == {name: best[name] for name in ("epoch", "score", "loss")}
    (read,) = read_results(config.results)
    assert (read.n, read.m, read.mode) == (20, 20, "finetune-full")
    assert said_of_test(config, indexed, finished.run.network) == result["predictions"]
    loaded = read_network(finished.run.network, CPU)
    assert loaded.digest == result["network_digest"]
    assert loaded.about.manifest_digest == result["manifest_digest"]
    # The encoder and the head.
    assert result["trained_parameters"] == sum(value.numel() for value in loaded.classifier.parameters())
    kept = dict(list_checkpoints(finished.run.checkpoints))
    assert sorted(kept) == sorted({5 * best["epoch"], 5 * 24})
    # The network is the average of the best epoch, not its weights.
    saved = load_checkpoint(kept[5 * best["epoch"]]).model
    for name, value in loaded.classifier.named_parameters():
        assert torch.equal(value, saved[f"average.{name}"])
    assert any(
        not torch.equal(saved[f"weights.{n}"], saved[f"average.{n}"])
        for n, _ in loaded.classifier.named_parameters()
    )


def test_random_labels_stay_at_chance(indexed: Any, tmp_path: Path) -> None:
    """Two shuffles, 96 test rows: 50 % +- 4 standard deviations of 5.1 %, from networks that learned train by
    heart."""
    right = 0.0
    for shuffle in range(2):
        generator = np.random.default_rng(shuffle)
        labels = generator.permutation(np.arange(80) % 2)
        splits = generator.permutation(["train"] * 24 + ["val"] * 8 + ["test"] * 48)
        rows = [
            replace(row, label=int(label), split=str(split))
            for row, label, split in zip(indexed.rows, labels, splits, strict=True)
        ]
        folder = tmp_path / str(shuffle)
        result = run(indexed.config(folder, rows, **LEARNED | {"epochs": 48})).result
        assert result["val"][-1]["train_loss"] < 0.5
        right += result["figures"]["accuracy"]["value"] / 2
    assert abs(right - 0.5) < 4 * np.sqrt(0.25 / 96)


def test_training_a_head_leaves_the_encoder_as_it_is(indexed: Any, tmp_path: Path) -> None:
    config = indexed.config(tmp_path, mode="head", head="attentive", epochs=2, mixup=0.8, flip=True)
    finished = run(config)
    saved = load_checkpoint(list_checkpoints(indexed.checkpoint / "checkpoints")[-1][1]).model
    loaded = read_network(finished.run.network, CPU)
    encoder = loaded.classifier.encoder.transformer.state_dict()
    assert len(encoder) > 20
    for name, value in encoder.items():
        assert torch.equal(value, saved[f"encoder.{name}"]), name
    assert finished.result["trained_parameters"] == loaded.classifier.heads.parameters
    first = loaded.classifier.heads.first([0])
    assert not torch.equal(loaded.classifier.head_weights()["query"], first["query"])
    assert finished.result["mode"] == "finetune-head"


def test_low_rank_additions_are_merged(indexed: Any, tmp_path: Path) -> None:
    config = indexed.config(tmp_path, mode="lora", rank=4, alpha=8.0, epochs=16, lr=5e-3)
    finished = run(config)
    saved = load_checkpoint(list_checkpoints(indexed.checkpoint / "checkpoints")[-1][1]).model
    loaded = read_network(finished.run.network, CPU)
    encoder = loaded.classifier.encoder.transformer.state_dict()
    changed = [name for name, value in encoder.items() if not torch.equal(value, saved[f"encoder.{name}"])]
    parts = ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")
    assert sorted(changed) == sorted(f"blocks.{b}.{part}.weight" for b in range(2) for part in parts)
    for name in changed:
        assert torch.linalg.matrix_rank((encoder[name] - saved[f"encoder.{name}"]).double(), rtol=1e-4) <= 4
    added = 4 * sum((64 + 192, 64 + 64, 64 + 256, 256 + 64)) * 2
    assert finished.result["trained_parameters"] == added + 64 * 2 + 2
    assert finished.result["options"]["rank"] == 4
    assert said_of_test(config, indexed, finished.run.network) == finished.result["predictions"]
    assert finished.result["val"][-1]["train_loss"] < finished.result["val"][0]["train_loss"]


def test_a_jepa_from_first_weights(indexed: Any, tmp_path: Path) -> None:
    config = indexed.config(tmp_path, model="random:demo-jepa", mode="lora", epochs=1, layer_decay=0.8)
    finished = run(config)
    assert finished.result["geometry"] == {"frames": 8, "stride": 4, "size": 96}
    assert finished.result["model_identity"].startswith("random:demo-jepa/")
    assert said_of_test(config, indexed, finished.run.network) == finished.result["predictions"]


def test_a_stopped_run_goes_on_to_the_same_weights(
    indexed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(indexed.config(tmp_path / "whole", epochs=4, **AUGMENTED))
    config = indexed.config(tmp_path / "stopped", epochs=4, **AUGMENTED)
    save, saved = session.save_epoch, []

    def stop_after_two(*given: Any) -> None:
        save(*given)
        saved.append(given)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "save_epoch", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert not config.results.exists()
    said: list[str] = []
    finished = finetune(config, 1, Progress(said.append))
    assert any(line.endswith("after epoch 2") for line in said)
    assert len(saved) == 4
    names = ("network_digest", "val", "chosen", "predictions", "figures")
    assert {name: finished.result[name] for name in names} == {name: whole.result[name] for name in names}
    lines = (finished.run.metrics).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 15, 20]
    starts = json.loads(finished.run.record.read_text())["starts"]
    assert [start["resumed_from_step"] for start in starts] == [None, 10]
    # And once more from its configuration.
    again = parse(["--config", str(finished.run.config), "--out", str(tmp_path / "again")])
    assert (
        run(replace(again, results=config.results)).result["network_digest"] == whole.result["network_digest"]
    )
    # Another seed gives another network.
    other = run(replace(again, out=tmp_path / "other", seed=1, results=config.results))
    assert other.result["network_digest"] != whole.result["network_digest"]


def test_a_run_that_is_complete_is_not_repeated(indexed: Any, tmp_path: Path) -> None:
    config = indexed.config(tmp_path, epochs=1)
    first = run(config)
    line = config.results.read_bytes()
    again = run(config)
    assert (first.reused, again.reused) == (False, True)
    assert config.results.read_bytes() == line
    config.results.unlink()  # as if the run had been killed before it was appended
    run(config)
    assert config.results.read_bytes() == line
    before = first.run.network.read_bytes()
    rows = list(indexed.rows)
    for other, text in (
        (replace(config, lr=1e-3), "lr: 0.002 there, 0.001 here"),
        (replace(config, mode="head"), "mode: 'full' there, 'head' here"),
        (replace(config, model="random:demo"), "identity: "),
        (indexed.config(tmp_path, rows[::-1], epochs=1), "manifest_digest: "),
    ):
        with pytest.raises(UserError, match=text):
            run(other)
    indexed.config(tmp_path, rows)
    for _, path in list_checkpoints(first.run.checkpoints):
        path.rename(tmp_path / path.name)
    with pytest.raises(UserError, match="holds the result of another run: options is"):
        run(replace(config, lr=1e-3))
    assert first.run.network.read_bytes() == before


def fragile(digits: Any, rows: Sequence[Row]) -> list[Row]:
    """Rows whose videos lie in `fragile`."""
    return [row for row in rows if (digits.fragile / row.path).exists()]


def test_training_substitutes_and_counts_and_evaluation_does_not(indexed: Any, tmp_path: Path) -> None:
    rows = fragile(indexed, indexed.rows)
    tests = [number for number, row in enumerate(rows) if row.split == "test"]
    vals = [number for number, row in enumerate(rows) if row.split == "val"]
    damaged = (0, vals[0], tests[3])
    rows = [replace(row, label=number % 2) for number, row in enumerate(rows)]
    gone = Row("gone.mp4", 0, "test", "gone")
    results = []
    with indexed.damaged([rows[number].path for number in damaged]):
        for name in ("one", "two"):
            config = indexed.config(tmp_path / name, rows, data_root=indexed.fragile, epochs=2, batch=6)
            results.append(run(config).result)
    result = results[0]
    assert result["rows"]["train"] == {"read": 6, "of": 6}
    assert result["rows"]["test"] == {"read": 19, "of": 20}
    assert result["substitutes"] == 2  # once an epoch
    assert result["rows"]["val"] == {"read": 19, "of": 20}
    missing = [["val", rows[vals[0]].path], ["test", rows[tests[3]].path]]
    assert [[split, path] for split, path, _ in result["missing"]] == missing
    assert tests[3] not in [number for number, _ in result["predictions"]]
    assert results[1]["network_digest"] == result["network_digest"]
    failed = {entry.path for entry in read_ledger(tmp_path / "one" / "run" / "ledger.jsonl")}
    assert failed == {str(indexed.fragile / rows[0].path)}
    # A file that was never there is not drawn from, and named.
    config = indexed.config(tmp_path / "gone", [*indexed.rows, gone], epochs=1)
    result = run(config).result
    assert result["missing"] == [["test", "gone.mp4", "no such file"]]
    assert result["rows"]["test"] == {"read": 20, "of": 21}


def test_test_is_the_mean_over_clips_and_views(indexed: Any, tmp_path: Path) -> None:
    config = indexed.config(tmp_path, epochs=1, test_clips=3, test_views=("centre", "mirror"))
    finished = run(config)
    assert (finished.result["clips"], finished.result["views"]) == (3, ["centre", "mirror"])
    loaded = read_network(finished.run.network, CPU)
    manifest = session.read_manifest(config.manifest)
    clips = Clips(manifest, config.data_root, loaded.cut, tmp_path / "unused.h5", 1)
    rows = np.array([number for number, row in enumerate(manifest.rows) if row.split == "test"])
    with ClipStream(clips.index, replace(loaded.cut.data, index=indexed.index), CPU, 1) as stream:
        parts = list(clips_in_order(clips, rows, 3, ("centre", "mirror"), 12, stream))
    assert [len(part.rows) for part in parts] == [2] * 10
    said = []
    for part in parts:
        for row, frames in zip(part.rows, part.frames.split(6), strict=True):
            assert torch.equal(frames[1::2], frames[::2].flip(3))
            said.append([row, int(loaded(frames).mean(0).argmax())])
    assert said == finished.result["predictions"]


def test_the_command(
    indexed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = indexed.config(tmp_path)
    given = ["--manifest", str(config.manifest), "--data-root", str(indexed.folder), "--model", config.model]
    given += ["--out", str(config.out), "--results", str(config.results), "--device", "cpu", "--workers", "1"]
    given += ["--epochs", "1", "--resamples", "50", "--batch", "20"]
    save = session.save_epoch
    for error, status, text in (
        (KeyboardInterrupt(), 130, "stopped; with its --out"),
        (
            OSError(28, "No space left on device", "x"),
            1,
            "x: No space left on device; epochs that are finished",
        ),
    ):

        def fail(*_: Any, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(session, "save_epoch", fail)
        assert main(given) == status
        assert text in capsys.readouterr().err
    monkeypatch.setattr(session, "save_epoch", save)
    assert main(given) == 0
    printed = capsys.readouterr()
    assert "test: 20 of 20 rows, 20 groups; chosen on val: epoch 1" in printed.out
    assert "epoch 1 of 1: train loss" in printed.err
    assert main(given) == 0
    assert "holds this result already" in capsys.readouterr().out
    assert len(read_results(config.results)) == 1
    (tmp_path / "bad.yaml").write_text("epochs: 3\nflops: 4\n")
    assert main(["--config", str(tmp_path / "bad.yaml")]) == 2
    assert "config lacks manifest, data_root, model" in capsys.readouterr().err
    text = (config.out / "config.yaml").read_text()
    (tmp_path / "bad.yaml").write_text(text + "flops: 4\n")
    assert main(["--config", str(tmp_path / "bad.yaml")]) == 2
    assert "has no entry flops" in capsys.readouterr().err
    assert main([*given, "--config", "x"]) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(given) == 1
    assert "one process" in capsys.readouterr().err
