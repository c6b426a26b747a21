"""Saved heads: what is written is read and computes the same, and what is no head is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from surgrec.evaluation.saved_head import HeadAbout, HeadError, SavedHead, read_head, write_head

WIDTH, CLASSES = 12, ("cut", "clip", "rinse")
ABOUT = HeadAbout(
    kind="probe-linear",
    classes=CLASSES,
    dataset="films",
    manifest_digest="ab" * 16,
    features_digest="cd" * 16,
    model="ckpt:runs/mae",
    identity="ckpt:0123",
    geometry={"frames": 4, "stride": 2, "size": 32},
    clips=1,
    views=("centre",),
    width=WIDTH,
    blocks=0,
    precision="float32",
    options={"seed": 0, "lrs": [0.1]},
    chosen={"lr": 0.1},
    date="2026-01-02T03:04:05+0000",
    versions={"torch": "2"},
    commit="",
)


def head_of(kind: str = "probe-linear", blocks: int = 0) -> SavedHead:
    about = replace(ABOUT, kind=kind, blocks=blocks)
    generator = torch.Generator().manual_seed(0)
    return SavedHead(
        about, {name: torch.randn(shape, generator=generator) for name, shape in about.shapes.items()}
    )


@pytest.mark.parametrize(
    ("kind", "blocks"), [("probe-linear", 0), ("probe-attentive", 1), ("probe-attentive", 2)]
)
def test_what_is_written_is_read(tmp_path: Path, kind: str, blocks: int) -> None:
    head = head_of(kind, blocks)
    path = tmp_path / "new" / "head.safetensors"
    digest = write_head(path, head)
    found = read_head(path)
    assert (found.about, found.digest) == (head.about, digest)
    assert found.tensors.keys() == head.tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in head.tensors.items())
    assert [each.name for each in path.parent.iterdir()] == ["head.safetensors"]
    # The digest is of the head, whatever made it and when.
    assert SavedHead(replace(head.about, date="", commit="abc"), head.tensors).digest == digest
    assert SavedHead(replace(head.about, classes=("a", "b", "c")), head.tensors).digest != digest


def test_a_linear_head_computes_what_it_did(tmp_path: Path) -> None:
    head = head_of()
    write_head(tmp_path / "head", head)
    pooled, tokens = torch.randn(5, WIDTH), torch.randn(5, 3, WIDTH)
    found = read_head(tmp_path / "head").on(torch.device("cpu"))(pooled, tokens)
    values = {name: value.double() for name, value in head.tensors.items()}
    # Through float16, as from a feature file.
    standardised = (pooled.half().double() - values["shift"]) * values["scale"]
    logits = standardised @ values["classify.weight"] + values["classify.bias"]
    torch.testing.assert_close(found.double(), logits.softmax(-1), rtol=1e-4, atol=1e-6)
    with pytest.raises(HeadError, match="features of width 12, the network gives 7"):
        read_head(tmp_path / "head").on(torch.device("cpu"))(pooled[:, :7], tokens)


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        document: dict[str, Any] = json.loads(file.metadata()["surgrec"])
    return document


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda document, tensors: document.update(format="other"), "no saved head"),
        (lambda document, tensors: document.update(format_version=9), "of format version 9"),
        (lambda document, tensors: document.update(kind="knn"), "kind 'knn'; expected probe-linear"),
        (lambda document, tensors: document.update(width=10**12), "missing, too many, or of another shape"),
        (lambda document, tensors: document.update(width="12"), "`width` is '12'"),
        (lambda document, tensors: document.update(classes=["one"]), "1 classes"),
        (lambda document, tensors: document.update(classes="cut"), "`classes` is no list of texts"),
        (lambda document, tensors: document.pop("identity"), "`identity` is None"),
        (lambda document, tensors: document.update(identity="ckpt:other"), "its digest is"),
        (lambda document, tensors: tensors.pop("shift"), "of another shape: shift"),
        (lambda document, tensors: tensors.update(more=torch.zeros(2)), "of another shape: more"),
        (lambda document, tensors: tensors["scale"].fill_(float("nan")), "not finite"),
        (lambda document, tensors: tensors["scale"].add_(1), "its digest is"),
        (lambda document, tensors: tensors.update(scale=tensors["scale"].half()), "float16"),
    ],
)
def test_what_is_no_head_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any], text: str
) -> None:
    path = tmp_path / "head.safetensors"
    write_head(path, head_of())
    document, tensors = header_of(path), load_file(path)
    change(document, tensors)
    save_file(tensors, path, {"surgrec": json.dumps(document)})
    with pytest.raises(HeadError, match=text) as error:
        read_head(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "surgrec.probe --save" in str(error.value)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    write_head(path, head_of())
    whole = path.read_bytes()
    for content in (b"", b"no head", whole[:40], whole[:-4], b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(HeadError, match="not a safetensors file, or a truncated one"):
            read_head(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(HeadError, match="no saved head"):
        read_head(path)
    with pytest.raises(HeadError, match="no such file"):
        read_head(tmp_path / "none")
    with pytest.raises(HeadError, match="no such file"):
        read_head(tmp_path)
