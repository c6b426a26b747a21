"""Files that must not be believed: code in pickles, cut-off and changed files, and those that are huge."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from surgrec.weights.errors import WeightsError
from surgrec.weights.files import read_file
from surgrec.weights.load import load_model


class Opens:
    """When it is unpickled, a file appears."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


class Runs(Opens):
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Evaluates(Opens):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", [Opens, Runs, Evaluates])
@pytest.mark.parametrize("how", ["zip", "old", "bare"])
@pytest.mark.parametrize("where", ["beside", "around"])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, kind: type[Opens], how: str, where: str) -> None:
    proof = tmp_path / "it-ran"
    code = kind(proof)
    weights = {"blocks.0.weight": torch.zeros(2)}
    content = {"model": weights, "args": code} if where == "beside" else code
    path = tmp_path / "model.pth"
    if how == "bare":
        path.write_bytes(pickle.dumps(content if where == "around" else {"args": code}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    for read in (read_file, load_model):
        with pytest.raises(WeightsError, match=r"model\.pth: ") as caught:
            read(path)
        assert "nothing of it was run" in str(caught.value) or "not a file of weights" in str(caught.value)
    assert not proof.exists()
    # The test itself can fail: pickle's own reader runs the code.
    if how == "bare":
        try:
            pickle.loads(path.read_bytes())
        finally:
            assert proof.exists()


def test_plain_values_of_training_scripts_are_no_code(tmp_path: Path) -> None:
    """Options, losses, and NumPy's numbers: what DINO, VideoMAE and DeepSpeed put beside their weights."""
    content = {
        "model": {"weight": torch.ones(2)},
        "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.95), nested=argparse.Namespace(depth=2)),
        "epoch": 3,
        "best": np.float64(0.5),
        "loss": np.float32(0.25),
        "step": np.int64(7),
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    found = read_file(tmp_path / "checkpoint.pth")
    assert list(found.tensors) == ["model/weight"]
    assert found.top["epoch"] == 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    tensors = {f"blocks.{n}.weight": torch.arange(300.0) + n for n in range(4)}
    save_file(tensors, folder / "model.safetensors")
    torch.save({"model": tensors}, folder / "model.pth")
    torch.save({"model": tensors}, folder / "old.pth", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_cut_off_files(data: st.DataObject, whole: dict[str, bytes], tmp_path_factory: Any) -> None:
    name = data.draw(st.sampled_from(sorted(whole)))
    length = data.draw(st.integers(0, len(whole[name]) - 1))
    path = tmp_path_factory.mktemp("cut") / name
    path.write_bytes(whole[name][:length])
    with pytest.raises(WeightsError, match=name):
        read_file(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_changed_bytes_never_get_past_as_another_error(
    data: st.DataObject, whole: dict[str, bytes], tmp_path_factory: Any
) -> None:
    """A changed file is read, as a changed number is one, or it is refused; nothing else comes out."""
    name = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[name])
    for _ in range(data.draw(st.integers(1, 4))):
        # Where headers and pickles are, rather than numbers.
        start = data.draw(st.sampled_from([0, max(len(content) - 700, 0)]))
        content[data.draw(st.integers(start, min(start + 699, len(content) - 1)))] = data.draw(
            st.integers(0, 255)
        )
    path = tmp_path_factory.mktemp("changed") / name
    path.write_bytes(bytes(content))
    with contextlib.suppress(WeightsError):
        assert read_file(path).tensors


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}},
        {},
        [],
    ],
)
def test_headers_of_safetensors_that_lie(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0\0\0")
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        read_file(path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9])
def test_a_header_longer_than_its_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        read_file(path)


def test_a_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no weights")
    with pytest.raises(WeightsError, match=r"model\.pth: not a file of weights"):
        read_file(path)


def test_a_block_number_without_end_takes_no_time(tmp_path: Path) -> None:
    """The depth of a model is how many blocks a file has, not how it numbers them."""
    tensors = {
        "cls_token": torch.zeros(1, 1, 64),
        "storage_tokens": torch.zeros(1, 4, 64),
        "patch_embed.proj.weight": torch.zeros(64, 3, 16, 16),
        "rope_embed.periods": torch.ones(8),
        "blocks.0.mlp.fc1.weight": torch.zeros(256, 64),
        "blocks.99999999999.mlp.fc1.weight": torch.zeros(256, 64),
    }
    torch.save(tensors, tmp_path / "long.pth")
    with pytest.raises(WeightsError, match=r"long\.pth: does not fit its layout: .* is missing"):
        load_model(tmp_path / "long.pth")


LAYERS, WIDTH = 8, 1024
MEASURE = """
    import sys

    import torch

    from surgrec.weights.load import load_model

    import timm.models.eva  # what an import costs is no cost of the file


    def resident() -> int:
        for line in open("/proc/self/status"):
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no VmHWM in /proc/self/status")

    before = resident()
    model = load_model(sys.argv[1])
    total = sum(parameter.sum().item() for parameter in model.parameters())
    print(resident() - before, total)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the memory counts of Linux")
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_memory_stays_near_the_size_of_the_file(tmp_path: Path, kind: str) -> None:
    """Importing 420 MB, and then every weight is read. Counted is the peak, pages of the mapped file too."""
    path = tmp_path / f"dinov3.{kind}"
    size = write_large(path)
    assert size > 400e6
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    used, total = done.stdout.split()
    assert float(total) != 0
    assert int(used) < 1.3 * size, f"{int(used) / size:.2f} times its size"


def write_large(path: Path) -> int:
    """A DINOv3 of 8 layers of ViT-L; its length in bytes."""
    hidden = 4 * WIDTH
    mask = torch.ones(3 * WIDTH)
    mask[WIDTH : 2 * WIDTH] = 0
    tensors = {
        "cls_token": torch.zeros(1, 1, WIDTH),
        "storage_tokens": torch.zeros(1, 4, WIDTH),
        "mask_token": torch.zeros(1, WIDTH),
        "rope_embed.periods": torch.ones(16),
        "patch_embed.proj.weight": torch.zeros(WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": torch.zeros(WIDTH),
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
    }
    shapes = {
        "norm1": (WIDTH,),
        "norm2": (WIDTH,),
        "attn.qkv": (3 * WIDTH, WIDTH),
        "attn.proj": (WIDTH, WIDTH),
        "mlp.fc1": (hidden, WIDTH),
        "mlp.fc2": (WIDTH, hidden),
    }
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            tensors[f"blocks.{layer}.{name}.weight"] = torch.ones(shape)
            tensors[f"blocks.{layer}.{name}.bias"] = torch.zeros(shape[0])
        tensors[f"blocks.{layer}.ls1.gamma"] = tensors[f"blocks.{layer}.ls2.gamma"] = torch.ones(WIDTH)
        tensors[f"blocks.{layer}.attn.qkv.bias_mask"] = mask
    tensors = {name: value.clone() for name, value in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path.stat().st_size
