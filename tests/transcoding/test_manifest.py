"""The manifest, and which videos of an index are proxies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import pytest
from surgrec.configs.transcode import TranscodeConfig
from surgrec.loaders.proxy_tag import make_tag, read_tag

from surgrec.transcoding.manifest import MANIFEST_NAME, ManifestError, open_manifest, write_manifest
from surgrec.transcoding.proxies import describe_proxies, proxy_summary
from surgrec.transcoding.run import transcode


@pytest.fixture
def made(
    films: Path, tmp_path: Path, config_of: Callable[..., TranscodeConfig], in_process: list[str]
) -> Path:
    transcode(config_of(films))
    return tmp_path / "proxies"


def test_every_proxy_frame_leads_to_its_source(made: Path, films: Path, streams: ModuleType) -> None:
    manifest = open_manifest(made)
    assert len(manifest) == 3
    for number, name in enumerate(manifest.columns["proxy"]):
        images, _ = streams.decode_all(made / name)
        for frame, image in enumerate(images):
            found = manifest.source_frame(name, frame)
            assert found == manifest.source_frame(number, frame) == manifest.source_frame(made / name, frame)
            assert found.position == streams.read_number(image)
            sources, times = streams.decode_all(Path(found.path))
            assert times[found.position] == found.pts
            assert streams.read_number(sources[found.position]) == found.position
    last = manifest.source_frame(0, len(streams.decode_all(made / manifest.columns["proxy"][0])[0]) - 1)
    assert last.seconds == pytest.approx(last.pts / last.time_base[1])


def test_questions_without_an_answer(made: Path, tmp_path: Path) -> None:
    manifest = open_manifest(made / MANIFEST_NAME)
    with pytest.raises(KeyError, match="knows no proxy other"):
        manifest.source_frame("other.mp4", 0)
    with pytest.raises(IndexError, match="frames, frame 999 asked"):
        manifest.source_frame(0, 999)
    with pytest.raises(ManifestError, match="no such manifest"):
        open_manifest(tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["format"] = "something"
    with pytest.raises(ManifestError, match="format 'something'"):
        open_manifest(tmp_path / "other.h5")
    shutil.copy(made / MANIFEST_NAME, tmp_path / "cut.h5")
    os.truncate(tmp_path / "cut.h5", 2000)
    with pytest.raises(ManifestError, match="damaged"):
        open_manifest(tmp_path / "cut.h5")


def test_round_trip_and_empty(made: Path, tmp_path: Path) -> None:
    manifest = open_manifest(made)
    records = [manifest.record(number) for number in range(3)]
    write_manifest(tmp_path, records)
    again = open_manifest(tmp_path)
    for one, other in zip(records, map(again.record, range(3)), strict=True):
        assert one.values == other.values
        assert one.position.tolist() == other.position.tolist()
        assert one.time.tolist() == other.time.tolist()
    write_manifest(tmp_path, [])
    assert len(open_manifest(tmp_path)) == 0


def test_an_index_says_which_videos_are_proxies(
    made: Path, films: Path, build_index_of: Any, tmp_path: Path
) -> None:
    paths = sorted(made.rglob("*.mp4"))
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(paths[0], tmp_path / "elsewhere" / "renamed.mp4"))
    index = build_index_of([films / "lap" / "one.mp4", moved, *paths[1:]], tmp_path / "corpus.h5")
    summary = proxy_summary(index)
    assert (summary.proxies, summary.videos) == (3, 4)
    digest = open_manifest(made).columns["options_digest"][0]
    assert summary.kinds == {("25/4", 64, digest): 3}
    text = describe_proxies(summary.to_dict())
    assert text.startswith("training proxies: 3 of 4 videos: 3 with short side 64 at 25/4 frames/s")
    moved.unlink()
    assert proxy_summary(index).proxies == 2
    plain = build_index_of([films / "lap" / "one.mp4"], tmp_path / "plain.h5")
    assert describe_proxies(proxy_summary(plain).to_dict()) == ""


def box(name: bytes, content: bytes) -> bytes:
    return (len(content) + 8).to_bytes(4, "big") + name + content


def test_tags_of_odd_files(tmp_path: Path) -> None:
    tag = make_tag({"source": "ab", "rate": "25/4"}).encode()
    moov = box(b"moov", box(b"mvhd", bytes(20)) + box(b"udta", b"??" + tag + b"\0tail"))
    long = (1).to_bytes(4, "big") + b"mdat" + (40).to_bytes(8, "big") + bytes(24)
    cases = {
        b"": None,
        box(b"ftyp", b"mp42") + moov: {"source": "ab", "rate": "25/4"},
        long + moov: {"source": "ab", "rate": "25/4"},
        (0).to_bytes(4, "big") + b"moov" + moov[8:]: {"source": "ab", "rate": "25/4"},
        moov[:-30]: None,
        box(b"moov", box(b"udta", b"surgrec-proxy {broken")): None,
        box(b"moov", box(b"udta", b"surgrec-proxy [1]")): None,
        box(b"mdat", moov): None,
        (3).to_bytes(4, "big") + b"moov": None,
        bytes(64): None,
        b"text that is long enough to look like a box or two": None,
    }
    for number, (content, expected) in enumerate(cases.items()):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(content)
        assert read_tag(path) == expected, content
