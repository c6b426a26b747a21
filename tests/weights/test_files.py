"""Files of weights: what is not one is refused by name, code in pickles never runs, memory stays near what is
used."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from surgrec.weights import files
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import read_file
from surgrec.weights.load import load_model
from surgrec.weights.names import parse_name

STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


class Harmful:
    """Makes a folder when its pickle is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    target = tmp_path / "harm"
    file = tmp_path / "model.pth"
    torch.save({"model": STATE, "args": Harmful(target)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        WeightsError, match=r"model\.pth: a pickle with more than tensors.*nothing of it was run"
    ):
        read_file(file)
    assert not target.exists()
    torch.load(file, weights_only=False)
    assert target.exists(), "the file would have done harm"


def test_training_values_are_plain(tmp_path: Path) -> None:
    """Options, losses by NumPy, shapes and ordered mappings stand in real checkpoints."""
    values = {"loss": np.float64(0.5), "step": np.int64(3), "shapes": [torch.Size([2, 3])], "model": STATE}
    torch.save(values, tmp_path / "model.pth")
    assert read_file(tmp_path / "model.pth").top["loss"] == 0.5


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_truncated_files(tmp_path: Path, kind: str, legacy: bool) -> None:
    file = tmp_path / "whole"
    if kind == "torch":
        torch.save({"model": STATE}, file, _use_new_zipfile_serialization=not legacy)
    else:
        save_file(STATE, file)
    whole = file.read_bytes()
    assert set(read_file(file).tensors) >= {"a.bias"} or "model/a.bias" in read_file(file).tensors
    for length in (len(whole) // 4, len(whole) // 2, len(whole) - 9):
        (tmp_path / "part.bin").write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"part\.bin: not a .*truncated one.*fetch it again"):
            read_file(tmp_path / "part.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page, not weights"),
        (b"no weights at all, but a text that goes on", "not a file of weights"),
        (os.urandom(4096), "not a file of weights"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"x\.pth: {message}"):
        load_model(tmp_path / "x.pth")


@given(noise=st.binary(min_size=1, max_size=300))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(tmp_path: Path, noise: bytes) -> None:
    (tmp_path / "noise").write_bytes(noise)
    with pytest.raises(WeightsError):
        read_file(tmp_path / "noise")


@given(place=st.integers(0, 10**9), value=st.integers(0, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_never_escapes(tmp_path: Path, place: int, value: int) -> None:
    """A checkpoint with one byte changed is read, or refused: no other error, and no crash."""
    memory = io.BytesIO()
    torch.save({"model": STATE, "epoch": 3}, memory)
    damaged = bytearray(memory.getvalue())
    damaged[place % len(damaged)] = value
    (tmp_path / "damaged.pth").write_bytes(damaged)
    try:
        tensors = read_file(tmp_path / "damaged.pth").tensors
    except WeightsError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3), "holds Tensor, not a mapping"),
        ({"epoch": 3}, r"holds no tensors \(epoch\)"),
        ({1: torch.ones(2)}, "holds dict, not a mapping of names"),
        ([torch.ones(2)], "holds list"),
    ],
)
def test_pickles_of_other_things(tmp_path: Path, value: Any, message: str) -> None:
    torch.save(value, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=message):
        read_file(tmp_path / "other.pth")


def test_mappings_that_hold_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless: dict[str, Any] = {"weight": torch.ones(2)}
    endless["again"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    with pytest.raises(WeightsError, match="without an end"):
        dict(read_file(tmp_path / "endless.pth").tensors)
    wide: dict[str, Any] = {"weight": torch.ones(2)}
    for _ in range(12):
        wide = {str(number): wide for number in range(8)}
    torch.save(wide, tmp_path / "wide.pth")
    monkeypatch.setattr(files, "MOST", 5000)
    with pytest.raises(WeightsError, match="without an end"):
        dict(read_file(tmp_path / "wide.pth").tensors)


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.pth: cannot be read \(No such file"):
        load_model(tmp_path / "gone.pth")
    with pytest.raises(WeightsError, match=r"a folder without config\.json"):
        read_file(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="a folder without weights"):
        read_file(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"model\.safetensors: an empty file"):
        read_file(tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"config\.json: JSON of no object"):
        read_file(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json: not JSON"):
        read_file(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "no `weight_map`"),
        ({"weight_map": {"a.weight": "../secret.safetensors"}}, "not in its folder"),
        ({"weight_map": {"a.weight": "/secret.safetensors"}}, "not in its folder"),
        ({"weight_map": {"a.weight": ".."}}, r"\.\.: cannot be read \(Is a directory"),
        ({"weight_map": {"a.weight": "a\0b"}}, "cannot be read"),
        ({"weight_map": {"a.weight": "\ud800"}}, "cannot be read"),
        (
            {"weight_map": {"a.weight": "one.safetensors", "b": "two.safetensors"}},
            r"two\.safetensors: cannot be",
        ),
        ({"weight_map": {"a.weight": "one.safetensors", "c": "one.safetensors"}}, "has no tensor 'c'"),
        (
            {"weight_map": {"a.weight": "one.safetensors", "a.bias": "same.safetensors"}},
            "as another file does",
        ),
    ],
)
def test_shards_that_do_not_fit(tmp_path: Path, index: dict[str, Any], message: str) -> None:
    for name in ("one", "same"):
        save_file(STATE, tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=message):
        read_file(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "a\0b", "\udc80"])
@pytest.mark.parametrize("kind", ["", "file:", "hf:"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str, kind: str) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        load_model(f"{kind}{tmp_path}/{name}")


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", Path("/dev/zero")):
        with pytest.raises(WeightsError, match=f"{path}: a device or a pipe, no file"):
            load_model(path)


def test_tensors_of_no_layout(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"2 tensors of no layout that is known \(the first is 'a\.\w+'\)"):
        load_model(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="there is no layout 'x'; there are videomae"):
        load_model(tmp_path / "other.safetensors", layout="x")
    for layout in ("videomae", "surgvista", "vjepa", "vjepa2"):
        with pytest.raises(WeightsError, match=f"not of the layout {layout}"):
            load_model(tmp_path / "other.safetensors", layout=layout)


def test_an_archive_that_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match=r"other\.zip: not a file of weights"):
        read_file(tmp_path / "other.zip")


def test_names_with_options(tmp_path: Path) -> None:
    (tmp_path / "a#b:c.pth").write_bytes(b"x")
    assert parse_name(str(tmp_path / "a#b:c.pth"))[0] == str(tmp_path / "a#b:c.pth")
    with pytest.raises(WeightsError, match=r"a#b:c\.pth: not a file of weights"):
        load_model(tmp_path / "a#b:c.pth")
    path, options, layout = parse_name("a b.pth#target_encoder,size=384,fps=2.5,layout=vjepa2")
    assert (path, layout) == ("a b.pth", "vjepa2")
    assert (options.part, options.size, options.fps, options.frames) == ("target_encoder", 384, 2.5, None)
    for text in (
        "a#encoder,target_encoder",
        "a#size=32,size=64",
        "a#layout=x,layout=y",
        "a#pooling=x,pooling=y",
    ):
        with pytest.raises(WeightsError, match="is given twice"):
            parse_name(text)
    for text in ("a#size=20000", "a#frames=1000000000000000000000", "a#fps=1e9", "a#heads=5000"):
        with pytest.raises(WeightsError, match=r"a number above 0 of size= \(to 16384\)"):
            parse_name(text)
    for text in ("a#teacher", "a#size=-3", "a#size=x", "a#size=1.5", "a#fps=inf", "a#encoder,,", "a#frames="):
        with pytest.raises(WeightsError, match="there is no option"):
            parse_name(text)


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_memory_stays_near_what_is_used(tmp_path: Path, kind: str) -> None:
    """A file of 120 MB, all of whose weights are read once, in a process of its own: resident memory grows by
    less than 1.3 times the file."""
    width, hidden = 768, 3072
    block = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.q_bias": (width,),
        "attn.v_bias": (width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "mlp.fc1.weight": (hidden, width),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden),
        "mlp.fc2.bias": (width,),
    }
    state = {
        "encoder.patch_embed.proj.weight": torch.ones(width, 3, 2, 16, 16),
        "encoder.patch_embed.proj.bias": torch.ones(width),
        "encoder.norm.weight": torch.ones(width),
        "encoder.norm.bias": torch.ones(width),
    }
    for number in range(4):
        state |= {f"encoder.blocks.{number}.{name}": torch.ones(shape) for name, shape in block.items()}
    file = tmp_path / "model"
    if kind == "torch":
        torch.save({"model": state}, file)
    else:
        save_file(state, file)
    code = (
        "import sys, resource, torch\n"
        "torch.set_num_threads(1)\n"
        "from surgrec.weights.load import load_model\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model = load_model(sys.argv[1])\n"
        "total = sum(float(p.sum()) for p in model.parameters())\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.3 * file.stat().st_size
