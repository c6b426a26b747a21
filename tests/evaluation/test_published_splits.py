from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgrec.evaluation.label_map import LabelMapError, read_label_map
from surgrec.evaluation.published_splits import SplitError, import_split, split_folders, split_sizes

CAPSULE = "__DATA_ROOT__/kvasir-capsule/videos"
GOOD = {
    "train": f'"{CAPSULE}/Ileocecal valve/04a78ef00c5245e0_48542-48622.mp4" 0\n'
    f"{CAPSULE}/pylorus/d369e4f163df4aba_1-81.mp4 5\n",
    "val": f"{CAPSULE}/pylorus/0000000000000000_1-81.mp4 5\n",
    "test": f"{CAPSULE}/pylorus/1111111111111111_1-81.mp4  5\r\n\r\n",
}


def release(
    folder: Path, tables: dict[str, str], label_map: Any = None, name: str = "label_map.json"
) -> Path:
    folder.mkdir(parents=True)
    for split, text in tables.items():
        (folder / f"{split}.csv").write_text(text, newline="")
    if label_map is not None:
        (folder / name).write_text(json.dumps(label_map))
    return folder


def test_quoted_paths_groups_and_rules(tmp_path: Path) -> None:
    folder = release(tmp_path / "splits" / "kvasir-capsule", GOOD)
    manifest = import_split(folder, tmp_path / "no videos")
    assert manifest.dataset == "kvasir-capsule"
    assert manifest.rows[0].path == "kvasir-capsule/videos/Ileocecal valve/04a78ef00c5245e0_48542-48622.mp4"
    assert [row.group for row in manifest.rows[:2]] == ["04a78ef00c5245e0", "d369e4f163df4aba"]
    assert [row.label for row in manifest.rows] == [0, 5, 5, 5]
    assert split_sizes(manifest) == {"train": 2, "val": 1, "test": 1}
    assert manifest.classes[5] == "pylorus"
    assert all(row.start is None and row.end is None for row in manifest.rows)
    assert manifest.rules[1:] == ("groups: 16 hexadecimal digits: examination", "class names: registry")
    assert import_split(folder, tmp_path / "elsewhere").digest == manifest.digest


def test_rows_that_were_moved_to_this_machine(tmp_path: Path) -> None:
    root = tmp_path / "data"
    moved = {split: text.replace("__DATA_ROOT__", str(root)) for split, text in GOOD.items()}
    here = import_split(release(tmp_path / "a" / "kvasir-capsule", moved), root)
    assert here.digest == import_split(release(tmp_path / "b" / "kvasir-capsule", GOOD), root).digest


@pytest.mark.parametrize(
    ("label_map", "expected"),
    [
        (None, None),
        ({"a": 0, "b": 1}, {0: "a", 1: "b"}),
        ({"0": "a", "1": "b"}, {0: "a", 1: "b"}),
        ({"label_to_index": {"a": 0, "b": 1, "c": 0}}, {0: "a | c", 1: "b"}),
        ({"label_to_index": {"a": 0, "c": 0}, "index_to_label": {"0": "a"}}, {0: "a"}),
        ({"index_to_label": {"0": "a", "2": "c"}}, {0: "a", 2: "c"}),
    ],
)
def test_shapes_of_label_maps(tmp_path: Path, label_map: Any, expected: dict[int, str] | None) -> None:
    folder = release(tmp_path / "x", {}, label_map, "label_mapping.json")
    assert read_label_map(folder) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[1]",
        b"{}",
        b'{"a": -1}',
        b'{"a": 1.5}',
        b'{"a": true}',
        b'{"": 1}',
        b'{"a": 99999}',
        b'{"index_to_label": [1]}',
        b'{"index_to_label": {"x": "a"}}',
        b"[" * 100_000,
    ],
    ids=range(12),
)
def test_bad_label_maps(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "label_map.json").write_bytes(content)
    with pytest.raises(LabelMapError, match=r"label_map\.json: .*repair or remove it"):
        read_label_map(tmp_path)


def test_label_maps_name_the_classes(tmp_path: Path) -> None:
    names = {"label_to_index": {f"name {label}": label for label in range(6)}}
    manifest = import_split(release(tmp_path / "kvasir-capsule", GOOD, names), tmp_path)
    assert manifest.classes == (*(f"name {label}" for label in range(6)), "class 6")
    (tmp_path / "kvasir-capsule" / "label_map.json").write_text("{")
    with pytest.raises(SplitError, match=r"label_map\.json: not a JSON file"):
        import_split(tmp_path / "kvasir-capsule", tmp_path)


def test_classes_named_by_the_clips(tmp_path: Path) -> None:
    row = "__DATA_ROOT__/cat-21/split_clip/{}/case_0{}_training_0001.mp4 {}\n"
    tables = {
        "train": row.format("Phako", 1, 1) + row.format("Rhexis", 1, 0) + row.format("Visco", 1, 0),
        "val": row.format("Phako", 2, 1),
        "test": row.format("Phako", 3, 1),
    }
    manifest = import_split(release(tmp_path / "cat-21", tables), tmp_path)
    assert manifest.classes[:3] == ("Rhexis | Visco", "Phako", "class 2")
    assert len(manifest.classes) == 12


def test_names_without_pattern_are_said(tmp_path: Path) -> None:
    odd = GOOD | {"train": GOOD["train"] + f"{CAPSULE}/pylorus/holiday.mp4 5\n"}
    manifest = import_split(release(tmp_path / "kvasir-capsule", odd), tmp_path)
    assert manifest.rows[2].group == manifest.rows[2].path
    assert "1 rows whose names do not follow the pattern" in manifest.rules[2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{CAPSULE}/Ileocecal valve/04a78ef00c5245e0_48542-48622.mp4 0", "put paths with spaces in double"),
        (f"{CAPSULE}/a.mp4", "expected a path, a space and a label"),
        ("path label", "label 'label' is no whole number"),
        (f"{CAPSULE}/a.mp4 -1", "label '-1' is no whole number"),
        (f"{CAPSULE}/a.mp4 1.0", "label '1.0' is no whole number"),
        (f"{CAPSULE}/a.mp4 ٣", "is no whole number"),
        (f"{CAPSULE}/a.mp4 99999999999999999999", "is no whole number"),
        (f"{CAPSULE}/a.mp4 7", "label 7, and the set has 7 classes"),
        ("/etc/passwd 0", "paths that leave it are refused"),
        ("kvasir-capsule/a.mp4 0", "lies neither below __DATA_ROOT__/ nor below the data root"),
        ("__DATA_ROOT__/../secret.mp4 0", "leaves the data root"),
        ("__DATA_ROOT__/a/../../secret.mp4 0", "leaves the data root"),
        ("__DATA_ROOT__//etc/passwd 0", "absolute"),
        ("__DATA_ROOT__/ 0", "the path is empty"),
        ("__DATA_ROOT__/a\0b.mp4 0", "control character|NUL"),
        ('"__DATA_ROOT__/a\nb.mp4" 0', "control character"),
        ("__DATA_ROOT__/link/x.mp4 0", "a link leads to"),
        ('"__DATA_ROOT__/a.mp4 0', "not a CSV table"),
    ],
)
def test_bad_rows(tmp_path: Path, line: str, message: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    folder = release(tmp_path / "kvasir-capsule", GOOD | {"val": GOOD["val"] + line + "\n"})
    with pytest.raises(SplitError, match=rf"val\.csv: line [23]: (?s:.*)({message})"):
        import_split(folder, root)


def test_bad_files(tmp_path: Path) -> None:
    folder = release(tmp_path / "kvasir-capsule", GOOD)
    (folder / "test.csv").write_bytes("__DATA_ROOT__/é.mp4 0\n".encode("latin-1"))
    with pytest.raises(SplitError, match=r"test\.csv: not UTF-8"):
        import_split(folder, tmp_path)
    (folder / "test.csv").write_text("\n")
    with pytest.raises(SplitError, match=r"test\.csv: no rows"):
        import_split(folder, tmp_path)
    (folder / "test.csv").unlink()
    with pytest.raises(SplitError, match=r"test\.csv: no such file; a data set needs"):
        import_split(folder, tmp_path)
    with pytest.raises(SplitError, match="no data set of the registry has this folder"):
        import_split(release(tmp_path / "unheard-of", GOOD), tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_path(tmp_path: Path) -> None:
    folder = release(tmp_path / "kvasir-capsule", GOOD)
    (folder / "val.csv").write_text("\ufeff" + GOOD["val"])
    assert import_split(folder, tmp_path).of("val")[0].group == "0" * 16


def test_which_folders_are_sets(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="no such folder"):
        split_folders(tmp_path / "none")
    (tmp_path / "splits" / "notes").mkdir(parents=True)
    with pytest.raises(SplitError, match="no folder in it has a train"):
        split_folders(tmp_path / "splits")
    one = release(tmp_path / "splits" / "b", {"train": ""})
    other = release(tmp_path / "splits" / "a", {"test": ""})
    assert split_folders(tmp_path / "splits") == [other, one]
    assert split_folders(one) == [one]
