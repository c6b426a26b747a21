"""The demo's videos: deterministic, of the format that recorders write, with the mix that is wanted."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.frame import PictureType

from surgrec.demo_data.cavity import CavityView
from surgrec.demo_data.encode import KEY_EVERY, write_h264
from surgrec.demo_data.gather import REAL_CLIPS, gather, gather_clip, recipe
from surgrec.demo_data.instruments import TOOLS, draw, use
from surgrec.demo_data.motion import presence, smooth_path
from surgrec.demo_data.operations import FPS, Operation, frames, operations
from surgrec.demo_data.texture import fractal

ONE_EACH = list({each.dataset: each for each in operations()}.values())


def test_the_dozen_is_an_unbalanced_mix_of_four_domains() -> None:
    drawn = operations()
    assert len(drawn) == 12
    assert len({each.name for each in drawn}) == 12
    seconds = Counter({each.domain: 0 for each in drawn})
    for each in drawn:
        seconds[each.domain] += each.seconds
        assert sum(phase.share for phase in each.phases) == pytest.approx(1)
        assert each.width % 2 == each.height % 2 == 0
    assert set(seconds) == {"laparoscopy", "endoscopy", "cataract", "robotic"}
    assert max(seconds.values()) > 3 * min(seconds.values())


@pytest.mark.parametrize("operation", ONE_EACH, ids=lambda each: each.dataset)
def test_pictures_follow_from_the_key(operation: Operation) -> None:
    """The same key draws the same pictures, another key others; neighbours look alike, and things move."""
    short = replace(operation, seconds=4)
    first, again, other = (list(islice(frames(short, key), 30)) for key in (7, 7, 8))
    for picture, same in zip(first, again, strict=True):
        assert picture.shape == (operation.height, operation.width, 3)
        assert picture.dtype == np.uint8
        assert np.array_equal(picture, same)
    difference = [float(np.abs(a.astype(int) - b).mean()) for a, b in pairwise(first)]
    assert float(np.abs(first[0].astype(int) - other[0]).mean()) > 2 * np.mean(difference)
    assert 0.5 < np.mean(difference) < 10
    assert first[0].std() > 20


def test_round_pictures_are_black_outside() -> None:
    operation = replace(next(each for each in operations() if each.round), seconds=1)
    picture = next(frames(operation, 1))
    assert picture[:8, :8].max() == 0
    middle = picture[operation.height // 2, operation.width // 2]
    assert middle.max() > 0


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_instruments_come_in_and_leave(name: str) -> None:
    tool = use(np.random.default_rng(1), name, 0.1, 120, 160, 1.0, 6.0)
    assert tool.tip_at(0.5) is None
    assert tool.tip_at(6.5) is None
    blank = np.full((120, 160, 3), 128, np.uint8)
    picture = blank.copy()
    assert draw(picture, [tool], 0.9) == []
    assert np.array_equal(picture, blank)
    ((_, tip, opening),) = draw(picture, [tool], 3.5)
    assert 0 <= opening <= 1
    x, y = (int(np.clip(v, 8, limit - 9)) for v, limit in zip(tip, (160, 120), strict=True))
    assert np.any(picture[y - 8 : y + 8, x - 8 : x + 8] != 128)


def test_work_leaves_marks_where_it_was_done() -> None:
    view = CavityView(np.random.default_rng(2), 96, 128, ("fat",))
    before = view.background(1.0, [])
    view.mark(64, 48, "char", 6, 0.9)
    after = view.background(1.0, [])
    changed = np.abs(before.astype(int) - after).sum(axis=2)
    rows, columns = np.nonzero(changed > 30)
    assert len(rows) > 0
    assert abs(rows.mean() - 48) < 12
    assert abs(columns.mean() - 64) < 12


def test_paths_stay_within_their_spread() -> None:
    path = smooth_path(np.random.default_rng(3), (10.0, -5.0), (2.0, 0.5))
    places = np.array([path.at(second) for second in np.linspace(0, 300, 3000)])
    assert np.all(np.abs(places - (10.0, -5.0)) <= (2.0 + 1e-9, 0.5 + 1e-9))
    assert np.all(places.std(axis=0) > (0.2, 0.05))
    assert [presence(t, 1, 9, 2) for t in (0, 1, 5, 9)] == [0, 0, 1, 0]


def test_noise_tiles() -> None:
    field = fractal(np.random.default_rng(4), 128, 4, 5)
    assert (field.min(), field.max()) == (0, 1)
    inside = np.abs(np.diff(field, axis=1)).max()
    assert np.abs(field[:, 0] - field[:, -1]).max() <= 1.5 * inside


def test_encoded_as_recorders_do(tmp_path: Path) -> None:
    """H.264 with B-frames, a key frame every 250 and nowhere else; the same bytes each time."""
    generator = np.random.default_rng(5)
    pictures = [cv2.resize(generator.integers(0, 256, (6, 8, 3), np.uint8), (64, 48)) for _ in range(20)]
    moving = [np.roll(pictures[n // 40], n, axis=1) for n in range(2 * KEY_EVERY + 20)]
    for name in ("a.mp4", "b.mp4"):
        assert write_h264(tmp_path / name, moving, FPS) == len(moving)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", FPS)
        shown = list(container.decode(stream))
    assert [n for n, frame in enumerate(shown) if frame.key_frame] == [0, KEY_EVERY, 2 * KEY_EVERY]
    assert sum(frame.pict_type == PictureType.B for frame in shown) > 100
    assert float(np.abs(shown[300].to_ndarray(format="rgb24").astype(int) - moving[300]).mean()) < 12


def test_bytes_do_not_depend_on_what_memory_held(tmp_path: Path) -> None:
    """glibc fills memory that it gives out: 0 leaves it, 170 does not. Narrow pictures, as the digits'."""
    code = (
        "import sys, numpy as np, cv2\nfrom pathlib import Path\n"
        "from surgrec.demo_data.encode import write_h264\n"
        "for n in range(24):\n"
        "    rng = np.random.default_rng(n)\n"
        "    ground = cv2.resize(rng.integers(0, 120, (12, 12, 3), np.uint8), (64, 64))\n"
        "    pictures = []\n"
        "    for time in range(24):\n"
        "        picture = ground.copy()\n"
        "        cv2.putText(picture, str(n % 10), (4 + time * 3 // 2, 50), 0, 1.0, (255, 255, 255), 3)\n"
        "        pictures.append(picture)\n"
        "    write_h264(Path(sys.argv[1]) / f'{n}.mp4', pictures, 25)\n"
    )
    for fill in ("0", "170"):
        (tmp_path / fill).mkdir()
        environment = os.environ | {"MALLOC_PERTURB_": fill}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / fill)], check=True, env=environment)
    for path in (tmp_path / "0").iterdir():
        assert path.read_bytes() == (tmp_path / "170" / path.name).read_bytes()


def test_nothing_to_encode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture"):
        write_h264(tmp_path / "empty.mp4", [], FPS)
    assert not (tmp_path / "empty.mp4").exists()


def test_gather_reuses_what_is_there(tmp_path: Path) -> None:
    drawn = (replace(ONE_EACH[0], seconds=1), replace(ONE_EACH[-1], seconds=1))
    keys = {each.name: 11 for each in drawn}
    heard: list[str] = []

    def progress(name: str, done: int, total: int) -> None:
        heard.append(name)

    def run(keys: dict[str, int]) -> Path:
        heard.clear()
        return gather(tmp_path, keys, workers=2, progress=progress, drawn=drawn, real=REAL_CLIPS[:2])

    manifest = run(keys)
    with open(manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [
        *(f"{each.name}.mp4" for each in drawn),
        "cardiac-cine.mp4",
        "bikes.mp4",
    ]
    assert rows[0]["domain"] == drawn[0].domain
    assert len(heard) == 4
    for row in rows:
        with av.open(str(tmp_path / row["path"])) as container:
            assert next(container.decode(video=0)).width > 0
    old = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("*.mp4")}

    run(keys)
    assert heard == []
    (tmp_path / "bikes.mp4").unlink()
    run(keys)
    assert heard == ["bikes.mp4"]

    run(dict.fromkeys(keys, 12))
    assert sorted(heard) == sorted(keys)
    for each in drawn:
        assert (tmp_path / f"{each.name}.mp4").read_bytes() != old[f"{each.name}.mp4"][1]
    assert (tmp_path / "cardiac-cine.mp4").stat().st_mtime_ns == old["cardiac-cine.mp4"][0]
    assert not list(tmp_path.glob(".*.partial"))


def test_real_clips(tmp_path: Path) -> None:
    for clip in REAL_CLIPS:
        gather_clip(clip, tmp_path)
    with av.open(str(tmp_path / "cardiac-cine.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 240
    assert pictures[0].shape == (240, 320, 3)
    # A beat later the same picture comes again; half a beat later another.
    assert (
        np.abs(pictures[0].astype(int) - pictures[30]).mean()
        < np.abs(pictures[0].astype(int) - pictures[15]).mean()
    )
    with av.open(str(tmp_path / "carphone.mp4")) as container:
        assert container.streams.video[0].width == 176


def test_recipe_changes_with_the_keys() -> None:
    assert recipe({"a": 1, "b": 2}) == recipe({"b": 2, "a": 1}) != recipe({"a": 1, "b": 3})
