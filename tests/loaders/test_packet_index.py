"""Writer and reader of the index: round trip, and refusal of what is no index."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surgrec.loaders import packet_index
from surgrec.loaders.index_writer import Packets, Row, Source, default_values, write_index
from surgrec.loaders.packet_index import OK, PacketIndex, PacketIndexError

Video = tuple[int, int, bytes]


def make_source(number: int, packets: int, frames: int, extradata: bytes) -> Source:
    generator = np.random.default_rng(number)
    columns = Packets(
        offset=generator.integers(0, 2**63, packets).astype(np.uint64),
        size=generator.integers(0, 2**32, packets).astype(np.uint32),
        pts=generator.integers(-(2**62), 2**62, packets),
        rank=generator.integers(0, 2**32, packets).astype(np.uint32),
        flags=generator.integers(0, 64, packets).astype(np.uint8),
        checksum=generator.integers(0, 2**32, packets).astype(np.uint32),
        display=generator.integers(0, packets or 1, frames).astype(np.uint32),
    )
    values = default_values(f"/films/fall {number} \udcff ä.mp4")
    values |= {"packet_count": packets, "frame_count": frames, "status": OK, "rate": 29.97, "width": number}
    values |= {"domain": "Zürich", "sar_num": 4, "sar_den": 3, "rotation": 90}
    values |= {"time_base_num": 1, "time_base_den": 2**40, "extradata_size": len(extradata)}
    return Source(Row(values, extradata), lambda: columns)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.binary(max_size=9)), max_size=6))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, videos: list[Video]) -> None:
    path = tmp_path_factory.mktemp("index") / "corpus.h5"
    sources = [make_source(number, *video) for number, video in enumerate(videos)]
    digest = write_index(path, sources, {"surgrec_version": "0"}, 7)
    index = PacketIndex.open(path)
    assert len(index) == len(videos)
    assert (index.digest, index.scanner_version) == (digest, 7)
    assert [entry.name for entry in path.parent.iterdir()] == ["corpus.h5"]
    for number, source in enumerate(sources):
        written = source.load()
        part = index.packets(number)
        for name in packet_index.PACKET_COLUMNS:
            assert getattr(index, name)[part].tolist() == getattr(written, name).tolist()
        assert index.frames(number).tolist() == written.display.tolist()
        info = index.video(number)
        assert info.path == source.row.path
        assert info.extradata == source.row.extradata
        assert (info.sar, info.time_base, info.rotation) == ((4, 3), (1, 2**40), 90)
        assert (info.domain, info.rate, info.width) == ("Zürich", 29.97, number)


def test_columns_are_mapped_not_loaded(tmp_path: Path) -> None:
    write_index(tmp_path / "a.h5", [make_source(0, 1000, 900, b"")])
    index = PacketIndex.open(tmp_path / "a.h5")
    for name in (*packet_index.PACKET_COLUMNS, "display"):
        column = getattr(index, name)
        assert isinstance(column.base, np.memmap)
        assert not column.flags.writeable


def test_digest_follows_content_not_place(tmp_path: Path) -> None:
    first = make_source(0, 10, 8, b"x")
    moved = Source(Row(first.row.values | {"path": "/elsewhere.mp4", "mtime_ns": 5}, b"x"), first.load)
    other = Source(Row(first.row.values | {"case": "17"}, b"x"), first.load)
    digests = [write_index(tmp_path / "a.h5", [source]) for source in (first, moved, other)]
    assert digests[0] == digests[1] != digests[2]


def test_an_index_travels_to_other_processes_by_its_path(tmp_path: Path) -> None:
    write_index(tmp_path / "a.h5", [make_source(0, 100_000, 900, b"")])
    content = pickle.dumps(PacketIndex.open(tmp_path / "a.h5"))
    assert len(content) < 1000
    assert len(pickle.loads(content).offset) == 100_000


def test_frame_times(tmp_path: Path) -> None:
    write_index(tmp_path / "a.h5", [make_source(0, 20, 5, b""), make_source(1, 30, 9, b"")])
    index = PacketIndex.open(tmp_path / "a.h5")
    assert index.frame_pts(1).tolist() == [int(index.pts[20 + p]) for p in index.frames(1)]


def test_wrong_video_number_names_the_bound(tmp_path: Path) -> None:
    write_index(tmp_path / "a.h5", [make_source(0, 1, 1, b"")])
    for number in (1, -1):
        with pytest.raises(ValueError, match=f"video {number} .* holds 1 videos"):
            PacketIndex.open(tmp_path / "a.h5").video(number)


def test_a_row_that_lies_about_its_packets_is_refused(tmp_path: Path) -> None:
    source = make_source(0, 10, 8, b"")
    wrong = Source(Row(source.row.values | {"packet_count": 11}, b""), source.load)
    with pytest.raises(ValueError, match="its columns hold others"):
        write_index(tmp_path / "a.h5", [wrong])
    assert list(tmp_path.iterdir()) == []


def test_missing_index(tmp_path: Path) -> None:
    with pytest.raises(PacketIndexError, match=r"none.h5: no such index. .* surgrec.index"):
        PacketIndex.open(tmp_path / "none.h5")
    # Not to be overwritten: the command would refuse to.
    with pytest.raises(PacketIndexError, match=r"not a file. Give the path of an index"):
        PacketIndex.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an HDF5 file .* Give the path of an index"),
        (b"not HDF5", "not an HDF5 file .* Give the path of an index"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "truncated or damaged index .* Remove it, and write it with"),
    ],
)
def test_other_files_are_no_index(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(PacketIndexError, match=message):
        PacketIndex.open(tmp_path / "a.h5")


def test_other_hdf5_files_are_no_index(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.arange(3)
    with pytest.raises(PacketIndexError, match="not a packet index"):
        PacketIndex.open(tmp_path / "a.h5")


def test_other_format_version_says_how_to_go_on(tmp_path: Path) -> None:
    write_index(tmp_path / "a.h5", [make_source(0, 1, 1, b"")])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(
        PacketIndexError, match=r"format version 99, this SurgRec reads version 3\. Write it again"
    ):
        PacketIndex.open(tmp_path / "a.h5")


@pytest.mark.parametrize("column", ["videos/codec", "packets/rank", "display"])
def test_missing_column_is_damage(tmp_path: Path, column: str) -> None:
    write_index(tmp_path / "a.h5", [make_source(0, 4, 3, b"")])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file[column]
    with pytest.raises(PacketIndexError, match="damaged index"):
        PacketIndex.open(tmp_path / "a.h5")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated_index_is_refused_not_mapped(tmp_path: Path, share: float) -> None:
    write_index(tmp_path / "a.h5", [make_source(0, 20_000, 15_000, b"")])
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(PacketIndexError, match=r"truncated|damaged"):
        PacketIndex.open(tmp_path / "a.h5")
