"""The set of moving digits: clean by construction, the same for a seed, and told by time alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_plan import ClipRequest, clip_frames
from surgrec.loaders.clip_stream import ClipStream
from surgrec.loaders.packet_index import PacketIndex

from surgrec import demo
from surgrec.corpus.build import build_index
from surgrec.corpus.discovery import find_entries
from surgrec.demo_data import digit_set
from surgrec.demo_data.digit_set import LABELS, DigitSetError, make_set, manifest_of, plan_clips
from surgrec.demo_data.handwriting import (
    CELL,
    SHEET,
    Handwriting,
    HandwritingError,
    opencv_digits,
    sklearn_digits,
)
from surgrec.demo_data.moving_digit import FRAMES, MOTIONS, SIDE, SIZE, TURN, frames, poses
from surgrec.evaluation.manifest import SPLITS, Split, read_manifest, resolve

FULL: dict[Split, int] = {"train": 4, "val": 1, "test": 2}
SMALL: dict[Split, int] = {"train": 1, "val": 1, "test": 1}


@pytest.fixture(scope="module")
def material() -> Handwriting:
    return sklearn_digits()


@pytest.fixture(scope="module")
def small(material: Handwriting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole set of 240 clips."""
    out = tmp_path_factory.mktemp("digits") / "set"
    make_set(out, material, SMALL, seed=3, workers=1)
    return out


def files_in(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def test_the_material_is_real_handwriting(material: Handwriting) -> None:
    assert material.images.shape == (1797, 8, 8)
    assert material.images.max() == 255
    assert len(np.unique(material.images.reshape(1797, -1), axis=0)) == 1797
    assert np.bincount(material.labels).min() == 174


@pytest.mark.parametrize("label", LABELS)
def test_manifests_are_clean_by_construction(material: Handwriting, label: str) -> None:
    """No sample in two splits, no clip twice, every class as often in each split."""
    manifest = manifest_of(plan_clips(material, FULL, 0), label)
    splits, digits = defaultdict(set), {}
    for row in manifest.rows:
        splits[row.group].add(row.split)
        number = int(row.group.removeprefix("sample"))
        digits[row.group] = int(material.labels[number])
        motion, digit = row.path.split("/")[1], row.path.split("/")[2][len("digit")]
        assert int(digit) == digits[row.group]
        wanted = {"motion": motion, "digit": digit, "both": f"{digit} {motion}"}[label]
        assert manifest.classes[row.label] == wanted
    assert {len(found) for found in splits.values()} == {1}
    assert set(Counter(row.group for row in manifest.rows).values()) == {2}
    assert len({row.path for row in manifest.rows}) == len(manifest.rows) == 560
    for split in SPLITS:
        counts = Counter(row.label for row in manifest.of(split))
        assert set(counts.values()) == {80 * FULL[split] // len(manifest.classes)}
        assert len(counts) == len(manifest.classes)


def test_the_seed_chooses(material: Handwriting) -> None:
    first, again, other = (manifest_of(plan_clips(material, FULL, seed), "motion") for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest
    of_zero = [manifest_of(plan_clips(material, FULL, 0), label).digest for label in LABELS]
    assert of_zero == [  # on every machine
        "40f146bc3efe71008017893a22d7e1ab",
        "92bdaf306173e7322d13e806982c7df9",
        "318d844e4df9cd2922b54dae1b2a165e",
    ]
    assert len({clip.key for clip in plan_clips(material, FULL, 1)}) == 560


def test_too_many_or_too_few_samples(material: Handwriting) -> None:
    with pytest.raises(DigitSetError, match=r"44 samples .* 176 of each digit, and one has 174: .* up to 43"):
        plan_clips(material, {"train": 40, "val": 2, "test": 2}, 0)
    assert len(plan_clips(material, {"train": 39, "val": 2, "test": 2}, 0)) == 43 * 80
    with pytest.raises(DigitSetError, match="--val 0: each split needs"):
        plan_clips(material, {"train": 1, "val": 0, "test": 1}, 0)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_motion_moves_one_number_one_way(motion: str) -> None:
    axis, direction = MOTIONS[motion]
    for key in range(20):
        moves = np.diff(poses(motion, key), axis=0)
        steps = direction * moves[:, axis] % 1.0
        assert np.allclose(steps, steps[0])
        assert 0.7 <= steps.sum() <= 0.9
        assert not np.delete(moves, axis, axis=1).any()


def test_every_pose_is_as_likely_at_every_time_under_every_motion() -> None:
    """Which is why no frame tells the motion: 400 clips of each, by quarters of each range."""
    for motion in MOTIONS:
        made = np.stack([poses(motion, key) for key in range(400)])
        for time in (0, FRAMES // 2, FRAMES - 1):
            for axis in range(4):
                counts = np.bincount((made[:, time, axis] * 4).astype(int), minlength=4)
                assert np.abs(counts - 100).max() < 36  # 4 standard deviations


def masses(motion: str, key: int, image: NDArray[np.uint8]) -> list[NDArray[np.bool_]]:
    """Where the digit is: brighter than any ground."""
    return [picture.min(axis=2) > 170 for picture in frames(image, motion, key)]


def test_motions_look_as_they_are_called() -> None:
    """A bar and a dot, so that its turn is known; steps across the ends of a range are few."""
    image = np.zeros((8, 8), np.uint8)
    image[1:7, 3:5] = 255
    for motion, (axis, direction) in MOTIONS.items():
        for key in range(8):
            places = []
            for mask in masses(motion, key, image):
                rows, columns = np.nonzero(mask)
                x, y = columns.mean(), rows.mean()
                spread = np.cov(columns, rows)
                turn = 0.5 * np.arctan2(-2 * spread[0, 1], spread[1, 1] - spread[0, 0])
                places.append((x, y, turn, mask.sum()))
            moves = np.diff(np.array(places), axis=0)
            assert np.mean(np.sign(moves[:, axis]) == direction) > (0.7 if axis in (TURN, SIZE) else 0.9)


def flow(clip: NDArray[np.uint8]) -> NDArray[np.float64]:
    """From differences of frames alone, uint8 [T, H, W, 3]: shift across and down, turn, growth: float64 [4].

    The least-squares fit of a similarity to the change of brightness between neighbours (Lucas and Kanade
    1981), about the middle of what changes; the median of eight, so that steps across the ends do not count.
    """
    grey = [cv2.GaussianBlur(each.mean(axis=2), (0, 0), 1.5) for each in clip]
    ys, xs = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    found = []
    for time in range(1, FRAMES - 1, 4):
        before, after = grey[time], grey[time + 1]
        change = after - before
        weight = np.abs(change) * (np.abs(change) > 2)
        x, y = ((at - np.average(at, weights=weight)) / 10 for at in (xs, ys))
        gy, gx = np.gradient((before + after) / 2)
        columns = np.stack([gx, gy, gy * x - gx * y, gx * x + gy * y], axis=-1)[weight > 0]
        found.append(np.linalg.lstsq(columns, -change[weight > 0], rcond=None)[0])
    return np.median(np.array(found), axis=0)


def nearest(train: NDArray, labels: NDArray, test: NDArray) -> NDArray:
    """Labels of the nearest neighbours, by distance."""
    return labels[((test[:, None] - train[None]) ** 2).sum(axis=-1).argmin(axis=1)]


def test_motion_is_in_the_differences_of_frames_and_not_in_a_frame(material: Handwriting) -> None:
    clips = plan_clips(material, FULL, 0)
    parts: dict[str, list[tuple[NDArray, NDArray, int]]] = {"train": [], "test": []}
    for clip in clips:
        if clip.split in parts:
            shown = np.stack(list(frames(material.images[clip.sample], clip.motion, clip.key)))
            one = [
                cv2.resize(shown[n], (16, 16), interpolation=cv2.INTER_AREA).ravel()
                for n in (0, FRAMES // 2, FRAMES - 1)
            ]
            parts[clip.split].append((np.stack(one) / 255, flow(shown), list(MOTIONS).index(clip.motion)))
    pictures, flows, labels = (
        {k: np.stack([row[n] for row in v]) for k, v in parts.items()} for n in range(3)
    )
    for time in range(3):
        guess = nearest(pictures["train"][:, time], labels["train"], pictures["test"][:, time])
        # Chance is 1/8; of 160 clips, 4 standard deviations are 10.5 %.
        assert np.mean(guess == labels["test"]) < 0.125 + 0.105
    scale = flows["train"].std(axis=0)
    guess = nearest(flows["train"] / scale, labels["train"], flows["test"] / scale)
    assert np.mean(guess == labels["test"]) > 0.8


def test_videos_come_through_the_loader(small: Path, tmp_path: Path) -> None:
    manifest = read_manifest(small / "motion.json")
    assert any("scikit-learn" in rule for rule in manifest.rules)
    build_index(find_entries([str(small / "videos")]), tmp_path / "corpus.h5", workers=1)
    index = PacketIndex.open(tmp_path / "corpus.h5")
    videos = {path: number for number, path in enumerate(index.videos.path)}
    assert len(videos) == len(manifest.rows) == 240
    numbers = [videos[str(resolve(small, row))] for row in manifest.rows]
    assert all(index.videos.frame_count[number] == FRAMES for number in numbers)
    shown = clip_frames(index, numbers[0], 0, FRAMES, 0.0, 8, stride=3)
    wanted = [ClipRequest(sample, number, shown) for sample, number in enumerate(numbers[::12])]
    with ClipStream(index, DataConfig(frames=8, stride=3, size=SIDE), "cpu", 1) as stream:
        groups = list(stream.read([wanted]))
    assert [group.failures for group in groups] == [[]]
    assert groups[0].frames.shape == (20, 8, SIDE, SIDE, 3)
    assert groups[0].frames.float().std() > 20


def test_a_killed_run_goes_on_to_the_same_bytes(small: Path, material: Handwriting, tmp_path: Path) -> None:
    """The seed's set, whoever made which part of it; processes of the killed run are not left behind."""
    out = tmp_path / "set"
    (tmp_path / "kill.py").write_text(
        f"""
import os
from pathlib import Path

def stop(done, total):
    if done >= 9:
        import psutil
        print(*(each.pid for each in psutil.Process().children()), flush=True)
        os.kill(os.getpid(), 9)

if __name__ == "__main__":
    from surgrec.demo_data.digit_set import make_set
    from surgrec.demo_data.handwriting import sklearn_digits
    make_set(Path({str(out)!r}), sklearn_digits(), {SMALL!r}, 3, 1, stop)
"""
    )
    killed = subprocess.run([sys.executable, str(tmp_path / "kill.py")], check=False, capture_output=True)
    assert killed.returncode == -9
    children = [psutil.Process(int(pid)) for pid in killed.stdout.split() if psutil.pid_exists(int(pid))]
    assert psutil.wait_procs(children, timeout=20)[1] == []
    there = {path: path.stat().st_mtime_ns for path in out.glob("videos/*/digit*.mp4")}
    assert 9 <= len(there) < 240
    assert not (out / "motion.json").exists()
    partial = next(iter(there)).with_name(".digit.mp4.7.partial")
    partial.touch()
    heard: list[tuple[int, int]] = []
    make_set(out, material, SMALL, 3, 2, lambda done, total: heard.append((done, total)))
    assert heard[0] == (len(there), 240)
    assert heard[-1] == (240, 240)
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert files_in(out) == files_in(small)
    assert len(files_in(out)) == 240 + len(LABELS) + 1
    for path in files_in(small):
        assert (out / path).read_bytes() == (small / path).read_bytes(), path
    make_set(out, material, SMALL, 3, 2, lambda done, total: heard.append((done, total)))
    assert heard[-1] == (240, 240)
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_other_folders_are_not_touched(small: Path, material: Handwriting, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with pytest.raises(DigitSetError, match="no set of this command: name another folder"):
        make_set(tmp_path, material, SMALL, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]
    with pytest.raises(DigitSetError, match=r"other options .*recipe\.json.* name another folder"):
        make_set(small, material, SMALL, 4)


def test_the_digits_of_opencv(tmp_path: Path) -> None:
    """Rows and columns as in its samples/data/digits.png; anything else is refused."""
    rows, columns = SHEET[0] // CELL, SHEET[1] // CELL
    values = (np.arange(rows * columns) % 251).astype(np.uint8).reshape(rows, columns)
    cv2.imwrite(str(tmp_path / "digits.png"), np.kron(values, np.ones((CELL, CELL), np.uint8)))
    found = opencv_digits(tmp_path / "digits.png")
    assert found.images.shape == (5000, CELL, CELL)
    assert np.array_equal(found.images[:, 7, 9], values.ravel())
    assert np.array_equal(found.labels, np.repeat(np.arange(10), 500))
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((20, 30), np.uint8))
    with pytest.raises(HandwritingError, match="a picture of 30 x 20, where"):
        opencv_digits(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(HandwritingError, match="no picture, where"):
        opencv_digits(tmp_path / "text.png")


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(
        out: Path, material: Handwriting, samples: dict[Split, int], seed: int, *_: object
    ) -> list[Path]:
        assert (samples, seed, len(material.labels)) == ({"train": 2, "val": 1, "test": 2}, 5, 1797)
        path = out / "motion.json"
        digit_set.write_manifest(path, manifest_of(plan_clips(material, samples, seed), "motion"))
        return [path]

    monkeypatch.setattr(digit_set, "make_set", make)
    assert demo.main(["dataset", "--out", str(tmp_path), "--train", "2", "--seed", "5"]) == 0
    text = capsys.readouterr().out
    assert "motion.json: 8 classes, 160 train, 80 val, 160 test, digest " in text
    assert f"-m surgrec.index {tmp_path / 'videos'} --out" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--train", "50"), "they may add up to 43"),
        (("--workers", "-1"), "--workers is -1"),
        (("--digits", "nothing.png"), "nothing.png: No such file"),
    ],
)
def test_errors_of_the_command(
    tmp_path: Path, options: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["dataset", "--out", str(tmp_path / "set"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_interrupted_or_without_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> list[Path]:
        raise KeyboardInterrupt

    monkeypatch.setattr(digit_set, "make_set", interrupt)
    assert demo.main(["dataset", "--out", str(tmp_path)]) == 130
    assert "goes on where it was" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert demo.main(["dataset", "--out", str(tmp_path)]) == 1
    assert "pip install 'surgrec[demo]'" in capsys.readouterr().err


def test_the_recipe_is_plain(small: Path) -> None:
    facts = json.loads((small / "recipe.json").read_text())
    assert (facts["seed"], facts["samples"]) == (3, SMALL)
