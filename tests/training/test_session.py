"""Whole runs on real video, in this process: records, events, resuming, errors."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from surgrec.configs.pretrain import from_document
from surgrec.configs.yaml_io import load_yaml
from surgrec.loaders.clip_loader import ClipLoader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from surgrec.models.mae import MaskedAutoencoder
from surgrec.training.checkpoint import list_checkpoints
from surgrec.training.errors import UserError
from surgrec.training.guard import BadStepError
from surgrec.training.session import pretrain

SCALARS = {
    "train/loss",
    "train/lr",
    "train/weight_decay",
    "train/gradient_norm",
    "train/bad_steps",
    "speed/clips_per_second",
    "speed/data_wait",
    "data/decoded_per_output_frame",
    "data/video_repetition",
    "data/decode_repetition",
    "data/ledger",
    "data/substitutes",
    "memory/host_gib",
    "mix_domain/endoscopy/drawn",
    "mix_domain/endoscopy/expected",
    "mix_dataset/laparoscopy/mpeg4_avi/drawn",
}
HEALTH = {
    f"monitor/{name}" for name in ("feature_std", "rankme", "clip_cosine", "teacher_distance", "collapsed")
}


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def steps(run: Path, tag: str = "train/loss") -> list[int]:
    return [event.step for event in events(run).Scalars(tag)]


def wait_for_the_next_second() -> None:
    """Event files that one process opens within a second differ in a counter, and 10 sorts before 9."""
    time.sleep(1.0 - time.time() % 1.0)


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def finished(mae, capsys):
    """A finished MAE run: its folder, and what it printed."""
    assert pretrain(mae) == 0
    return mae.out, capsys.readouterr().out


def test_a_run_leaves_its_records(finished, mae):
    run, printed = finished
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [3, 6]
    assert replace(from_document(load_yaml(run / "config.yaml")), out=mae.out) == mae
    start = json.loads((run / "run.json").read_text())["starts"]
    assert len(start) == 1
    assert {"command", "versions", "git", "host", "device", "index", "time"} <= start[0].keys()
    assert start[0]["index"]["videos"] == 3
    assert start[0]["resumed_from_step"] is None
    assert start[0]["ended"]["reason"] == "finished"
    assert "torch" in start[0]["versions"]
    assert (run / "ledger.jsonl").read_text() == ""
    for expected in (
        "loss: ",
        "clips/s: ",
        "could not be decoded: 0",
        "step-00000006",
        "tensorboard --logdir",
    ):
        assert expected in printed
    picture = Image.open(run / "reconstruction.png")
    # Two clips of three rows, two tubelets: see panels.py for the borders.
    assert picture.size == (2 * 34 - 2, 2 * (3 * 34 + 6) - 8)


def test_tensorboard_holds_what_the_run_measured(finished):
    run, _ = finished
    found = events(run)
    assert set(found.Tags()["scalars"]) >= SCALARS
    assert "speed/mfu" not in found.Tags()["scalars"]  # the peak of a CPU is not known
    assert steps(run) == [1, 2, 4, 6]
    assert [e.step for e in found.Images("input, mask, reconstruction")] == [1, 3, 6]
    assert "mask_ratio: 0.5" in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    plugins = found.PluginTagToContent("hparams")
    assert set(plugins) == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    for values in metrics(run):
        assert math.isfinite(values["loss"])
        assert 0 <= values["speed/data_wait"] <= 1
        assert values["data/decoded_per_output_frame"] >= 1
        assert 0 < values["data/video_repetition"] <= 1  # 3 videos, larger batches
        assert values["data/decode_repetition"] == 0
        drawn = [v for k, v in values.items() if k.startswith("mix_domain") and k.endswith("drawn")]
        assert sum(drawn) == pytest.approx(1)
    tensorboard = [event.value for event in found.Scalars("train/loss")]
    assert tensorboard == pytest.approx([values["loss"] for values in metrics(run)])


def test_jepa_logs_the_health_of_its_features(jepa):
    assert pretrain(jepa) == 0
    assert set(events(jepa.out).Tags()["scalars"]) >= SCALARS | HEALTH
    assert not (jepa.out / "reconstruction.png").exists()
    assert any(name.startswith("teacher.") for name in weights(jepa.out, 6))


@pytest.mark.parametrize("kind", ["mae", "jepa"])
def test_stopped_and_resumed_is_as_if_never_stopped(kind, request, tmp_path, monkeypatch):
    config = request.getfixturevalue(kind)
    whole = replace(config, out=tmp_path / "whole")
    assert pretrain(whole) == 0

    handed_out = 0
    original = ClipLoader.__next__

    def stopping(loader):
        nonlocal handed_out
        handed_out += 1
        if handed_out == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(loader)

    monkeypatch.setattr(ClipLoader, "__next__", stopping)
    assert pretrain(config) == 128 + signal.SIGTERM
    assert [step for step, _ in list_checkpoints(config.out / "checkpoints")] == [3, 4]
    monkeypatch.undo()
    wait_for_the_next_second()
    assert pretrain(config) == 0
    assert same(weights(config.out, 6), weights(whole.out, 6))
    assert steps(config.out) == [1, 2, 4, 6]
    assert [values["step"] for values in metrics(config.out)] == [1, 2, 4, 6]
    starts = json.loads((config.out / "run.json").read_text())["starts"]
    assert [start["resumed_from_step"] for start in starts] == [None, 4]
    assert [start["ended"]["reason"] for start in starts] == ["SIGTERM", "finished"]


def test_points_after_the_checkpoint_are_withdrawn(mae, tmp_path):
    """A run that died behind its last checkpoint has logged steps that are taken again."""
    assert pretrain(mae) == 0
    last = mae.out / "checkpoints" / "step-00000006"
    last.rename(tmp_path / "gone")
    wait_for_the_next_second()
    assert pretrain(mae) == 0
    assert steps(mae.out) == [1, 2, 4, 6]
    assert [values["step"] for values in metrics(mae.out)] == [1, 2, 4, 6]
    assert same(weights(mae.out, 6), load_file(tmp_path / "gone" / "model.safetensors"))


def test_a_finished_run_is_left_alone(finished, mae, capsys):
    before = sorted(mae.out.rglob("*"))
    assert pretrain(mae) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert sorted(mae.out.rglob("*")) == before


def test_its_config_repeats_a_run(finished, mae, tmp_path):
    again = replace(from_document(load_yaml(mae.out / "config.yaml")), out=tmp_path / "again")
    assert pretrain(again) == 0
    assert same(weights(again.out, 6), weights(mae.out, 6))


def test_micro_batch_may_change_on_resume(mae, capsys):
    assert pretrain(replace(mae, checkpoint=replace(mae.checkpoint, every=2))) == 0
    (mae.out / "checkpoints" / "step-00000006").rename(mae.out / "gone")
    assert pretrain(replace(mae, micro_batch=2)) == 0
    assert "resumed from" in capsys.readouterr().out
    for a, b in zip(
        weights(mae.out, 6).values(), load_file(mae.out / "gone" / "model.safetensors").values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    changed = json.loads((mae.out / "run.json").read_text())["starts"][1]["changed"]
    assert changed["micro_batch"] == [None, 2]


class _NotFinite:
    """MAE's loss, NaN for the clips of step 2."""

    def __init__(self) -> None:
        self.original = MaskedAutoencoder.forward

    def __call__(self, model, frames, samples, step=0, monitor=False):
        output = self.original(model, frames, samples, step, monitor)
        return replace(output, loss=output.loss * float("nan")) if 5 in samples.tolist() else output


@pytest.fixture
def not_finite(monkeypatch):
    poison = _NotFinite()
    monkeypatch.setattr(MaskedAutoencoder, "forward", lambda *args, **kwargs: poison(*args, **kwargs))


@pytest.mark.usefixtures("not_finite")
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_clips(mae):
    config = replace(mae, checkpoint=replace(mae.checkpoint, every=1))
    with pytest.raises(BadStepError, match=r"step 2: loss nan.*nan-step-2.json"):
        pretrain(config)
    dump = json.loads((config.out / "nan-step-2.json").read_text())
    assert (dump["step"], dump["loss"]) == (2, "nan")
    clips = dump["ranks"][0]["clips"]
    assert [clip["sample"] for clip in clips] == [4, 5, 6, 7]
    assert all(Path(clip["path"]).is_file() and len(clip["frames"]) == 4 for clip in clips)
    assert [step for step, _ in list_checkpoints(config.out / "checkpoints")] == [1]
    assert (
        "error: step 2" in json.loads((config.out / "run.json").read_text())["starts"][0]["ended"]["reason"]
    )


@pytest.mark.usefixtures("not_finite")
def test_bad_steps_may_be_skipped(mae):
    assert pretrain(replace(mae, max_bad_steps=1)) == 0
    assert metrics(mae.out)[-1]["bad_steps"] == 1
    assert all(math.isfinite(values["loss"]) for values in metrics(mae.out))
    assert (mae.out / "nan-step-2.json").exists()


def test_user_errors_are_told(mae, tmp_path):
    def with_data(**values):
        return replace(mae, data=replace(mae.data, **values))

    with pytest.raises(UserError, match=r"no such index.*surgrec.index"):
        pretrain(with_data(index=tmp_path / "none.h5"))
    (tmp_path / "text.h5").write_text("no index")
    with pytest.raises(UserError, match="not an HDF5 file"):
        pretrain(with_data(index=tmp_path / "text.h5"))
    with pytest.raises(UserError, match="none of its 3 videos gives a clip"):
        pretrain(with_data(frames=64, stride=64))
    with pytest.raises(UserError, match="33"):
        pretrain(with_data(size=33))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            pretrain(replace(mae, device="cuda"))
    assert not list((mae.out).rglob("step-*"))
    with pytest.raises(UserError, match=r"run folder .* cannot be written"):
        pretrain(replace(mae, out=mae.data.index / "run"))


def test_another_configuration_in_the_same_folder_is_refused(finished, mae):
    with pytest.raises(UserError, match=r"optim.lr: 0.001 there, 0.5 here"):
        pretrain(replace(mae, optim=replace(mae.optim, lr=0.5)))
    document = yaml.safe_load((mae.out / "config.yaml").read_text())
    assert document["optim"]["lr"] == 0.001


def test_unusable_videos_are_told_and_recorded(mae, streams, tmp_path, capsys):
    from surgrec.corpus.build import build_index
    from surgrec.corpus.discovery import find_entries

    streams.make_stream("h264_default", tmp_path / "good")
    streams.make_stream("h264_default", tmp_path / "short", frames=3)
    (tmp_path / "text.mp4").write_text("not a video")
    index = tmp_path / "small.h5"
    build_index(find_entries([str(tmp_path)]), index, workers=1)
    assert pretrain(replace(mae, steps=1, data=replace(mae.data, index=index))) == 0
    printed = capsys.readouterr().out
    assert "left out" in printed
    assert "short.mp4" in printed
    lines = [json.loads(line) for line in (mae.out / "ledger.jsonl").read_text().splitlines()]
    assert sorted(Path(line["path"]).name for line in lines) == ["short.mp4", "text.mp4"]


def test_a_checkpoint_that_cannot_be_written_ends_the_run(mae):
    mae.out.mkdir()
    (mae.out / "checkpoints").write_text("in the way")
    with pytest.raises(
        UserError, match=r"the checkpoint of step 3 cannot be written in .*go on from the last"
    ):
        pretrain(mae)
    assert metrics(mae.out)[-1]["step"] == 6  # it is told when the next one is due
    ended = json.loads((mae.out / "run.json").read_text())["starts"][0]["ended"]
    assert "the checkpoint of step 3" in ended["reason"]


def test_weights_that_overflow_are_in_no_checkpoint(mae):
    """Loss and gradients of the last step are finite; what it makes of the weights is not."""
    optim = replace(mae.optim, lr=1e39, start_lr=1e39, final_lr=1e39, lr_per_256=False)
    config = replace(mae, steps=1, optim=optim)
    with pytest.raises(UserError, match="after step 1 there are weights that are not finite"):
        pretrain(config)
    assert not list_checkpoints(config.out / "checkpoints")
    ended = json.loads((config.out / "run.json").read_text())["starts"][0]["ended"]
    assert "not finite" in ended["reason"]


def test_an_unexpected_error_is_in_the_record(mae, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("surgrec.training.loop.train_step", fail)
    with pytest.raises(ZeroDivisionError):
        pretrain(mae)
    ended = json.loads((mae.out / "run.json").read_text())["starts"][0]["ended"]
    assert ended["reason"] == "error: ZeroDivisionError: by zero"


def test_a_share_for_the_decoder_is_named(mae, capsys):
    assert pretrain(replace(mae, steps=1, model=replace(mae.model, decoder_share=0.5))) == 0
    assert "the decoder rebuilds 50% of the hidden tokens" in capsys.readouterr().out
