"""ClipLoader where samples share a decode: one stream for any ranks, exact resume, bounded memory."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from surgrec.configs.data import DataConfig
from surgrec.kernels.planes import Colour, Planes
from surgrec.loaders.batch_rows import row_step
from surgrec.loaders.clip_loader import AHEAD, SPARE, Batch, ClipLoader
from surgrec.loaders.clip_plan import ClipRequest
from surgrec.loaders.clip_producer import CHUNK, CROP_SHARE
from surgrec.loaders.clip_source import ClipSource
from surgrec.loaders.crop import CropWindows
from surgrec.loaders.crop_way import Crop, Way
from surgrec.loaders.dali_graph import CropGraph
from surgrec.loaders.engines.base import ClipFailure, DecodedClip
from surgrec.loaders.fused_crop import FusedCrop
from surgrec.loaders.packet_index import PacketIndex

DATA = DataConfig(frames=4, stride=2, size=64, flip=True, threads=2, max_failures=1.0)
CLIP_BYTES = 4 * 64 * 64 * 3
VIDEOS = [{"frames": 100 + 30 * k, "domain": "abc"[k % 3], "dataset": f"d{k % 4}"} for k in range(30)]
HEIGHT, WIDTH = 48, 64


class NoiseEngine:
    """Every frame of a video is a noise of its own, as RGB or as planes; videos in `broken` fail."""

    name = "noise"
    parallel = 3

    def __init__(self, index: PacketIndex, broken: Sequence[int] = (), planes: bool = False) -> None:
        self.index = index
        self.broken = set(broken)
        self.planes = planes
        self.submitted: list[ClipRequest] = []
        self.gate = threading.Event()
        self.gate.set()
        self._pool = ThreadPoolExecutor(3)

    def submit(self, request: ClipRequest) -> Future[DecodedClip | ClipFailure]:
        self.submitted.append(request)
        return self._pool.submit(self._decode, request)

    def decode(self, requests: Sequence[ClipRequest]) -> list[DecodedClip | ClipFailure]:
        return [future.result() for future in map(self.submit, requests)]

    def close(self) -> None:
        self.gate.set()
        self._pool.shutdown(cancel_futures=True)

    def _decode(self, request: ClipRequest) -> DecodedClip | ClipFailure:
        self.gate.wait()
        if request.video in self.broken:
            return ClipFailure(request, "path", self.name, "broken")
        pictures = [
            np.random.default_rng([request.video, frame]).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            for frame in request.frames
        ]
        frames: np.ndarray | Planes = np.stack(pictures)
        if self.planes:
            red, green, blue = torch.from_numpy(np.stack(pictures)).unbind(3)
            rows = tuple(range(len(pictures)))
            frames = Planes((red, green, blue), rows, Colour("rgb", full_range=True))
        return DecodedClip(request, frames, len(request.frames) + 10, 1, 1)


Make = Callable[..., ClipLoader]


@pytest.fixture
def index(make_index: Callable[[Any], PacketIndex]) -> PacketIndex:
    return make_index([{**video, "height": HEIGHT, "width": WIDTH} for video in VIDEOS])


@pytest.fixture
def make(index: PacketIndex) -> Iterator[Make]:
    """make(clips=..., repeats=..., waiting=clips of the pool, ...): a loader on a NoiseEngine."""
    made: list[ClipLoader] = []

    def build(
        clips: int = 1,
        repeats: int = 1,
        mib: int = 0,
        global_batch: int = 12,
        engine: NoiseEngine | None = None,
        broken: Sequence[int] = (),
        data: DataConfig = DATA,
        **others: Any,
    ) -> ClipLoader:
        data = replace(data, clips_per_decode=clips, repeats=repeats, shuffle_mib=mib)
        engine = engine or NoiseEngine(index, broken)
        made.append(ClipLoader(index, data, 5, global_batch, engine=engine, **others))
        return made[-1]

    yield build
    for loader in made:
        loader.close()


def take(loader: ClipLoader, count: int) -> list[Batch]:
    return [next(loader) for _ in range(count)]


def same(one: Sequence[Batch], two: Sequence[Batch]) -> bool:
    return all(
        torch.equal(a.frames, b.frames) and a.requests == b.requests for a, b in zip(one, two, strict=True)
    )


SHARED = [(1, 3, 0), (3, 1, 0), (2, 2, 0), (2, 2, 1), (4, 1, 2), (5, 2, 3), (2, 1, 1)]


@pytest.mark.parametrize(("clips", "repeats", "mib"), SHARED)
def test_rows_are_the_clips_decoded_alone(
    make: Make, index: PacketIndex, clips: int, repeats: int, mib: int
) -> None:
    """The frames that a row shows do not depend on what was decoded along."""
    loader = make(clips, repeats, mib)
    source = loader._source
    alone = NoiseEngine(index)
    graph = CropGraph(64, 1, torch.device("cpu"), threads=1)
    for batch in take(loader, 3):
        for row, request in enumerate(batch.requests):
            (clip,) = alone.decode([request])
            assert isinstance(clip, DecodedClip)
            assert torch.equal(batch.frames[row], graph([clip.frames], source.windows([clip]))[0])
    alone.close()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(SHARED),
    st.sampled_from([(2, None), (4, None), (1, 3), (2, 3), (4, 1), (3, 2)]),
    st.sampled_from([(), (1, 2, 3, 4, 5)]),
)
def test_ranks_and_micro_batches_share_one_global_batch(
    make: Make, shared: tuple[int, int, int], split: tuple[int, int | None], broken: Sequence[int]
) -> None:
    world, micro = split
    whole = take(make(*shared, broken=broken), 3)
    loaders = [
        make(*shared, broken=broken, rank=rank, world_size=world, micro_batch=micro) for rank in range(world)
    ]
    accumulation = 12 // (world * loaders[0].micro_batch)
    for step in range(3):
        parts = [next(loader) for _ in range(accumulation) for loader in loaders]
        assert torch.equal(torch.cat([part.samples for part in parts]), whole[step].samples)
        assert torch.equal(torch.cat([part.frames for part in parts]), whole[step].frames)
        assert [request for part in parts for request in part.requests] == whole[step].requests
        assert sum(part.substitutes for part in parts) == whole[step].substitutes
    for loader in loaders:
        assert loader.mix == loaders[0].mix
        loader.close()


@pytest.mark.parametrize(("clips", "repeats", "mib"), SHARED)
def test_resume_is_exact(make: Make, clips: int, repeats: int, mib: int) -> None:
    whole = take(make(clips, repeats, mib, broken=[1, 2, 3]), 5)
    for taken in (1, 2, 4):
        first = make(clips, repeats, mib, broken=[1, 2, 3])
        take(first, taken)
        state = first.state_dict()
        first.close()
        second = make(clips, repeats, mib, broken=[1, 2, 3])
        second.load_state_dict(state)
        assert same(take(second, 5 - taken), whole[taken:])


@pytest.mark.parametrize("chunk", [2, 7])
def test_batches_do_not_depend_on_the_chunk(make: Make, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Clips of several batches in a chunk, rows that lie apart, and those of a batch in several chunks."""
    for shared in SHARED:
        whole = take(make(*shared, global_batch=10, broken=[1, 2, 3]), 4)
        monkeypatch.setattr("surgrec.loaders.clip_producer.CHUNK", chunk)
        parts = make(*shared, global_batch=10, broken=[1, 2, 3])
        assert same(take(parts, 4), whole)
        monkeypatch.undo()


def test_members_of_a_decode_are_what_was_asked_for(make: Make, index: PacketIndex) -> None:
    engine = NoiseEngine(index)
    loader = make(2, 3, engine=engine)
    batches = take(loader, 4)
    requests = [request for batch in batches for request in batch.requests]
    for unit in range(8):
        members = requests[6 * unit : 6 * unit + 6]
        assert len({request.video for request in members}) == 1
        assert set(Counter(request.frames for request in members).values()) == {3}
        assert len({request.frames for request in members}) == 2
        union = {frame for request in members for frame in request.frames}
        assert engine.submitted[unit].frames == tuple(sorted(union))
    frames = torch.cat([batch.frames for batch in batches])
    assert len({clip.numpy().tobytes() for clip in frames}) == 48  # each crop is another
    assert sum(batch.decoded_frames for batch in batches) == sum(
        len(request.frames) + 10 for request in engine.submitted[:8]
    )
    assert {batch.decode_repetition for batch in batches} == {1.0}
    assert {batch.video_repetition for batch in batches} == {1.0}


def test_the_pool_keeps_the_clips_of_a_decode_apart(make: Make, index: PacketIndex) -> None:
    engine = NoiseEngine(index)
    loader = make(2, 2, 4, engine=engine)
    assert loader._source.sharing.delay % 3 == 0
    batches = take(loader, 12)
    assert {batch.decode_repetition for batch in batches} == {0.0}
    assert sum(batch.video_repetition for batch in batches) < 12
    pooled = loader._producer.most_pooled
    assert 0 < pooled * CLIP_BYTES <= 4 << 20
    # Once the pool is full, a quarter of the rows is decoded.
    steady = batches[-2:]
    assert sum(batch.decoded_frames for batch in steady) < 0.5 * sum(
        batch.decoded_frames for batch in batches[:2]
    )


def test_the_first_clips_are_those_of_the_sampler(index: PacketIndex) -> None:
    plain = ClipSource(index, DATA, 5)
    shared = ClipSource(index, replace(DATA, clips_per_decode=2, repeats=2), 5)
    alone = plain.requests(0, 20)
    together = shared.requests(0, 80)
    for unit in range(20):
        assert together[4 * unit].frames == alone[unit].frames
        assert together[4 * unit].video == alone[unit].video


def test_a_unit_that_fails_is_replaced_as_a_whole(make: Make) -> None:
    broken = range(15)
    batches = take(make(2, 2, broken=broken), 4)
    intact = take(make(2, 2), 4)
    replaced = 0
    for batch, before in zip(batches, intact, strict=True):
        for unit in range(3):
            rows = slice(4 * unit, 4 * unit + 4)
            videos = {request.video for request in batch.requests[rows]}
            assert len(videos) == 1
            assert not videos & set(broken)
            if before.requests[rows.start].video in broken:
                replaced += 4
            else:
                assert batch.requests[rows] == before.requests[rows]
    assert replaced == sum(batch.substitutes for batch in batches) > 0


@pytest.mark.parametrize("way", ["fused", "dali"])
def test_planes_give_the_pictures_of_arrays(make: Make, index: PacketIndex, way: Way) -> None:
    arrays = take(make(2, 2, 1), 2)
    loader = make(2, 2, 1, engine=NoiseEngine(index, planes=True))
    cpu = torch.device("cpu")
    crop = FusedCrop(64, CHUNK, cpu) if way == "fused" else CropGraph(64, CHUNK, cpu, 1)
    loader._producer._cropper = crop
    for one, two in zip(arrays, take(loader, 2), strict=True):
        difference = (one.frames.int() - two.frames.int()).abs()
        assert difference.max() <= 3
        assert difference.float().mean() < 0.6


def test_pictures_that_wait_are_bounded(make: Make, index: PacketIndex) -> None:
    data = replace(DATA, picture_mib=1, frames=8, threads=30)
    engine = NoiseEngine(index)
    engine.parallel = 30
    loader = make(engine=engine, data=data, global_batch=64)
    engine.gate.clear()
    threading.Timer(0.5, engine.gate.set).start()
    started = time.monotonic()
    take(loader, 4)
    assert time.monotonic() - started < 60
    one = 8 * HEIGHT * WIDTH * 3
    assert (1 << 20) - one < loader._producer.most_held <= 1 << 20
    whole = make(data=replace(data, picture_mib=1000), global_batch=64)
    take(whole, 4)
    assert whole._producer.most_held == (SPARE + AHEAD * 3 + CHUNK - 1) * one


class CountingCrop:
    """A crop that notes, for each call, its clips and the decodes that are with the engine meanwhile."""

    def __init__(self, crop: Crop, engine: NoiseEngine) -> None:
        self.crop, self.engine = crop, engine
        self.size, self.device, self.max_clips = crop.size, crop.device, crop.max_clips
        self.calls: list[tuple[int, int]] = []
        self.prepare = crop.prepare

    def __call__(
        self, clips: Sequence[Any], windows: CropWindows, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        taken = sum(count for count, _ in self.calls) + len(clips)
        self.calls.append((len(clips), len(self.engine.submitted) - taken))
        return self.crop(clips, windows, out)


def test_large_pictures_are_cropped_early(make: Make, index: PacketIndex) -> None:
    """Two clips are an eighth of 1 MiB, which has room for 14."""
    data = replace(DATA, picture_mib=1, frames=8)
    one, batches, calls = 8 * HEIGHT * WIDTH * 3, [], []
    for mib in (1, 1000):
        engine = NoiseEngine(index)
        engine.parallel = 30
        loader = make(engine=engine, data=replace(data, picture_mib=mib), global_batch=2 * CHUNK + 5)
        crop = CountingCrop(loader._producer._cropper, engine)
        loader._producer._cropper = crop
        batches.append(take(loader, 2))
        loader.close()
        calls.append(crop.calls)
        assert loader._producer.most_held <= mib << 20
        assert same(batches[0], batches[-1])
    early, late = calls
    assert 2 * one >= (1 << 20) / CROP_SHARE > one
    assert {count for count, _ in early} == {1, 2}  # 1 at the end of a batch
    assert min(waiting for _, waiting in early) == (1 << 20) // one - 2
    assert {count for count, _ in late} == {CHUNK, 5}


class Mark:
    """An event behind the crops so far, of a GPU that does nothing until it is waited for."""

    def __init__(self, crop: WeakCrop) -> None:
        self.crop = crop
        self.behind = len(crop.read)
        self.waits = 0

    def query(self) -> bool:
        return self.crop.done >= self.behind

    def synchronize(self) -> None:
        # What the GPU reads is still there.
        assert all(clip() is not None for clip in self.crop.read[self.crop.done : self.behind])
        self.crop.done = max(self.crop.done, self.behind)
        self.waits += 1


class WeakCrop:
    """A crop that notes what it was given, and forgets it. done: how many of it the GPU has read."""

    def __init__(self, crop: Crop) -> None:
        self.crop = crop
        self.size, self.device, self.max_clips, self.prepare = (
            crop.size,
            crop.device,
            crop.max_clips,
            crop.prepare,
        )
        self.read: list[weakref.ref[Any]] = []
        self.done = 0

    def __call__(
        self, clips: Sequence[Any], windows: CropWindows, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.read += [weakref.ref(clip) for clip in clips]
        return self.crop(clips, windows, out)


@pytest.mark.parametrize(("clips", "repeats"), [(1, 1), (2, 2)])
def test_pictures_are_held_and_counted_until_the_gpu_has_read_them(
    make: Make, index: PacketIndex, clips: int, repeats: int
) -> None:
    """A GPU that is behind holds up decoding where memory is short, and never longer than it must."""
    data = replace(DATA, picture_mib=1, frames=8)
    expected = take(make(clips, repeats, data=data, global_batch=40), 3)
    loader = make(clips, repeats, data=data, global_batch=40)
    producer, marks = loader._producer, []
    crop = WeakCrop(producer._cropper)

    def mark() -> Mark:
        marks.append(Mark(crop))
        return marks[-1]

    producer._cropper = crop
    producer._mark = mark  # type: ignore[method-assign,assignment]  # there is no GPU here
    producer.start(0)
    made = [producer.get()[0] for _ in range(3)]
    producer.stop()
    for one, two in zip(made, expected, strict=True):
        assert torch.equal(one.frames, two.frames)
        assert one.requests == two.requests
        assert isinstance(one.done, Mark)
        assert not one.done.waits
    assert 0 < producer.most_held <= 1 << 20
    assert any(mark.waits for mark in marks[:-1])


def test_a_run_ends_when_the_gpu_has_read_its_pictures(make: Make, index: PacketIndex) -> None:
    """Batches that were given away are made of them, and the next run's get their memory."""
    for stop in (True, False):
        loader = make(2, 2, data=replace(DATA, picture_mib=100), global_batch=12, engine=NoiseEngine(index))
        producer = loader._producer
        crop = WeakCrop(producer._cropper)
        producer._cropper = crop
        producer._mark = partial(Mark, crop)  # type: ignore[method-assign,assignment]  # there is no GPU here
        producer.start(0)
        thread = producer._thread
        made, _ = producer.get()
        assert isinstance(made.done, Mark)
        assert not made.done.query()
        if stop:
            producer.stop()
        else:
            producer._engine.close()
            with pytest.raises(RuntimeError, match="shutdown"):  # of the thread that submits
                deque(iter(producer.get, None), maxlen=0)
        assert thread is not None
        thread.join(20)
        assert not thread.is_alive()
        assert crop.done == len(crop.read) > 0


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_steps_are_those_of_slices(rows: list[int]) -> None:
    step = row_step(rows)
    if step:
        assert list(range(30))[rows[0] : rows[-1] + 1 : step] == rows
    else:
        assert len(rows) > 1
        differences = {after - before for before, after in pairwise(rows)}
        assert len(differences) > 1 or max(differences) <= 0


def test_a_clip_larger_than_the_bound_is_let_through(make: Make, index: PacketIndex) -> None:
    data = replace(DATA, picture_mib=1, frames=16, stride=1)
    loader = make(5, 1, data=replace(data, frames=40))
    other = make(5, 1, data=replace(data, frames=40, picture_mib=100))
    assert same(take(loader, 2), take(other, 2))
    assert loader._producer.most_held > 0


def test_the_number_of_decodes_in_flight_follows_the_engine(make: Make, index: PacketIndex) -> None:
    engine = NoiseEngine(index)
    engine.parallel = 20
    engine.gate.clear()
    loader = make(engine=engine, data=replace(DATA, picture_mib=100))
    loader._producer.start(0)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(engine.submitted) < SPARE + AHEAD * 20:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(engine.submitted) == SPARE + AHEAD * 20


def test_states_of_another_sharing_are_refused(make: Make) -> None:
    state = make(2, 2, 1).state_dict()
    for other in (make(), make(2, 2), make(1, 4, 1), make(2, 2, 2)):
        with pytest.raises(ValueError, match="another corpus, data configuration or seed"):
            other.load_state_dict(state)
    where = replace(
        DATA, crop="dali", picture_mib=7, sessions=3, session_mib=5, decoder_timeout=1.0, engine="nvdec"
    )
    make(2, 2, 1, data=where).load_state_dict(state)
    make(1, 1, 5).load_state_dict(make().state_dict())  # one clip a decode: nothing to mix
