"""Checkpoints written beside the training: of the step they name, one at a time, errors told."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from surgrec.configs.model import MaeConfig

from surgrec.training import saver as module
from surgrec.training.checkpoint import list_checkpoints
from surgrec.training.errors import UserError
from surgrec.training.saver import Saver, restore
from surgrec.training.step import train_step


@pytest.fixture
def parts(dry_mae, synthetic_parts):
    return synthetic_parts(dry_mae)


def new_saver(folder: Path, parts) -> Saver:
    return Saver(folder, parts.world, parts.objective, parts.optimizer, parts.config.checkpoint)


@pytest.fixture
def gate(monkeypatch):
    """Holds writers back until it is set."""
    opened = threading.Event()
    original = module.save_checkpoint

    def held(*arguments):
        assert opened.wait(60)
        return original(*arguments)

    monkeypatch.setattr(module, "save_checkpoint", held)
    return opened


def test_training_goes_on_while_the_step_that_was_saved_is_written(parts, gate, tmp_path):
    saver = new_saver(tmp_path, parts)
    train_step(parts, 1)
    expected = {name: value.clone() for name, value in parts.objective.state_dict().items()}
    saver.save(1, {"loader": parts.batches.state_dict()})
    train_step(parts, 2)
    assert list_checkpoints(tmp_path) == []
    assert saver.last is None
    gate.set()
    saver.wait()
    assert saver.last == tmp_path / "step-00000001"
    written = load_file(saver.last / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    assert load_file(saver.last / "optimizer.safetensors")["step.decoder.mask_token"] == 1


def test_the_next_save_waits_for_the_one_before(parts, gate, tmp_path):
    saver = new_saver(tmp_path, parts)
    saver.save(1, {})
    threading.Timer(0.2, gate.set).start()
    saver.save(2, {})
    assert list_checkpoints(tmp_path)[0][0] == 1
    with saver:
        pass
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1, 2]


def test_an_error_of_the_writer_is_told_at_the_next_save(parts, tmp_path):
    folder = tmp_path / "checkpoints"
    saver = new_saver(folder, parts)
    saver.save(1, {})
    saver.wait()
    shutil.move(folder, tmp_path / "elsewhere")
    folder.write_text("in the way")
    saver.save(2, {})
    with pytest.raises(UserError, match=r"the checkpoint of step 2 cannot be written in .*Not a directory"):
        saver.save(3, {})
    # It is told once.
    saver.wait()
    assert saver.last == folder / "step-00000001"


def test_an_error_that_ends_the_run_lets_the_checkpoint_be_finished(parts, gate, tmp_path):
    saver = new_saver(tmp_path, parts)
    saver.save(1, {})
    threading.Timer(0.2, gate.set).start()
    with pytest.raises(UserError, match="loss nan"), saver:
        raise UserError("loss nan")
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1]


def test_a_second_interrupt_does_not_wait(parts, gate, tmp_path):
    saver = new_saver(tmp_path, parts)
    saver.save(1, {})
    with pytest.raises(KeyboardInterrupt), saver:
        raise KeyboardInterrupt
    assert list_checkpoints(tmp_path) == []
    gate.set()


def test_weights_of_another_model_are_refused_by_name(parts, dry_mae, synthetic_parts, tmp_path):
    with new_saver(tmp_path, parts) as saver:
        saver.save(1, {})

    def refusal(**changed) -> str:
        other = synthetic_parts(replace(dry_mae, model=replace(dry_mae.model, **changed)))
        with pytest.raises(UserError, match="step 1 does not fit this run") as caught:
            restore(tmp_path / "step-00000001", other.objective, other.optimizer, other.world)
        return str(caught.value)

    assert isinstance(dry_mae.model, MaeConfig)
    assert "has no decoder.blocks.1." in refusal(decoder_depth=2)
    assert "encoder_to_decoder.weight has shape (48, 192), here (96, 192)" in refusal(
        decoder_width=96, decoder_heads=6
    )
