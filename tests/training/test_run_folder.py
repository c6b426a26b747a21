"""Which starts fit a run folder, and which are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from surgrec.configs.pretrain import to_document

from surgrec.training.checkpoint import Checkpoint, DamagedCheckpointError, save_checkpoint
from surgrec.training.errors import UserError
from surgrec.training.run_folder import (
    RunFolder,
    choose_folder,
    drop_later_lines,
    find_checkpoint,
    open_folder,
    write_config,
)


@pytest.fixture
def run(tmp_path, dry_mae):
    """A run folder with checkpoints of steps 3 and 6, made with `dry_mae` on index "abc"."""
    folder = RunFolder(tmp_path / "run")
    open_folder(folder).close()
    write_config(folder, dry_mae)
    for step in (3, 6):
        values = {"config": to_document(dry_mae), "index_digest": "abc"}
        save_checkpoint(folder.checkpoints, Checkpoint(step, {"w": torch.zeros(3)}, {}, values))
    return folder


def damage(run: RunFolder, step: int) -> None:
    file = run.checkpoints / f"step-{step:08d}" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_auto_takes_the_newest(run, dry_mae):
    assert find_checkpoint(run, dry_mae, "abc").name == "step-00000006"


def test_auto_in_an_empty_folder_is_a_new_run(tmp_path, dry_mae):
    assert find_checkpoint(RunFolder(tmp_path), dry_mae, "abc") is None


def test_a_path_is_taken_from_another_run(run, tmp_path, dry_mae):
    wanted = replace(dry_mae, resume=str(run.checkpoints / "step-00000003"))
    assert find_checkpoint(RunFolder(tmp_path / "other"), wanted, "abc").name == "step-00000003"


def test_a_path_with_later_steps_in_the_folder_must_branch_off(run, dry_mae):
    wanted = replace(dry_mae, resume=str(run.checkpoints / "step-00000003"))
    with pytest.raises(UserError, match=r"up to step 6.*another --out to branch off from step 3"):
        find_checkpoint(run, wanted, "abc")


def test_none_insists_on_an_empty_folder(run, tmp_path, dry_mae):
    new = replace(dry_mae, resume="none")
    assert find_checkpoint(RunFolder(tmp_path / "other"), new, "abc") is None
    with pytest.raises(UserError, match="up to step 6"):
        find_checkpoint(run, new, "abc")


def test_a_path_that_is_not_there(run, dry_mae):
    with pytest.raises(UserError, match="no such checkpoint folder"):
        find_checkpoint(run, replace(dry_mae, resume="runs/nowhere"), "abc")


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 7},
        {"batch": 8},
        {"seed": 1},
        {"precision": "bf16"},
        {"optim.lr": 0.5},
        {"data.size": 64},
        {"data.flip": True},
        {"data.balance.domain": 0.25},
        {"model.mask_ratio": 0.9},
    ],
)
def test_other_mathematics_are_refused_by_name(run, dry_mae, changed):
    config = dry_mae
    for name, value in changed.items():
        *groups, last = name.split(".")
        parts = [config]
        for group in groups:
            parts.append(getattr(parts[-1], group))
        built = replace(parts.pop(), **{last: value})
        for group in reversed(groups):
            built = replace(parts.pop(), **{group: built})
        config = built
        with pytest.raises(UserError, match=f"another configuration:\n  {name}: .* there, .* here\n"):
            find_checkpoint(run, config, "abc")


def test_what_does_not_change_the_result_may_change(run, dry_mae):
    config = replace(
        dry_mae,
        name="other",
        micro_batch=1,
        max_bad_steps=3,
        log=replace(dry_mae.log, every=1),
        checkpoint=replace(dry_mae.checkpoint, every=1),
        data=replace(dry_mae.data, threads=7, prefetch=1, drop_disposable=False),
    )
    assert find_checkpoint(run, config, "abc").name == "step-00000006"


def test_another_index_is_refused(run, dry_mae):
    with pytest.raises(UserError, match=r"index with digest abc.*has xyz"):
        find_checkpoint(run, dry_mae, "xyz")


def test_damage_is_an_error_unless_falling_back_is_asked(run, dry_mae, capsys):
    damage(run, 6)
    with pytest.raises(
        DamagedCheckpointError, match=r"step-00000006/model\.safetensors is damaged(?s:.*)fall-back"
    ):
        find_checkpoint(run, dry_mae, "abc")
    willing = replace(dry_mae, checkpoint=replace(dry_mae.checkpoint, fall_back=True))
    assert find_checkpoint(run, willing, "abc").name == "step-00000003"
    assert "set aside" in capsys.readouterr().out
    assert (run.checkpoints / "step-00000006.damaged").is_dir()
    damage(run, 3)
    with pytest.raises(UserError, match="no checkpoint is left"):
        find_checkpoint(run, willing, "abc")


def test_a_damaged_config_is_named(run, dry_mae):
    run.config.write_text("steps: [")
    with pytest.raises(UserError, match=r"config\.yaml is not YAML"):
        find_checkpoint(run, dry_mae, "abc")


def test_folders_are_new_unless_named(tmp_path, dry_mae, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = choose_folder(dry_mae.out, dry_mae.name)
    assert first.path.parent.name == "runs"
    assert first.path.name.startswith("test-")
    first.path.mkdir(parents=True)
    assert choose_folder(dry_mae.out, dry_mae.name).path != first.path
    assert choose_folder(tmp_path, dry_mae.name).path == tmp_path


LOCK = """
import sys
from pathlib import Path
from surgrec.training.errors import UserError
from surgrec.training.run_folder import RunFolder, open_folder
try:
    open_folder(RunFolder(Path(sys.argv[1])))
except UserError as error:
    print(error)
"""


def test_one_process_at_a_time(tmp_path):
    with open_folder(RunFolder(tmp_path)):
        again = subprocess.run([sys.executable, "-c", LOCK, str(tmp_path)], capture_output=True, text=True)
        assert "is training in" in again.stdout, again.stderr
        assert "pid" in again.stdout
    open_folder(RunFolder(tmp_path)).close()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*--out"):
        open_folder(RunFolder(tmp_path / "file" / "run"))


def test_later_and_torn_lines_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "x": s}) + "\n" for s in (1, 2, 3, 4)) + '{"step": 5, "x')
    drop_later_lines(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    drop_later_lines(tmp_path / "nothing", 2)
    assert not (tmp_path / "nothing").exists()


def test_a_folder_of_other_files_is_no_run(tmp_path, run):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4", ".hidden"):
        (tmp_path / "videos" / name).touch()
    with pytest.raises(UserError, match=r"holds other files \(a.mp4, b.mp4, c.mp4, \.\.\.\) and no run"):
        open_folder(RunFolder(tmp_path / "videos"))
    assert not (tmp_path / "videos" / ".lock").exists()
    (run.path / "notes.txt").touch()
    open_folder(run).close()


def test_a_start_that_failed_before_its_first_step_binds_nobody(tmp_path, dry_mae):
    folder = RunFolder(tmp_path / "run")
    open_folder(folder).close()
    write_config(folder, replace(dry_mae, batch=8))
    folder.metrics.touch()
    assert find_checkpoint(folder, dry_mae, "abc") is None
    folder.metrics.write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="batch: 8 there"):
        find_checkpoint(folder, dry_mae, "abc")
