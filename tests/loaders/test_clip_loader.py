"""ClipLoader: one stream for any number of ranks, exact resume, substitutes, errors that surface."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from surgrec.configs.data import DataConfig
from surgrec.loaders.clip_loader import AHEAD, SPARE, Batch, ClipLoader, ClipLoaderError
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_producer import MAX_ATTEMPTS
from surgrec.loaders.engines.base import ClipFailure, DecodedClip
from surgrec.loaders.ledger import REFUSED, Ledger, read_ledger
from surgrec.loaders.packet_index import SEQUENTIAL, PacketIndex

DATA = DataConfig(frames=4, stride=2, size=16, flip=True, threads=2, max_failures=1.0)
VIDEOS = [
    {"frames": 500, "domain": "laparoscopy", "dataset": "a", "width": 64, "height": 48},
    {"frames": 90, "domain": "laparoscopy", "dataset": "b", "width": 48, "height": 64},
    {"frames": 300, "domain": "cataract", "dataset": "c", "width": 100, "height": 40},
    {"frames": 70, "domain": "cataract", "dataset": "c", "width": 64, "height": 48},
]


class ColourEngine:
    """Frame f of video v is one colour, (v, f // 256, f % 256); the videos in `broken` cannot be decoded."""

    name = "colour"

    def __init__(self, index: PacketIndex, broken: Sequence[int] = (), delay: float = 0.0) -> None:
        self.index = index
        self.broken = set(broken)
        self.delay = delay
        self.sound = range(0)  # samples whose clips can be decoded, whatever their video
        self.submitted: list[ClipRequest] = []
        self.closed = False
        self.raises: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self._pool = ThreadPoolExecutor(3, thread_name_prefix="colour")

    def submit(self, request: ClipRequest) -> Future[DecodedClip | ClipFailure]:
        self.submitted.append(request)
        return self._pool.submit(self._decode, request)

    def decode(self, requests: Sequence[ClipRequest]) -> list[DecodedClip | ClipFailure]:
        return [future.result() for future in map(self.submit, requests)]

    def close(self) -> None:
        self.closed = True
        self.gate.set()
        self._pool.shutdown(cancel_futures=True)

    def _decode(self, request: ClipRequest) -> DecodedClip | ClipFailure:
        self.gate.wait()
        time.sleep(self.delay * (request.sample * 7 % 5))
        if self.raises is not None:
            raise self.raises
        videos = self.index.videos
        if request.video in self.broken and request.sample not in self.sound:
            return ClipFailure(
                request, videos.path[request.video], self.name, f"video {request.video} broken"
            )
        shape = (len(request.frames), int(videos.height[request.video]), int(videos.width[request.video]), 3)
        frames = np.empty(shape, np.uint8)
        for row, frame in enumerate(request.frames):
            frames[row] = request.video, frame // 256, frame % 256
        return DecodedClip(request, frames, 2 * len(request.frames), 1, 1)


def colours(request: ClipRequest) -> list[list[int]]:
    return [[request.video, frame // 256, frame % 256] for frame in request.frames]


Make = Callable[..., ClipLoader]


@pytest.fixture
def index(make_index: Callable[[Any], PacketIndex]) -> PacketIndex:
    return make_index(VIDEOS)


@pytest.fixture
def make(index: PacketIndex) -> Iterator[Make]:
    """make(global_batch=..., broken=..., ...): a loader on a ColourEngine, closed at the end."""
    made: list[ClipLoader] = []

    def build(
        data: DataConfig = DATA,
        seed: int = 5,
        global_batch: int = 12,
        engine: ColourEngine | None = None,
        broken: Sequence[int] = (),
        delay: float = 0.0,
        **others: Any,
    ) -> ClipLoader:
        engine = engine or ColourEngine(index, broken, delay)
        made.append(ClipLoader(index, data, seed, global_batch, engine=engine, **others))
        return made[-1]

    yield build
    for loader in made:
        loader.close()


def take(loader: ClipLoader, count: int) -> list[Batch]:
    return [next(loader) for _ in range(count)]


def same(one: Sequence[Batch], two: Sequence[Batch]) -> bool:
    return all(
        torch.equal(a.frames, b.frames) and torch.equal(a.samples, b.samples) and a.requests == b.requests
        for a, b in zip(one, two, strict=True)
    )


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("surgrec-clips", "colour")]


def test_batches_hold_the_frames_of_their_requests(make: Make) -> None:
    loader = make(global_batch=20)
    for step, batch in enumerate(take(loader, 3)):
        assert batch.frames.shape == (20, 4, 16, 16, 3)
        assert batch.frames.dtype == torch.uint8
        assert batch.samples.tolist() == list(range(20 * step, 20 * step + 20))
        assert [request.sample for request in batch.requests] == batch.samples.tolist()
        for row, request in enumerate(batch.requests):
            assert len(request.frames) == 4
            assert batch.frames[row].amin(dim=(1, 2)).tolist() == colours(request)
            assert batch.frames[row].amax(dim=(1, 2)).tolist() == colours(request)
        assert batch.substitutes == 0
        assert batch.decoded_frames == 20 * 8
        assert batch.wait_seconds >= 0


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([(2, None), (4, None), (1, 3), (1, 4), (2, 2), (2, 3), (4, 1), (4, 3)]),
    st.integers(0, 1000),
    st.sampled_from([(), (1,), (2, 3)]),
)
def test_ranks_and_micro_batches_share_one_global_batch(
    make: Make, split: tuple[int, int | None], seed: int, broken: tuple[int, ...]
) -> None:
    world, micro = split
    whole = take(make(seed=seed, broken=broken), 2)
    loaders = [
        make(
            seed=seed, broken=broken, rank=rank, world_size=world, micro_batch=micro, delay=0.001 * (rank % 2)
        )
        for rank in range(world)
    ]
    accumulation = 12 // (world * loaders[0].micro_batch)
    for step in range(2):
        parts = [next(loader) for _ in range(accumulation) for loader in loaders]
        assert torch.equal(torch.cat([part.samples for part in parts]), whole[step].samples)
        assert torch.equal(torch.cat([part.frames for part in parts]), whole[step].frames)
        assert [request for part in parts for request in part.requests] == whole[step].requests
        assert sum(part.substitutes for part in parts) == whole[step].substitutes
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_resume_is_exact(make: Make, taken: int) -> None:
    whole = take(make(broken=[1]), 6)
    first = make(broken=[1])
    take(first, taken)
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    second = make(broken=[1])
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert same(take(second, 6 - taken), whole[taken:])


def test_a_running_loader_can_be_set_back(make: Make) -> None:
    loader = make()
    state = loader.state_dict()
    first = take(loader, 3)
    mix = loader.mix
    loader.load_state_dict(state)
    assert loader.mix.domains == {"cataract": 0, "laparoscopy": 0}
    assert same(take(loader, 3), first)
    assert loader.mix == mix


def test_resume_on_other_ranks(make: Make) -> None:
    whole = take(make(), 3)
    one = make()
    take(one, 2)
    state = one.state_dict()
    for rank in range(4):
        part = make(rank=rank, world_size=4)
        part.load_state_dict(state)
        assert torch.equal(next(part).frames, whole[2].frames[3 * rank : 3 * rank + 3])


def test_a_state_of_another_stream_is_refused(make: Make, make_index: Callable[[Any], PacketIndex]) -> None:
    state = make().state_dict()
    for other in [
        make(seed=6),
        make(data=replace(DATA, stride=3)),
        make(data=replace(DATA, crop_scale=(0.4, 1.0))),
    ]:
        with pytest.raises(ValueError, match="another corpus, data configuration or seed"):
            other.load_state_dict(state)
    bigger = make_index([*VIDEOS, {"frames": 100}])
    with (
        ClipLoader(bigger, DATA, 5, 12, engine=ColourEngine(bigger)) as other,
        pytest.raises(ValueError, match="another corpus"),
    ):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="global batch of 12, this run has 24"):
        make(global_batch=24).load_state_dict(state)
    halfway = make(micro_batch=4)
    next(halfway)
    with pytest.raises(ValueError, match="saved at sample 4, within a step"):
        make().load_state_dict(halfway.state_dict())
    where_and_how = replace(DATA, threads=1, prefetch=5, drop_disposable=False, index=Path("moved.h5"))
    make(data=where_and_how).load_state_dict(state)


def test_a_failed_clip_is_ledgered_and_replaced_the_same_way_each_time(make: Make, tmp_path: Path) -> None:
    whole = take(make(), 4)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        loader = make(broken=[2], ledger=ledger)
        batches = take(loader, 4)
    again = take(make(broken=[2], delay=0.002, data=replace(DATA, prefetch=1)), 4)
    assert same(batches, again)
    replaced = 0
    for batch, intact in zip(batches, whole, strict=True):
        for row, (request, before) in enumerate(zip(batch.requests, intact.requests, strict=True)):
            assert request.video != 2
            assert request.sample == before.sample
            assert batch.frames[row].amin(dim=(1, 2)).tolist() == colours(request)
            if before.video == 2:
                replaced += 1
            else:
                assert request == before
                assert torch.equal(batch.frames[row], intact.frames[row])
    assert replaced == sum(batch.substitutes for batch in batches) > 0
    entries = read_ledger(tmp_path / "ledger.jsonl")
    assert len(entries) >= replaced
    assert {entry.reason for entry in entries} == {"video 2 broken"}
    assert {entry.engine for entry in entries} == {"colour"}
    taken = {request.sample for batch in whole for request in batch.requests if request.video == 2}
    assert taken <= {entry.sample for entry in entries}
    assert loader.failures >= replaced


def test_nothing_decodes(make: Make, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        loader = make(broken=range(4), ledger=ledger)
        with pytest.raises(
            ClipLoaderError, match=r"sample 0 and its 16 substitutes.*ledger\.jsonl"
        ) as caught:
            next(loader)
        assert ledger.count == MAX_ATTEMPTS + 1
        assert "broken" in str(caught.value)
        with pytest.raises(ClipLoaderError):
            next(loader)


def test_too_many_failures_stop_the_run(make: Make, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        loader = make(broken=[2], ledger=ledger, data=replace(DATA, max_failures=0.01))
        with pytest.raises(ClipLoaderError, match=r"11 of the last \d+ clips") as caught:
            take(loader, 100)
    assert "max_failures = 0.01 of 1000" in str(caught.value)
    assert "Most frequent reason (11 times): video 2 broken" in str(caught.value)
    assert str(tmp_path / "ledger.jsonl") in str(caught.value)


def test_failures_that_are_long_past_do_not_count(make: Make, index: PacketIndex) -> None:
    engine = ColourEngine(index, broken=[2])
    engine.sound = range(40, 1300)
    loader = make(engine=engine, data=replace(DATA, max_failures=0.05, size=4), global_batch=50)
    with pytest.raises(ClipLoaderError, match="51 of the last 1000"):
        take(loader, 100)
    assert loader.failures > 51


def test_without_a_ledger_failures_are_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    loader = make(broken=[2])
    take(loader, 2)
    assert loader.failures > 0
    assert "video2.mp4" in caplog.text
    assert "video 2 broken" in caplog.text


def test_videos_left_out_are_listed_and_ledgered(
    make_index: Callable[[Any], PacketIndex], tmp_path: Path
) -> None:
    index = make_index([*VIDEOS, {"frames": 3, "path": "short.mp4"}, {"frames": 99, "status": SEQUENTIAL}])
    for rank in range(2):
        with (
            Ledger(tmp_path / f"ledger{rank}.jsonl") as ledger,
            ClipLoader(
                index, DATA, 0, 4, engine=ColourEngine(index), ledger=ledger, rank=rank, world_size=2
            ) as loader,
        ):
            assert [entry.video for entry in loader.unusable] == [4, 5]
            assert {r.video for batch in take(loader, 20) for r in batch.requests} <= set(range(4))
    entries = read_ledger(tmp_path / "ledger0.jsonl")
    assert [(entry.sample, entry.path) for entry in entries] == [
        (REFUSED, "short.mp4"),
        (REFUSED, "video5.mp4"),
    ]
    assert read_ledger(tmp_path / "ledger1.jsonl") == []
    with ClipLoader(index, replace(DATA, sequential=True), 0, 16, engine=ColourEngine(index)) as loader:
        assert 5 in {r.video for batch in take(loader, 20) for r in batch.requests}


@pytest.mark.parametrize("kind", [ZeroDivisionError, TimeoutError])
def test_an_error_of_the_thread_reaches_the_consumer(
    make: Make, index: PacketIndex, kind: type[Exception]
) -> None:
    engine = ColourEngine(index)
    loader = make(engine=engine)
    take(loader, 2)
    engine.raises = kind("a bug in the engine")
    with pytest.raises(kind, match="a bug in the engine"):
        take(loader, 10)
    engine.raises = None


def test_work_ahead_is_bounded(make: Make, index: PacketIndex) -> None:
    engine = ColourEngine(index)
    loader = make(engine=engine, global_batch=10)
    next(loader)
    most = 10 * (1 + DATA.prefetch + 1) + SPARE + AHEAD * DATA.threads
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(engine.submitted) < 10 * (1 + DATA.prefetch):
        time.sleep(0.02)
    time.sleep(0.3)
    assert 10 * (1 + DATA.prefetch) <= len(engine.submitted) <= most
    assert loader.state_dict()["next_sample"] == 10


def test_mix_counts_what_all_ranks_have_drawn(make: Make) -> None:
    loaders = [make(rank=rank, world_size=3) for rank in range(3)]
    drawn = [request.video for loader in loaders for batch in take(loader, 5) for request in batch.requests]
    labels = [f"{video['domain']}/{video['dataset']}" for video in VIDEOS]
    for loader in loaders:
        mix = loader.mix
        for name in set(labels):
            assert mix.datasets[name] == sum(labels[video] == name for video in drawn)
        assert mix.domains["cataract"] == mix.datasets["cataract/c"]
        assert sum(mix.domains.values()) == 60
        assert sum(loader.expected_mix.datasets.values()) == pytest.approx(1.0)


def test_close_ends_the_threads_also_while_the_engine_is_busy(make: Make, index: PacketIndex) -> None:
    engine = ColourEngine(index)
    loader = make(engine=engine)
    next(loader)
    engine.gate.clear()
    time.sleep(0.05)
    loader.close()
    assert engine.closed
    assert not [thread for thread in loader_threads() if thread.name == "surgrec-clips"]
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)
    loader.close()


def test_close_wakes_a_consumer_that_waits(make: Make, index: PacketIndex) -> None:
    engine = ColourEngine(index)
    engine.gate.clear()
    loader = make(engine=engine)
    caught: list[BaseException] = []

    def consume() -> None:
        try:
            next(loader)
        except RuntimeError as error:
            caught.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    time.sleep(0.1)
    loader.close()
    consumer.join(10)
    assert not consumer.is_alive()
    assert "closed" in str(caught[0])


def test_a_forgotten_loader_is_closed(index: PacketIndex) -> None:
    engine = ColourEngine(index)
    loader = ClipLoader(index, DATA, 0, 4, engine=engine)
    next(loader)
    del loader
    gc.collect()
    assert engine.closed
    assert not [thread for thread in loader_threads() if thread.name == "surgrec-clips"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank 2 is not among 2 ranks"),
        ({"global_batch": 10, "world_size": 4}, "global batch of 10 is no whole number"),
        ({"global_batch": 12, "micro_batch": 5}, "micro-batches of 5 on 1 ranks"),
        ({"global_batch": 1, "world_size": 2}, "global batch of 1 "),
        ({"data": replace(DATA, prefetch=0)}, "prefetch is 0"),
        ({"data": replace(DATA, max_failures=1.5)}, "max_failures is 1.5"),
        ({"data": replace(DATA, crop_scale=(0.0, 1.0))}, "crop scale"),
        ({"data": replace(DATA, segment_seconds=0.0)}, "segment length is 0.0 s"),
        ({"data": replace(DATA, frames=1000)}, "none of its 4 videos gives a clip"),
        ({"data": replace(DATA, picture_mib=0)}, "picture_mib is 0"),
        ({"data": replace(DATA, crop="none")}, "crop is 'none'; choose from auto, fused, dali"),
        ({"data": replace(DATA, clips_per_decode=0)}, "clips_per_decode is 0"),
        ({"data": replace(DATA, repeats=0)}, "repeats is 0"),
        ({"data": replace(DATA, shuffle_mib=-1)}, "shuffle_mib is -1"),
        ({"device": "meta"}, "knows cpu and cuda"),
    ],
)
def test_refused_arguments(make: Make, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_an_engine_that_does_not_exist_is_refused(index: PacketIndex) -> None:
    with pytest.raises(ValueError, match="no engine 'none'; choose from auto, cpu"):
        ClipLoader(index, replace(DATA, engine="none"), 5, 12)


def test_threads_of_a_rank(monkeypatch: pytest.MonkeyPatch, index: PacketIndex) -> None:
    """threads = 0 divides the cores among the ranks of this machine."""
    asked: list[int] = []

    def engine(index: PacketIndex, data: DataConfig, threads: int, device: torch.device) -> ColourEngine:
        asked.append(threads)
        return ColourEngine(index)

    monkeypatch.setattr("surgrec.loaders.clip_loader.make_engine", engine)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    for ranks in ("1", "4", "100"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        ClipLoader(index, replace(DATA, threads=0), 0, 4).close()
    ClipLoader(index, DATA, 0, 4).close()
    assert asked == [16, 4, 1, 2]
