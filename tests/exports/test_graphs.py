"""torch.export and ONNX: any number of clips, and weights in a file of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from surgrec.exports import graphs
from surgrec.exports.comparison import clips_for
from surgrec.exports.source import open_source
from surgrec.models.video_encoder import encoder_of

Convert = Callable[..., Path]


@pytest.mark.parametrize("name", ["mae", "jepa", "jepa2"])
def test_torch_export_takes_any_batch(name: str, runs: Any, convert: Convert) -> None:
    program = torch.export.load(convert(runs[name].path, "torch-export", "encoder.pt2")).module()
    clips = clips_for(open_source(runs[name].path), 4)
    with torch.no_grad():
        ours = encoder_of(runs[name].objective)(clips)
        torch.testing.assert_close(program(clips), ours, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(program(clips[2:3]), ours[2:3], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["mae", "jepa2"])
@pytest.mark.parametrize("beside", [False, True])
def test_onnx_takes_any_batch(
    name: str, beside: bool, runs: Any, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: export)")
    if beside:
        monkeypatch.setattr(graphs, "ONE_FILE", 1)
    out = convert(runs[name].path, "onnx", "encoder.onnx")
    names = ["encoder.onnx", "encoder.onnx.data"] if beside else ["encoder.onnx"]
    assert sorted(path.name for path in out.parent.iterdir()) == names
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    size = runs[name].config.data.size
    assert (given.name, given.type) == ("clips", "tensor(uint8)")
    assert given.shape[1:] == [16, size, size, 3]
    clips = clips_for(open_source(runs[name].path), 4)
    (tokens,) = session.run(["tokens"], {"clips": clips.numpy()})
    with torch.no_grad():
        ours = encoder_of(runs[name].objective)(clips)
    torch.testing.assert_close(torch.from_numpy(tokens), ours, atol=1e-4, rtol=1e-4)
