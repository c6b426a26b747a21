"""Networks as embedders: the vectors that they give, one video at a time, and errors that say what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from surgrec.configs.curate import EmbedOptions
from surgrec.configs.data import DataConfig
from surgrec.configs.model import BlockGroup, JepaConfig, MaeConfig
from surgrec.configs.pretrain import JepaPretrain, MaePretrain, to_document
from surgrec.kernels.patchify import patchify
from surgrec.loaders.clip_plan import ClipRequest, clip_frames
from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.packet_index import PacketIndex

from surgrec.curate import main
from surgrec.curation.embedders import embedder_of
from surgrec.curation.network_workers import NetworkWorkers
from surgrec.curation.per_video import Finding, Task
from surgrec.curation.pictures import choose_frames
from surgrec.curation.records import CurationError
from surgrec.models.build import build_objective
from surgrec.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

MODEL = "test_vit"
"""timm's own model for tests, 0.4 M parameters, pictures of 160 x 160."""
OPTIONS = ("--workers", "1", "--segments.seconds", "1", "--segments.least-seconds", "0.3")
OPTIONS += ("--segments.detector", "none", "--quality.zero", "undecodable", "--cluster.levels", "3")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(
    streams: ModuleType, build_index_of: Callable[..., PacketIndex], tmp_path_factory: pytest.TempPathFactory
) -> PacketIndex:
    """Four small drawn videos, each three seconds."""
    folder = tmp_path_factory.mktemp("embed")
    kinds = ("h264_default", "hevc_closed", "h264_open_gop", "h264_wide_pixels")
    paths = [
        streams.make_stream(kind, folder / kind, frames=75, first=90 * n) for n, kind in enumerate(kinds)
    ]
    return build_index_of(paths, folder / "corpus.h5")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of MODEL with its head, drawn from a seed."""
    import timm

    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model(MODEL).state_dict(), path)
    return path


MAE = MaePretrain(
    data=DataConfig(frames=4, stride=3, size=32),
    model=MaeConfig(size="tiny", decoder_depth=1, decoder_width=48, decoder_heads=3),
)
JEPA = JepaPretrain(
    data=DataConfig(frames=4, fps=10.0, size=32),
    model=JepaConfig(
        size="tiny", predictor_depth=1, predictor_width=48, predictor_heads=3, groups=(BlockGroup(1, 0.3),)
    ),
)


def make_run(folder: Path, config: MaePretrain | JepaPretrain, steps: tuple[int, ...] = (3, 12)) -> Path:
    """A run folder with a checkpoint for each step, each of other weights; JEPA's teacher is no copy."""
    for step in steps:
        objective = build_objective(config.model, step, config.data.frames, config.data.size)
        if isinstance(config, JepaPretrain):
            for parameter in objective.get_submodule("teacher").parameters():
                parameter.data += 0.05 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(step)
                )
        values = {"config": to_document(config), "index_digest": ""}
        save_checkpoint(folder / "checkpoints", Checkpoint(step, objective.state_dict(), {}, values))
    return folder


def tasks_for(index: PacketIndex, bounds: list[list[int]]) -> list[Task]:
    return [Task(video, f"{video}", (bounds, [0, 0, 0, 0])) for video in range(len(index))]


def run(name: str, index: PacketIndex, tasks: list[Task], batch: int = 2) -> dict[int, Finding]:
    workers = NetworkWorkers(embedder_of(EmbedOptions(name)), CPU, batch, 1)
    return {task.video: finding for task, finding in workers.run("embed", print, tasks, index)}


def vectors_of(finding: Finding) -> NDArray[np.float16]:
    assert finding.arrays is not None, finding.reason
    assert not finding.arrays["failed"].any()
    vectors: NDArray[np.float16] = finding.arrays["vectors"]
    return vectors


def pictures_of(index: PacketIndex, video: int, frames: tuple[int, ...], size: int) -> torch.Tensor:
    """uint8 [T, size, size, 3]: the central square of a full FFmpeg decode, scaled by torch."""
    with av.open(index.videos.path[video]) as container:
        container.streams.video[0].codec_context.thread_count = 1
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    found = np.stack([decoded[frame] for frame in frames])
    aspect = int(index.videos.sar_num[video]) / max(1, int(index.videos.sar_den[video])) or 1.0
    height, width = found.shape[1:3]
    wide = round(min(width, height / aspect))
    tall = min(height, round(width * aspect))
    top, left = (height - tall) // 2, (width - wide) // 2
    square = torch.from_numpy(found[:, top : top + tall, left : left + wide]).permute(0, 3, 1, 2).float()
    scaled = torch.nn.functional.interpolate(square, (size, size), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def assert_alike(found: list[NDArray[np.float16]], expected: list[torch.Tensor]) -> None:
    """Vectors of unit length, each in the direction of its own expectation once all have lost their mean: a
    network of random weights gives whatever it sees much the same."""
    vectors = np.stack(found).astype(np.float64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(vectors)), abs=1e-3)
    wanted = torch.nn.functional.normalize(torch.stack(expected).double(), dim=1).numpy()
    mean = wanted.mean(0)
    one, two = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors - mean, wanted - mean)
    )
    cosine = one @ two.T
    assert np.diag(cosine).min() > 0.99
    assert (cosine - np.eye(len(vectors))).max() < 0.95


BOUNDS = [[0, 20], [20, 50], [50, 75]]


def test_timm_gives_the_mean_over_the_pictures_of_a_segment(corpus: PacketIndex, weights: Path) -> None:
    import timm

    model = timm.create_model(MODEL, checkpoint_path=str(weights)).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]) for name in ("mean", "std"))
    found = run(f"timm:{MODEL}@{weights}", corpus, tasks_for(corpus, BOUNDS))
    own, expected = [], []
    for video in range(len(corpus)):
        vectors = vectors_of(found[video])
        assert (vectors.shape, vectors.dtype) == ((3, model.num_features), np.float16)
        for row, (start, end) in enumerate(BOUNDS):
            pictures = pictures_of(corpus, video, choose_frames(corpus, video, start, end), 320)
            pixels = torch.nn.functional.interpolate(
                pictures.permute(0, 3, 1, 2).float(), (160, 160), mode="bicubic", antialias=True
            )
            values = (pixels.clamp(0, 255) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
            with torch.no_grad():
                features = model.forward_head(model.forward_features(values), pre_logits=True)
            own.append(vectors[row])
            expected.append(features.mean(0))
    assert_alike(own, expected)


@pytest.mark.parametrize("config", [MAE, JEPA], ids=["mae", "jepa"])
def test_checkpoints_give_the_mean_over_the_tokens_of_a_clip(
    corpus: PacketIndex, config: MaePretrain | JepaPretrain, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run", config)
    found = run(f"ckpt:{folder}", corpus, tasks_for(corpus, BOUNDS))
    again = run(f"ckpt:{folder / 'checkpoints' / 'step-00000012'}", corpus, tasks_for(corpus, BOUNDS))
    earlier = run(f"ckpt:{folder / 'checkpoints' / 'step-00000003'}", corpus, tasks_for(corpus, BOUNDS))
    objective = build_objective(config.model, 0, 4, 32)
    objective.load_state_dict(load_checkpoint(folder / "checkpoints" / "step-00000012").model)
    network = objective.get_submodule("encoder" if config is MAE else "teacher")
    data = config.data
    own, expected = [], []
    for video in range(len(corpus)):
        vectors = vectors_of(found[video])
        np.testing.assert_array_equal(vectors, vectors_of(again[video]))
        assert np.abs(vectors.astype(float) - vectors_of(earlier[video])).max() > 0.02
        for row, (start, end) in enumerate(BOUNDS):
            stride = None if data.fps else data.stride
            frames = clip_frames(corpus, video, start, end, 0.5, 4, stride, data.fps, within=True)
            assert frames[0] - start == pytest.approx(end - 1 - frames[-1], abs=1)
            clip = pictures_of(corpus, video, frames, 32)[None]
            with torch.no_grad():
                tokens = network(patches_of(objective, clip), torch.arange(8)[None])
            own.append(vectors[row])
            expected.append(tokens[0].mean(0))
    assert_alike(own, expected)


def patches_of(objective: Any, clip: torch.Tensor) -> torch.Tensor:
    config = objective.config
    return patchify(clip, torch.arange(8)[None], config.tubelet, config.patch, config.mean, config.std)


def test_a_segment_shorter_than_a_clip_is_seen_whole(corpus: PacketIndex, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", MAE, (1,))
    network = embedder_of(EmbedOptions(f"ckpt:{folder}")).load
    assert network is not None
    choose = network(CPU).choose
    assert choose(corpus, 0, 10, 17) == (10, 12, 14, 16)
    assert choose(corpus, 0, 10, 12) == (10, 10, 11, 11)
    assert choose(corpus, 0, 10, 20) == (10, 13, 16, 19)


def test_vectors_do_not_depend_on_other_videos(corpus: PacketIndex, weights: Path) -> None:
    """Bit by bit: so a resumed run, and one of many ranks, gives the vectors of an undisturbed one."""
    bounds = [[at, at + 5] for at in range(0, 75, 5)]
    tasks = tasks_for(corpus, bounds)
    name = f"timm:{MODEL}@{weights}"
    together = run(name, corpus, tasks, batch=4)
    for video in reversed(range(len(corpus))):
        alone = run(name, corpus, [tasks[video]], batch=4)
        np.testing.assert_array_equal(vectors_of(alone[video]), vectors_of(together[video]))


def test_content_areas_are_looked_at(corpus: PacketIndex, weights: Path) -> None:
    task = Task(0, "", (BOUNDS, [0, 0, 0, 0]))
    inside = replace(task, argument=(BOUNDS, [8, 16, 32, 32]))
    name = f"timm:{MODEL}@{weights}"
    whole, part = (vectors_of(run(name, corpus, [given])[0]) for given in (task, inside))
    assert np.abs(whole.astype(float) - part).max() > 0.01


def test_segments_that_cannot_be_decoded(
    streams: ModuleType, build_index_of: Callable[..., PacketIndex], weights: Path, tmp_path: Path
) -> None:
    paths = [streams.make_stream("h264_default", tmp_path / name, first=n) for n, name in enumerate("abc")]
    index = build_index_of(paths, tmp_path / "corpus.h5")
    paths[1].unlink()
    end = int(index.videos.frame_count[0])
    found = run(f"timm:{MODEL}@{weights}", index, tasks_for(index, [[0, 10], [10, end]]), batch=1)
    assert found[1].arrays is None
    assert "cannot be read" in found[1].reason
    for video in (0, 2):
        assert vectors_of(found[video]).any(1).all()


def test_weights_that_give_no_numbers(corpus: PacketIndex, tmp_path: Path) -> None:
    import timm

    state = timm.create_model(MODEL).state_dict()
    state["norm.weight"][0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(CurationError, match=r"not finite for frames 0 to 19: its weights are no good"):
        run(f"timm:{MODEL}@{tmp_path / 'nan.safetensors'}", corpus, tasks_for(corpus, BOUNDS))


def test_names_and_files_that_are_not_there(corpus: PacketIndex, weights: Path, tmp_path: Path) -> None:
    import timm

    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"model": {"x": torch.zeros(2)}}, tmp_path / "other.pth")
    torch.save(Path("object"), tmp_path / "object.pth")
    wide = timm.create_model(MODEL).state_dict() | {"norm.weight": torch.zeros(3)}
    save_file(wide, tmp_path / "wide.safetensors")
    state = timm.create_model(MODEL).state_dict()
    save_file(state | {"neck.weight": torch.zeros(3)}, tmp_path / "more.safetensors")
    del state["norm.weight"]
    save_file(state, tmp_path / "less.safetensors")
    for name, text in (
        ("clip", "there is no embedder 'clip': choose descriptor, timm:MODEL"),
        ("timm:", "there is no embedder"),
        ("timm:test_vitt", r"has no model 'test_vitt'; did you mean test_vit"),
        (
            f"timm:{MODEL}.nothing",
            "no pretrained weights of test_vit.nothing: it has those of test_vit.r160_in1k",
        ),
        (
            "timm:vit_tiny_patch16_384@nothing.pth",
            "nothing.pth, the weights of timm:.*cannot be read: No such",
        ),
        (f"ckpt:{tmp_path / 'nothing'}", "there is no such folder"),
        (f"ckpt:{tmp_path / 'empty'}", "holds no checkpoint; give a run folder"),
    ):
        with pytest.raises(CurationError, match=text):
            embedder_of(EmbedOptions(name))
    for file, text in (
        ("text.pth", "does not hold weights of timm:test_vit"),
        ("object.pth", "does not hold weights of timm:test_vit"),
        ("other.pth", "it lacks cls_token, pos_embed"),
        ("wide.safetensors", "does not hold weights"),
        ("more.safetensors", "it holds besides neck.weight"),
        ("less.safetensors", "it lacks norm.weight"),
    ):
        load = embedder_of(EmbedOptions(f"timm:{MODEL}@{tmp_path / file}")).load
        assert load is not None
        with pytest.raises(CurationError, match=text):
            load(CPU)
    with pytest.raises(CurationError, match="batch is 0"):
        embedder_of(EmbedOptions(batch=0))


def test_checkpoints_that_cannot_be_used(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", MAE, (1,))
    checkpoint = folder / "checkpoints" / "step-00000001"
    shutil.copytree(checkpoint, tmp_path / "torn")
    tensors = tmp_path / "torn" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(CurationError, match=r"model.safetensors is damaged"):
        embedder_of(EmbedOptions(f"ckpt:{tmp_path / 'torn'}"))
    other = build_objective(JEPA.model, 0, 4, 32).state_dict()
    values = {"config": to_document(MAE), "index_digest": ""}
    path = save_checkpoint(tmp_path / "mixed", Checkpoint(1, other, {}, values))
    load = embedder_of(EmbedOptions(f"ckpt:{path}")).load
    assert load is not None
    with pytest.raises(CurationError, match="does not fit the model of its configuration: it has no"):
        load(CPU)


def test_weights_that_cannot_be_fetched(tmp_path: Path) -> None:
    code = "import torch; from surgrec.curation.embedders import embedder_of\n"
    code += "from surgrec.configs.curate import EmbedOptions\n"
    code += f"embedder_of(EmbedOptions('timm:{MODEL}')).load(torch.device('cpu'))"
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=offline
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"the pretrained weights of timm:{MODEL} cannot be had" in last
    assert f"give timm:{MODEL}@FILE" in last


def test_the_identity_is_that_of_the_weights(weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    shutil.copy(weights, copy)
    one, two = (embedder_of(EmbedOptions(f"timm:{MODEL}@{path}")).identity for path in (weights, copy))
    assert one == two
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    assert embedder_of(EmbedOptions(f"timm:{MODEL}@{copy}")).identity != one
    assert embedder_of(EmbedOptions(f"timm:{MODEL}")).identity == f"timm:{MODEL}.r160_in1k"
    runs = [make_run(tmp_path / name, MAE) for name in "ab"]
    identities = {embedder_of(EmbedOptions(f"ckpt:{run}")).identity for run in runs}
    assert len(identities) == 1
    slower = replace(MAE, data=replace(MAE.data, stride=1))
    assert embedder_of(EmbedOptions(f"ckpt:{make_run(tmp_path / 'c', slower)}")).identity not in identities


def test_a_plan_by_a_network(
    corpus: PacketIndex,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "plan.h5"
    line = ["--index", str(corpus.path), "--out", str(out), *OPTIONS, "--embed.device", "cpu"]
    assert main(["all", *line, "--embed.embedder", f"timm:{MODEL}@{weights}"]) == 0
    record = json.loads(CorpusPlan.open(out, corpus).record)
    assert record["embed"].startswith(f"timm:{MODEL}@")
    assert record["embed"].endswith(" on cpu, 32 at a time")
    with h5py.File(tmp_path / "plan.h5.work" / "embed.h5") as table:
        assert table["vectors"].dtype == np.float16
        assert table["vectors"].shape[1] == 64
    before = out.read_bytes()
    (tmp_path / "plan.h5.work" / "embed.h5").unlink()
    with monkeypatch.context() as patched:
        patched.setattr("surgrec.curation.timm_embedder._network", None)  # its records need no network
        assert main(["all", *line, "--embed.embedder", f"timm:{MODEL}@{weights}"]) == 0
    assert out.read_bytes() == before
    records = sorted((tmp_path / "plan.h5.work" / "videos").glob("*.npz"))
    (tmp_path / "plan.h5.work" / "embed.h5").unlink()
    for record in records[::2]:
        record.unlink()  # as of a run that was killed
    assert main(["all", *line, "--embed.embedder", f"timm:{MODEL}@{weights}"]) == 0
    assert out.read_bytes() == before
    capsys.readouterr()
    assert main(["all", *line, "--embed.embedder", "timm:nothing"]) == 1
    assert "has no model 'nothing'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        more = ["--embed.embedder", f"timm:{MODEL}@{weights}", "--embed.device", "cuda"]
        assert main(["all", *line[:-2], *more]) == 1
        assert "no GPU" in capsys.readouterr().err


def test_the_stream_gives_each_clip_once_and_in_order(corpus: PacketIndex) -> None:
    from surgrec.loaders.clip_stream import ClipStream

    groups = [[ClipRequest(7 * n + k, n % 3, (k, k + 1)) for k in range(n)] for n in (3, 0, 70, 1, 2)]
    data = DataConfig(size=16, picture_mib=1)
    with ClipStream(corpus, data, "cpu", 1) as stream:
        found = list(stream.read(groups))
    assert [group.requests for group in found] == [group for group in groups if group]
    assert [tuple(group.frames.shape) for group in found] == [
        (len(group), 2, 16, 16, 3) for group in groups if group
    ]
