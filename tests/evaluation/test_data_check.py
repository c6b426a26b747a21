from __future__ import annotations

from pathlib import Path
from types import ModuleType

from surgrec.evaluation.data_check import check_clips, find_folders
from surgrec.evaluation.manifest import Row, SplitManifest
from surgrec.evaluation.registry_table import DATASETS


def test_files_that_are_there_missing_damaged_and_outside(tmp_path: Path, streams: ModuleType) -> None:
    root = tmp_path / "data"
    (root / "set").mkdir(parents=True)
    streams.make_stream("h264_default", root / "set" / "good.mp4", frames=8, size=(96, 64))
    (root / "set" / "text.mp4").write_text("no video")
    (root / "set" / "empty.mp4").touch()
    (root / "set" / "folder.mp4").mkdir()
    (root / "set" / "out.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    names = ["good", "text", "empty", "folder", "out", "gone", "good"]
    rows = tuple(Row(f"set/{name}.mp4", 0, "train", name) for name in names)
    manifest = SplitManifest("made", ("a",), rows)
    calls: list[tuple[int, int]] = []
    found = check_clips(manifest, root, progress=lambda done, total: calls.append((done, total)))
    assert (found.files, found.there, found.missing) == (6, 5, ("set/gone.mp4",))
    assert [Path(path).stem for path, _ in found.faults] == ["empty", "folder", "out", "text"]
    assert "a link leads to" in dict(found.faults)["set/out.mp4"]
    assert not found.complete
    assert calls[-1] == (6, 6)
    opened = check_clips(manifest, root, decode=False)
    assert [path for path, _ in opened.faults] == ["set/folder.mp4", "set/out.mp4"]
    only_good = check_clips(SplitManifest("made", ("a",), rows[:1]), root)
    assert only_good.complete


def test_folders_by_either_name(tmp_path: Path) -> None:
    (tmp_path / "AIxSuture" / "video_faststart").mkdir(parents=True)
    (tmp_path / "AIxSuture" / "video_faststart" / "A1.mp4").touch()
    (tmp_path / "AIxSuture" / "notes.txt").touch()
    (tmp_path / "LDPolyVideo").mkdir()
    found = {entry.dataset.key: entry for entry in find_folders(list(DATASETS.values()), tmp_path)}
    assert (found["aixsuture"].folder, found["aixsuture"].videos) == (tmp_path / "AIxSuture", 1)
    assert (found["ldpolypvideo"].folder, found["ldpolypvideo"].videos) == (tmp_path / "LDPolyVideo", 0)
    assert (found["cholec80"].folder, found["cholec80"].videos) == (None, 0)
