"""Embedding with a GPU: the vectors of the CPU up to bfloat16, the same ones each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from surgrec.configs.curate import EmbedOptions
from surgrec.configs.data import DataConfig
from surgrec.configs.model import BlockGroup, JepaConfig, MaeConfig
from surgrec.configs.pretrain import JepaPretrain, MaePretrain, to_document
from surgrec.loaders.packet_index import PacketIndex

from surgrec.curation.embedders import embedder_of
from surgrec.curation.network_workers import NetworkWorkers
from surgrec.curation.per_video import Task
from surgrec.models.build import build_objective
from surgrec.training.checkpoint import Checkpoint, save_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

DATA = DataConfig(frames=4, stride=2, size=64)
BOUNDS = [[at, at + 15] for at in range(0, 60, 15)]


@pytest.fixture(scope="module")
def index(
    streams: ModuleType, build_index_of: Callable[..., PacketIndex], tmp_path_factory: pytest.TempPathFactory
) -> PacketIndex:
    folder = tmp_path_factory.mktemp("corpus")
    kinds = ("h264_default", "hevc_closed", "h264_wide_pixels", "mpeg4_avi")
    paths = [
        streams.make_stream(kind, folder / kind, frames=60, size=(320, 240), first=90 * n)
        for n, kind in enumerate(kinds)
    ]
    return build_index_of(paths, folder / "corpus.h5")


@pytest.fixture(params=["timm", "mae", "jepa"])
def embedder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of random weights; their vectors differ by what is seen, in directions that all have in common."""
    if request.param == "timm":
        import timm

        torch.manual_seed(1)
        torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
        return f"timm:test_vit@{tmp_path / 'vit.pth'}"
    config: MaePretrain | JepaPretrain
    if request.param == "mae":
        config = MaePretrain(data=DATA, model=MaeConfig(size="tiny", decoder_depth=1))
    else:
        model = JepaConfig(size="tiny", predictor_depth=1, groups=(BlockGroup(1, 0.3),))
        config = JepaPretrain(data=DATA, model=model)
    objective = build_objective(config.model, 1, DATA.frames, DATA.size)
    values = {"config": to_document(config), "index_digest": ""}
    return f"ckpt:{save_checkpoint(tmp_path, Checkpoint(1, objective.state_dict(), {}, values))}"


def vectors(
    name: str, index: PacketIndex, device: str, videos: list[int], batch: int = 3
) -> dict[int, NDArray[np.float16]]:
    chosen = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    workers = NetworkWorkers(embedder_of(EmbedOptions(name)), chosen, batch, 2)
    tasks = [Task(video, f"{video}", (BOUNDS, [0, 0, 0, 0])) for video in videos]
    found = {}
    for task, finding in workers.run("embed", print, tasks, index):
        assert finding.arrays is not None, finding.reason
        assert not finding.arrays["failed"].any()
        found[task.video] = finding.arrays["vectors"]
    return found


def test_a_gpu_gives_the_vectors_of_the_cpu(index: PacketIndex, embedder: str) -> None:
    videos = list(range(len(index)))
    on_cpu, on_gpu = (
        np.concatenate([found[video] for video in videos]).astype(np.float64)
        for found in (vectors(embedder, index, device, videos) for device in ("cpu", "cuda"))
    )
    # On a CPU frames are RGB by FFmpeg, which truncates: a level darker, all alike, and so all vectors move
    # alike. With the mean of each taken off, what is left is bfloat16's doing.
    one, two = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (on_cpu - on_cpu.mean(0), on_gpu - on_gpu.mean(0))
    )
    cosine = one @ two.T
    assert np.diag(cosine).min() > 0.99, np.diag(cosine)
    assert (cosine.argmax(1) == np.arange(len(cosine))).all()


def test_a_gpu_gives_the_same_vectors_again(index: PacketIndex, embedder: str) -> None:
    together = vectors(embedder, index, "cuda", list(range(len(index))))
    for video in reversed(range(len(index))):
        np.testing.assert_array_equal(vectors(embedder, index, "cuda", [video])[video], together[video])


def test_a_gpu_that_is_full(index: PacketIndex, embedder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from surgrec.curation.records import CurationError

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("surgrec.curation.network_workers._findings", full)
    with pytest.raises(CurationError, match=r"a smaller --embed\.batch"):
        vectors(embedder, index, "cuda", [0])
