"""Decoding all of a video when it is indexed: clean streams stay as they are, damage is marked."""

from __future__ import annotations

import numpy as np
import pytest
from surgrec.loaders.clip_plan import ClipRequest, PlanError, plan_clip
from surgrec.loaders.engines.verify import verified
from surgrec.loaders.packet_index import BROKEN, ERROR, FAULTY, HIDDEN, OK
from surgrec.loaders.packet_scan import scan_file


def test_clean_streams_of_every_kind_are_without_fault(stream_corpus, stream_kind):
    path = stream_corpus.paths[stream_kind]
    plain = scan_file(path)
    checked = verified(plain)
    assert checked.row.values == plain.row.values | {"verified": 1}
    for name in ("flags", "rank", "display"):
        np.testing.assert_array_equal(getattr(checked.packets, name), getattr(plain.packets, name))


@pytest.mark.parametrize("kind", ["h264_default", "hevc_closed", "vp9", "mpeg4_avi"])
def test_damage_is_marked_and_what_depends_on_it_is_refused(stream_corpus, build_index_of, tmp_path, kind):
    """A reference is overwritten from its ninth byte on; the frames keep their places on display."""
    source = stream_corpus.paths[kind]
    clean = scan_file(source).packets
    key = int(np.flatnonzero(clean.flags & 3)[-1])
    victim = key + 1 if key + 1 < len(clean.flags) else key
    content = bytearray(source.read_bytes())
    start, size = int(clean.offset[victim]), int(clean.size[victim])
    content[start + 8 : start + size] = bytes(size - 8)
    path = tmp_path / source.name
    path.write_bytes(content)
    index = build_index_of([path], tmp_path / "corpus.h5", verify=True)
    info = index.video(0)
    assert info.status == OK
    assert info.verified
    assert "FFmpeg reports" in info.note
    assert index.flags[victim] & FAULTY
    np.testing.assert_array_equal(index.rank[: victim + 1], clean.rank[: victim + 1])
    with pytest.raises(PlanError, match=f"packet {victim} is needed and damaged .FFmpeg reported an error"):
        plan_clip(index, ClipRequest(0, 0, (int(index.rank[victim]),)))
    assert not (index.flags[:key] & (FAULTY | BROKEN)).any()
    plan_clip(index, ClipRequest(0, 0, (0, 1)))


def test_a_scan_that_fails_is_not_verified(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    found = scan_file(path)
    assert verified(found) is found
    assert not found.row.values["verified"]


def test_a_file_that_changes_meanwhile_is_an_error(stream_corpus, tmp_path, monkeypatch):
    path = tmp_path / stream_corpus.paths["vp9"].name
    path.write_bytes(stream_corpus.paths["vp9"].read_bytes())
    found = scan_file(path)
    path.write_bytes(path.read_bytes()[:-1])
    checked = verified(found)
    assert checked.row.values["status"] == ERROR
    assert "changed while it was being indexed" in checked.row.values["reason"]
    path.unlink()
    assert verified(found).row.values["reason"] == "no such file"


def test_a_picture_whose_type_is_damaged_is_marked(stream_corpus, tmp_path):
    """H.264: the packet then seems to hold no picture, and FFmpeg reports it."""
    source = stream_corpus.paths["h264_default"]
    clean = scan_file(source).packets
    victim = int(np.flatnonzero(clean.flags == 0)[2])
    content = bytearray(source.read_bytes())
    assert content[int(clean.offset[victim]) + 4] & 31 == 1
    content[int(clean.offset[victim]) + 4] ^= 1 ^ 12
    path = tmp_path / source.name
    path.write_bytes(content)
    found = scan_file(path)
    assert found.packets.flags[victim] & HIDDEN
    assert verified(found).packets.flags[victim] & FAULTY
