"""The videos that tests are made of."""

from __future__ import annotations

import os


def test_encoders_leave_the_priority_of_the_process_alone(streams, tmp_path, bench_module):
    before = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    streams.make_stream("av1", tmp_path / "video", frames=8)
    assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == before
    bench_module("corpora").write_video(bench_module("mutations").KINDS["av1"], tmp_path / "other.mp4")
    assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == before
