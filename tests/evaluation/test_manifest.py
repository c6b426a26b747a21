from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surgrec.evaluation.manifest import (
    ManifestError,
    Row,
    SplitManifest,
    read_manifest,
    resolve,
    write_manifest,
)

SMALL = SplitManifest(
    "small",
    ("cut", "söw"),
    (
        Row("a/one clip.mp4", 0, "train", "one"),
        Row("a/two.mp4", 1, "val", "two", 0, 2.5),
        Row("b/three.mp4", 1, "test", "three", 1 / 3, None),
    ),
    ("made by hand",),
)


def test_round_trip_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "new" / "small.json"
    write_manifest(path, SMALL)
    again = read_manifest(path)
    assert again == SMALL
    # Pinned: results name the split's digest, which must not change from one version to the next.
    assert again.digest == SMALL.digest == "aa1fb404b25f530b0cefd23428298c7f"
    before = path.read_bytes()
    write_manifest(path, again)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["small.json"]
    assert [row.path for row in again.of("test")] == ["b/three.mp4"]


def test_the_digest_is_of_what_is_evaluated() -> None:
    assert replace(SMALL, rules=()).digest == SMALL.digest
    for other in (
        replace(SMALL, dataset="other"),
        replace(SMALL, classes=("cut", "sew")),
        replace(SMALL, rows=SMALL.rows[:2]),
        replace(SMALL, rows=SMALL.rows[::-1]),
        replace(SMALL, rows=(replace(SMALL.rows[0], group="two"), *SMALL.rows[1:])),
    ):
        assert other.digest != SMALL.digest
    assert replace(SMALL, rows=(SMALL.rows[0], replace(SMALL.rows[1], start=0.0), SMALL.rows[2])).digest == (
        SMALL.digest
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a split manifest"),
        ({"format_version": 2}, "format version 2"),
        ({"dataset": 3}, "`dataset` is not a text"),
        ({"classes": "cut"}, "`classes` is not a list"),
        ({"classes": ["cut"]}, "row 2 .*label 1, and there are 1 classes"),
        ({"rows": []}, "no rows"),
        ({"rows": [["a.mp4", 0, "train", "g"]]}, "row 1 is not"),
        ({"rows": [["a.mp4", True, "train", "g", None, None]]}, "row 1 is not"),
        ({"rows": [["a.mp4", -1, "train", "g", None, None]]}, "label -1"),
        ({"rows": [["a.mp4", 0, "dev", "g", None, None]]}, "split 'dev'"),
        ({"rows": [["a.mp4", 0, "train", "", None, None]]}, "group is empty"),
        ({"rows": [["a.mp4", 0, "train", "g", 3, 2]]}, "3.0 to 2.0 are no clip"),
        ({"rows": [["a.mp4", 0, "train", "g", float("nan"), 2]]}, "no clip"),
        ({"rows": [["/etc/passwd", 0, "train", "g", None, None]]}, "absolute"),
        ({"rows": [["a/../../b.mp4", 0, "train", "g", None, None]]}, "leaves the data root"),
        ({"rows": [["a\0.mp4", 0, "train", "g", None, None]]}, "control character"),
        ({"rows": [["a.mp4", 0, "train", "g", None, None]]}, "changed by hand"),
        ({"digest": "00"}, "changed by hand"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "small.json"
    write_manifest(path, SMALL)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ManifestError, match=f"^{path}: .*{message}"):
        read_manifest(path)


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no such manifest; check the path, or write it with"):
        read_manifest(tmp_path / "none.json")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path)
    for content in (b"", b"\xff\xfe", b'{"format": ', b"[" * 100_000, b"[1]"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(ManifestError, match=r"bad\.json: not a"):
            read_manifest(tmp_path / "bad.json")


def test_a_bad_manifest_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    with pytest.raises(ManifestError, match="label 2"):
        write_manifest(path, replace(SMALL, rows=(replace(SMALL.rows[0], label=2),)))
    assert not path.exists()


def test_paths_stay_below_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "set").mkdir(parents=True)
    (root / "set" / "a.mp4").touch()
    (tmp_path / "secret.mp4").touch()
    (root / "set" / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "up").symlink_to(tmp_path)
    (root / "set" / "in.mp4").symlink_to(root / "set" / "a.mp4")
    (root / "set" / "loop.mp4").symlink_to(root / "set" / "loop.mp4")

    def at(path: str) -> Path:
        return resolve(root, Row(path, 0, "train", "g"))

    assert at("set/a.mp4") == at("set/in.mp4") == (root / "set" / "a.mp4").resolve()
    assert at("set/not there.mp4") == (root / "set" / "not there.mp4").resolve()
    for path in (
        "set/out.mp4",
        "up/secret.mp4",
        "../secret.mp4",
        "set/../../secret.mp4",
        str(tmp_path / "secret.mp4"),
        "~/secret.mp4",
        "",
        "a\0b",
    ):
        with pytest.raises(ManifestError, match="refused"):
            at(path)
    # A loop of links is an error up to Python 3.12, and a path of its own from 3.13 on.
    with suppress(ManifestError):
        assert at("set/loop.mp4").is_relative_to(root.resolve())
