"""Parts of the experiments, small: what is learnt on, what is counted."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from surgrec.configs.model import BlockGroup, JepaConfig
from surgrec.configs.yaml_io import from_plain, load_yaml

from experiments.balance import experiment as balance
from experiments.balance import sources
from experiments.collapse import experiment as collapse
from experiments.collapse.broken import build_broken
from experiments.digits import few_labels, shots_of
from experiments.lab import Lab, Measure
from experiments.motion_digits import experiment as motion_digits
from experiments.real_video import experiment as real_video
from experiments.real_video.footage import Windows, blocks, by_blocks, hits
from experiments.run import ROOT
from surgrec.evaluation.manifest import Row, SplitManifest, read_manifest, write_manifest
from surgrec.pretrain import parse

EXPERIMENTS = {
    "motion_digits": motion_digits,
    "balance": balance,
    "real_video": real_video,
    "collapse": collapse,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_configurations_are_sound(name: str, size: str) -> None:
    """Their entries are known, and their commands are ones of surgrec.pretrain."""
    config = from_plain(EXPERIMENTS[name].Config, load_yaml(ROOT / "experiments" / name / f"{size}.yaml"))
    commands = [
        getattr(config, entry) for entry in ("mae", "jepa", "still", "pretrain") if hasattr(config, entry)
    ]
    assert commands
    for command in commands:
        assert parse(command.split()).data.frames in (1, 8, 16)


def test_few_labels_are_a_share_of_train_and_all_of_the_rest(tmp_path: Path) -> None:
    rows = [Row(f"{n}.mp4", n % 4, "train", f"g{n}") for n in range(80)]
    rows += [Row(f"v{n}.mp4", n % 4, "val", f"v{n}") for n in range(8)]
    rows += [Row(f"t{n}.mp4", n % 4, "test", f"t{n}") for n in range(8)]
    write_manifest(tmp_path / "all.json", SplitManifest("digits", ("a", "b", "c", "d"), tuple(rows)))
    assert [shots_of(tmp_path / "all.json", share) for share in (1, 10, 50)] == [1, 2, 10]
    few = [read_manifest(few_labels(tmp_path / "all.json", 2, d, 0, tmp_path / f"{d}.json")) for d in (0, 1)]
    for manifest in few:
        labels = [row.label for row in manifest.of("train")]
        assert sorted(labels) == [0, 0, 1, 1, 2, 2, 3, 3]
        assert len(manifest.of("val")) == len(manifest.of("test")) == 8
    assert few[0].of("train") != few[1].of("train")


def jepa() -> JepaConfig:
    groups = (BlockGroup(2, 0.3),)
    return JepaConfig("mini", groups=groups, predictor_depth=1, predictor_width=48, predictor_heads=3)


def test_the_broken_jepa_moves_both_sides_of_its_loss() -> None:
    frames = torch.randint(0, 256, (2, 4, 64, 64, 3), dtype=torch.uint8)
    broken = build_broken(jepa(), 0, 4, 64)
    teaching = broken.teach(frames)
    assert teaching.requires_grad
    sound = torch.nn.functional.layer_norm(broken.features(frames).float(), (128,))
    torch.testing.assert_close(teaching, sound)  # at the start the teacher is the student
    teaching.square().sum().backward()
    assert broken.encoder.patch_embedding.weight.grad is not None


def test_the_first_flag_of_a_run() -> None:
    curves = {"step": [1.0, 10.0, 20.0, 30.0], "monitor/collapsed": [0.0, 0.0, 1.0, 1.0]}
    assert collapse.first_flag(curves) == 20
    assert collapse.first_flag({"step": [1.0], "monitor/collapsed": [0.0]}) is None


def lab_with(tmp_path: Path, *measures: Measure) -> Lab:
    return Lab(tmp_path, "cpu", 1, measures=list(measures))


def test_a_collapse_must_be_flagged_in_every_run_and_in_time(tmp_path: Path) -> None:
    config = collapse.Config((0, 1), 1, "", 400)

    def holds(*flags: tuple[str, int, float]) -> list[bool]:
        end = [Measure(collapse.HEALTHY, "last step", "rankme", seed, 9.0) for seed in (0, 1)]
        made = [Measure(name, "collapse", "flagged at step", seed, step) for name, seed, step in flags]
        return [check.holds for check in collapse.check(lab_with(tmp_path, *end, *made), config)]

    both = [(collapse.COLLAPSING, 0, 80.0), (collapse.COLLAPSING, 1, 200.0)]
    assert holds(*both) == [True, True]
    assert holds(both[0]) == [False, True]
    assert holds(both[0], (collapse.COLLAPSING, 1, 210.0)) == [False, True]
    assert holds(*both, (collapse.HEALTHY, 1, 300.0)) == [True, False]


def test_balance_must_help_by_more_than_the_spread(tmp_path: Path) -> None:
    config = balance.Config((0, 1, 2), 1, 1, 1, 1, "", "")

    def holds(frames: tuple[float, ...], balanced: tuple[float, ...]) -> list[bool]:
        measures = [
            Measure(name, task, "accuracy", seed, value)
            for name, values in ((balance.FRAMES, frames), (balance.BALANCED, balanced))
            for task in balance.TASKS
            for seed, value in enumerate(values)
        ]
        return [check.holds for check in balance.check(lab_with(tmp_path, *measures), config)]

    assert holds((30, 31, 32), (40, 41, 42)) == [True, True]
    assert holds((30, 31, 45), (40, 41, 42)) == [False, False]
    assert holds((40, 41, 42), (30, 31, 32)) == [False, False]


def test_sources_are_one_to_two_hundred_and_their_videos_are_as_long_as_said(tmp_path: Path) -> None:
    frames = sources.lengths(100)
    assert (frames[0], frames[-1]) == (100, 20_000)
    assert frames == sorted(frames)
    jobs = sources.corpus_jobs(tmp_path, 100, 0)
    assert [sum(job.frames for job in jobs if job.source == s) for s in range(sources.SOURCES)] == frames
    assert len({job.key for job in jobs}) == len(jobs)
    job = next(job for job in jobs if job.source == 1)
    job.path.parent.mkdir()
    sources.draw(job, np.full((3, 8, 8), 200, np.uint8))
    with av.open(str(job.path)) as video:
        assert sum(1 for _ in video.decode(video=0)) == job.frames


def test_a_fifth_of_tissue_is_junk() -> None:
    kinds = set()
    for key in range(12):
        pictures = np.stack(list(sources.tissue(6, key, 200)))
        junk = pictures[80:120]
        assert (junk == junk[0]).all()
        assert not (pictures[:80] == pictures[0]).all()
        kinds.add("black" if not junk.any() else "white" if junk.min() == 255 else "still")
    assert kinds == {"black", "white", "still"}


def test_a_digit_keeps_the_speed_of_the_labelled_set() -> None:
    image = np.zeros((8, 8), np.uint8)
    image[2:6, 3:5] = 255
    short = list(sources.moving_digit(1, image, "right", 5, 32))
    long = list(sources.moving_digit(1, image, "right", 5, 64))
    assert all((a == b).all() for a, b in zip(short, long, strict=False))


def windows(tmp_path: Path) -> Windows:
    source, position = np.repeat([0, 1], 9), np.tile(np.arange(9), 2)
    return Windows(tmp_path, tmp_path, source, position, ("cardiac-cine", "operation"))


def test_retrieval_counts_sources_and_times(tmp_path: Path) -> None:
    found = windows(tmp_path)
    angle = 0.1 * found.position + 3.0 * found.source
    walk = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    answers = hits(walk, found)
    assert answers["same source"].tolist() == [1.0] * 18
    assert np.isnan(answers["neighbouring time"][:9]).all()  # of footage that loops
    assert answers["neighbouring time"][9:].tolist() == [1.0] * 9
    far = (found.position * 3) % 8 + found.position // 8 * 8  # neighbours in time are far apart
    angle = 0.1 * far + 3.0 * found.source
    jumps = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    assert hits(jumps, found)["neighbouring time"][9:].mean() < 0.5


def test_intervals_are_of_blocks(tmp_path: Path) -> None:
    found = windows(tmp_path)
    block = blocks(found, np.ones(18, bool))
    assert np.bincount(block).tolist() == [3] * 6
    value, low, high = by_blocks(np.repeat([0.0, 1.0, 1.0, 1.0, 0.0, 1.0], 3), block, 0)
    assert value == pytest.approx(100 * 4 / 6)
    assert 0 <= low < value < high <= 100
    assert by_blocks(np.ones(18), block, 0) == (100.0, 100.0, 100.0)


def test_motion_digits_judges_by_means_over_seeds(tmp_path: Path) -> None:
    entries = dict.fromkeys(("train", "val", "test", "unlabelled", "frames", "draws"), 0)
    texts: dict[str, Any] = dict.fromkeys(("mae", "jepa", "still", "probe", "finetune"), "")
    gains = dict.fromkeys(("mae_digit", "mae_motion", "jepa_digit", "jepa_motion"), 20.0)
    all_claims = motion_digits.Config(
        (0, 1),
        labels=(1.0, 10.0),
        tuned=motion_digits.LEARNT,
        digit_labels=None,
        motion_labels=10.0,
        few_labels=True,
        **gains,
        **entries,
        **texts,
    )
    (tmp_path / "digits").mkdir()
    row = Row("a.mp4", 0, "test", "a")
    write_manifest(tmp_path / "digits" / "motion.json", SplitManifest("m", tuple("abcdefgh"), (row,)))

    def failing(config: motion_digits.Config = all_claims, **changed: float) -> list[str]:
        values = {"MAE": 70.0, "JEPA": 60.0, "twin": 40.0, "few": 30.0, "scratch": 20.0, "still": 13.0}
        values |= changed
        given: list[tuple[str, str, float | None]] = [
            (motion_digits.STILL, "still", None),
            (motion_digits.SUPERVISED, "scratch", 1.0),
        ]
        for name in motion_digits.LEARNT:
            for amount in (None, 10.0):
                given += [(name, name, amount), (motion_digits.untrained(name), "twin", amount)]
            given.append((motion_digits.tuned(name), "few", 1.0))
        measures = [
            Measure(subject, task, "accuracy", seed, values[name] + shift, amount=amount)
            for seed, shift in ((0, -5.0), (1, 5.0))
            for task in motion_digits.TASKS
            for subject, name, amount in given
        ]
        checks = motion_digits.check(lab_with(tmp_path, *measures), config)
        assert len(checks) == 9 or config is not all_claims
        return [check.claim for check in checks if not check.holds]

    assert failing() == []
    assert [claim.split()[0] for claim in failing(JEPA=59.0)] == ["JEPA", "JEPA"]
    assert all("labels" in claim for claim in failing(few=20.0))
    assert len(failing(few=20.0)) == 4
    fewer = replace(all_claims, jepa_digit=None, few_labels=False)
    assert failing(fewer, JEPA=59.0, few=20.0) == [
        "JEPA beats its untrained twin on motion with 10 % of the labels by 20 points"
    ]
    assert failing(still=19.0) == ["single frames are within 5 points of chance on motion"]


def test_broken_is_what_the_experiment_runs() -> None:
    assert collapse.BROKEN.exists()
    assert sys.modules[build_broken.__module__].__file__ == str(collapse.BROKEN)
