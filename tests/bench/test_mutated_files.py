"""bench/mutated_files.py and bench/mutations.py: damage that keeps the file's look, and a comparison that
counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small(tmp_path_factory, bench_module, build_index_of):
    """A clean H.264 video that is damaged again and again, its bytes, and its index."""
    folder = tmp_path_factory.mktemp("mutations")
    paths = bench_module("mutations").make_kinds(("h264",), folder)
    return (
        paths["h264"],
        paths["h264"].read_bytes(),
        build_index_of(list(paths.values()), folder / "index.h5"),
    )


def test_damage_is_seeded_and_stays_within_packets(bench_module, small):
    path, clean, index = small
    before = path.stat()
    inside = np.zeros(len(clean), bool)
    for first, size in zip(index.offset.tolist(), index.size.tolist(), strict=True):
        inside[first : first + size] = True
    names, contents = [], []
    for seed in (1, 1, *range(2, 12)):
        path.write_bytes(clean)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        names.append(bench_module("mutations").mutate(index, 0, seed))
        contents.append(path.read_bytes())
        after = path.stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        changed = np.frombuffer(contents[-1], np.uint8) != np.frombuffer(clean, np.uint8)
        assert not changed[~inside].any()
    assert (names[0], contents[0]) == (names[1], contents[1])
    assert len(set(contents)) > 8
    kinds = {part.split()[0] for name in names for part in name.split(", ")}
    assert kinds <= {"bits", "zeros", "noise", "cut", "swap"}
    assert len(kinds) > 2


def test_outcomes_are_told_apart(bench_module):
    script = bench_module("mutated_files")
    request = SimpleNamespace(sample=3, video=0)
    zeros, ones = (SimpleNamespace(frames=np.full((1, 4, 4, 3), value, np.uint8)) for value in (0, 1))
    refused = SimpleNamespace(reason="damaged")
    names = [
        script.compare(request, found, wanted).name
        for found, wanted in (
            (refused, refused),
            (zeros, zeros),
            (refused, zeros),
            (zeros, refused),
            (zeros, ones),
        )
    ]
    assert names == list(script.OUTCOMES[:5])


def test_a_refused_clip_that_the_ledger_lacks_is_counted(bench_module, small, tmp_path):
    from surgrec.loaders.clip_plan import ClipRequest
    from surgrec.loaders.engines.base import ClipFailure
    from surgrec.loaders.ledger import Ledger

    path, _, index = small
    script = bench_module("mutated_files")
    outcomes = [script.Outcome(sample, 0, "both_refuse", "damaged", "damaged") for sample in (1, 2)]
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.record(ClipFailure(ClipRequest(1, 0, (0,)), str(path), "cpu", "damaged"))
    (counts,) = script.count(outcomes, tmp_path / "ledger.jsonl", index).values()
    assert counts == {"both_refuse": 2, "unledgered": 1}


def test_a_child_that_dies_or_hangs_is_counted_and_replaced(bench_module, monkeypatch, tmp_path):
    """The parent's loop over a child that stands in for a real one: it crashes at clip 4, hangs at clip 8."""
    script = bench_module("mutated_files")
    script_args = script.Args(batch=4, hang=0.3)

    def child(pipe, args, files, requests, first, ledger, device):
        for at in range(first, len(requests), args.batch):
            if at == 4:
                os._exit(7)
            if at == 8:
                pipe.poll(60)
                os._exit(0)
            pipe.send([script.Outcome(n, 0, "equal") for n in requests[at : at + args.batch]])
            pipe.recv()

    import multiprocessing

    monkeypatch.setattr(script, "_child", child)
    monkeypatch.setattr(script, "START_SECONDS", 3.0)
    monkeypatch.setattr(
        script.multiprocessing, "get_context", lambda _: SimpleNamespace(**_fork(multiprocessing))
    )
    outcomes, deaths = script.decode_all(script_args, tmp_path, list(range(14)), tmp_path / "l", "cpu")
    assert [outcome.sample for outcome in outcomes] == [0, 1, 2, 3, 12, 13]
    assert [death.first for death in deaths] == [4, 8]
    assert "exit code 7" in deaths[0].what
    assert "no answer" in deaths[1].what


def _fork(module):
    from multiprocessing.context import ForkContext

    context = ForkContext()
    return {"Pipe": context.Pipe, "Process": context.Process}


def test_frames_are_compared_as_the_engine_gives_them(bench_module):
    """Planes of one kind of memory, and arrays of another, of which one value differs."""
    import torch
    from surgrec.kernels.planes import Colour, Planes
    from surgrec.loaders.engines.pixels import PlaneArrays

    same = bench_module("mutated_files").same
    generator = np.random.default_rng(0)
    colour = Colour("bt601", full_range=False)
    arrays = [generator.integers(40, 200, (2, *shape), np.uint8) for shape in ((8, 6), (4, 3), (4, 3))]
    planes = Planes(tuple(torch.from_numpy(array.copy()) for array in arrays), (0, 1, 1), colour)
    assert same(planes, PlaneArrays(tuple(arrays), (0, 1, 1), colour, 0))
    assert not same(planes, PlaneArrays(tuple(arrays), (0, 0, 1), colour, 0))
    arrays[0][1, 5, 2] ^= 64
    assert not same(planes, PlaneArrays(tuple(arrays), (0, 1, 1), colour, 0))


@pytest.mark.parametrize("damage", ["after", "verified"])
def test_the_script_runs(tmp_path, damage):
    """The cpu engine refuses what FFmpeg refuses, and with checksums also what FFmpeg overlooks."""
    command = [sys.executable, str(ROOT / "bench" / "mutated_files.py"), "--engine", "cpu", "--clips", "60"]
    command += ["--kinds", "h264", "vp9", "--damage", damage, "--loader-batches", "2", "--batch", "16"]
    command += ["--cache", str(tmp_path), "--out", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").glob("mutated_files-*.json")
    rows = json.loads(path.read_text())["rows"]
    total = {entry["metric"]: entry["value"] for entry in rows if entry["corpus"] == "all"}
    assert total["clips"] == 60
    assert total["both_refuse"] > 0
    assert total["both_refuse"] + total["equal"] + total["engine_refuses"] == 60
    assert (total["engine_refuses"] > 0) == (damage == "after")
    for name in ("accepts_where_ffmpeg_reports_an_error", "different", "unledgered", "crashes", "hangs"):
        assert total[name] == 0
