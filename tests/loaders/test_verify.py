"""Decoding all of a video when it is indexed: clean streams stay as they are, damage is marked."""

from __future__ import annotations

import numpy as np
import pytest
from surgrec.loaders.clip_plan import ClipRequest, PlanError, plan_clip
from surgrec.loaders.engines.verify import verified
from surgrec.loaders.packet_index import BROKEN, FAULTY, OK
from surgrec.loaders.packet_scan import scan_file


def test_clean_streams_of_every_kind_are_without_fault(stream_corpus, stream_kind):
    path = stream_corpus.paths[stream_kind]
    plain, checked = scan_file(path), scan_file(path, verified)
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
    assert scan_file(path, verified).row == scan_file(path).row
    assert not scan_file(path, verified).row.values["verified"]
