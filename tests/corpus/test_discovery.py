"""Inputs and manifests -> which videos, with which labels."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from surgrec.corpus.discovery import Entry, InputError, check_workers, find_entries, read_manifest


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "top.mp4",
        "hospital_b/two.MKV",
        "hospital_a/deep/er/one.avi",
        "hospital_a/notes.txt",
        "hospital_a/.hidden.mp4",
        ".trash/gone.mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_folder_gives_videos_below_it_in_order(tree: Path) -> None:
    entries = find_entries([str(tree)])
    assert [(os.path.relpath(e.path, tree), e.dataset, e.case) for e in entries] == [
        ("top.mp4", tree.name, "top"),
        ("hospital_a/deep/er/one.avi", "hospital_a", "one"),
        ("hospital_b/two.MKV", "hospital_b", "two"),
    ]
    assert {e.domain for e in entries} == {""}


def test_given_labels_replace_defaults(tree: Path) -> None:
    entries = find_entries([str(tree)], dataset="D", domain="robotic")
    assert {(e.dataset, e.domain) for e in entries} == {("D", "robotic")}


def test_files_and_globs_take_any_ending_and_no_file_twice(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    entries = find_entries(["hospital_a/notes.txt", "hospital_*/*", "./hospital_a/notes.txt", "**/*.avi"])
    assert [os.path.relpath(e.path, tree) for e in entries] == [
        "hospital_a/notes.txt",
        "hospital_b/two.MKV",
        "hospital_a/deep/er/one.avi",
    ]
    assert entries[1].dataset == "hospital_b"


def test_pattern_that_matches_folders_only_takes_what_is_in_them(tree: Path) -> None:
    assert [Path(e.path).name for e in find_entries([f"{tree}/hospital_*"])] == ["one.avi", "two.MKV"]


def test_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "op[1].mp4").touch()
    assert len(find_entries([str(tmp_path / "op[1].mp4")])) == 1


def test_links_are_followed_once(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "linked.mp4").touch()
    (tree / "hospital_c").symlink_to(other)
    (tree / "hospital_b" / "loop").symlink_to(tree)
    (tree / "zz_same.mp4").symlink_to(tree / "top.mp4")
    names = [Path(e.path).name for e in find_entries([str(tree)])]
    assert sorted(names) == ["linked.mp4", "one.avi", "top.mp4", "two.MKV"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "nothing to index"),
        (["none"], "none: no such file or folder"),
        (["none/*.mp4"], "no file matches"),
        (["empty"], "empty: no video file in this folder"),
    ],
)
def test_inputs_without_video(
    inputs: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        find_entries(inputs)


TABLE = {
    "path": ["a/x.mp4", "/abs/y.mkv", "z.avi"],
    "dataset": ["A", None, ""],
    "domain": ["cataract", "robotic", None],
    "case": ["17", None, None],
    "split": ["train", "", None],
    "surgeon": ["1", "2", "3"],
}


@pytest.mark.parametrize("form", ["csv", "csv with mark", "parquet"])
def test_manifest_forms(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "sub" / ("table.parquet" if form == "parquet" else "table.csv")
    table.parent.mkdir()
    if form == "parquet":
        pq.write_table(pa.table(TABLE), table)
    else:
        rows = zip(*TABLE.values(), strict=True)
        lines = [",".join(TABLE), *(",".join(cell or "" for cell in row) for row in rows)]
        table.write_text("\n".join(lines), encoding="utf-8-sig" if "mark" in form else "utf-8")
    monkeypatch.chdir(tmp_path)
    assert read_manifest(Path("sub") / table.name, domain="endoscopy") == [
        Entry(str(tmp_path / "sub/a/x.mp4"), "A", "cataract", "17", "train"),
        Entry("/abs/y.mkv", "abs", "robotic", "y", ""),
        Entry(str(tmp_path / "sub/z.avi"), "sub", "endoscopy", "z", ""),
    ]


def test_numbers_in_parquet_are_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.mp4"], "case": [17]}), tmp_path / "t.parquet")
    assert read_manifest(tmp_path / "t.parquet")[0].case == "17"


def test_manifest_labels_go_before_those_of_folders(tree: Path) -> None:
    (tree / "t.csv").write_text("path,dataset\nhospital_b/two.MKV,special\n")
    entries = {Path(e.path).name: e for e in find_entries([str(tree)], tree / "t.csv")}
    assert len(entries) == 3
    assert (entries["two.MKV"].dataset, entries["one.avi"].dataset) == ("special", "hospital_a")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such manifest"),
        ("t.csv", b"file,dataset\na,b\n", "no column `path` among file, dataset"),
        ("t.csv", b"", "no column `path`"),
        ("t.csv", b"path,case\n,1\n", "row 1 has no path"),
        ("t.csv", b"path,case\n", "no rows"),
        ("t.csv", b"path\n\xff\xfe\n", "not a CSV table in UTF-8"),
        ("t.csv", b"path,Path\na,b\n", "more than one column is called path"),
        ("t.csv", b"path,case\na.mp4,1\n\nb,c.mp4,2\n", "line 4 has 3 cells, the table 2 columns"),
        ("t.csv", b"path,case\na\0.mp4,1\n", "row 1 holds a NUL character"),
        ("t.csv", b"path,case\na.mp4,1\nb.mp4,\0\n", "row 2 holds a NUL character"),
        ("t.parquet", b"text", "not a Parquet table"),
    ],
)
def test_bad_manifests(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / name)


def test_bytes_in_parquet_are_text(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"path": pa.array([b"a.mp4"], pa.binary())}), table)
    assert read_manifest(table)[0].path == str(tmp_path / "a.mp4")
    pq.write_table(pa.table({"path": pa.array([b"\xff.mp4"], pa.binary())}), table)
    with pytest.raises(InputError, match="no UTF-8 text"):
        read_manifest(table)


def test_what_is_passed_over_is_said(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Capitals and spaces in names of columns are meant well; labels that contradict one another are not."""
    table = tree / "t.csv"
    table.write_text(
        "Path , Dataset,surgeon\ntop.mp4,first,1\n./top.mp4,second,2\nhospital_b/two.MKV,third,3\n"
    )
    scan = os.scandir

    def deny(path: str) -> object:
        if os.path.basename(path) == "hospital_a":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)
    remarks: list[str] = []
    entries = {Path(e.path).name: e.dataset for e in find_entries([str(tree)], table, remarks=remarks)}
    assert entries == {"top.mp4": "first", "two.MKV": "third"}
    assert [remark.split(": ", 1)[1] for remark in remarks] == [
        "columns ignored: surgeon; known are path, dataset, domain, case, split",
        "1 rows name a video of an earlier row with other labels, which were passed over; the first is "
        + str(tree / "top.mp4"),
        "left out, this folder cannot be read (Permission denied); allow it, and index again",
    ]


@pytest.mark.parametrize(("workers", "timeout"), [(-1, 600), (0, 0), (2, -5), (2, float("nan"))])
def test_processes_and_patience_that_make_no_sense(workers: int, timeout: float) -> None:
    with pytest.raises(InputError, match=r"--workers is -1|more than 0 seconds"):
        check_workers(workers, timeout)
    check_workers(0, float("inf"))
