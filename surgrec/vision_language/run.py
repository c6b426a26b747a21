"""From a manifest to a store of answers: clips, questions and ways, asked of a model, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgrec.configs.vlm import RunConfig
from surgrec.curation.records import key_of
from surgrec.evaluation.extraction import index_of
from surgrec.evaluation.extraction_plan import span_of
from surgrec.evaluation.manifest import Row, SplitManifest, resolve
from surgrec.loaders.packet_index import PacketIndex
from surgrec.vision_language.backend import UNREADABLE, Backend, Failure, Request
from surgrec.vision_language.frames import Pictures, grey_pictures, read_pictures
from surgrec.vision_language.prompts import load_prompts, questions
from surgrec.vision_language.records import Asked, Question, Reply, Way
from surgrec.vision_language.row_choice import choose_rows
from surgrec.vision_language.run_setup import RunError
from surgrec.vision_language.store import AnswerStore, Place, place_of

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A question in one way, which is not answered yet. key: of its content."""

    question: Question
    way: Way
    key: str


@dataclass(frozen=True)
class Job:
    """What a run is to do.

    rows: (number in the manifest, row) that are asked about. videos: number of a row -> that of its video in
    the index. wanted: number of a row, None for the grey pictures -> what is left to ask. places: of all
    questions in all ways, answered ones too.
    """

    manifest: SplitManifest
    rows: tuple[tuple[int, Row], ...]
    index: PacketIndex
    videos: dict[int, int]
    wanted: dict[int | None, list[Wanted]]
    places: list[Place]

    @property
    def total(self) -> int:
        """Questions in all ways."""
        return len(self.places)

    @property
    def left(self) -> int:
        """Questions that are to be asked."""
        return sum(map(len, self.wanted.values()))


@dataclass(frozen=True)
class Report:
    """What a run did. asked: questions that the model was asked now. answered, total: that have a reply, and
    of how many; about_clips: those of the answered that are not about a grey picture. failures: by their
    names, of the others. passing: failures that may pass. unreadable: (path, reason)."""

    asked: int
    answered: int
    about_clips: int
    total: int
    failures: dict[str, int]
    passing: int
    unreadable: list[tuple[str, str]]


def plan(
    config: RunConfig, manifest: SplitManifest, backend: Backend, store: AnswerStore, threads: int
) -> Job:
    """What is left to ask. Raises ManifestError, PromptError, BuildError, StoreError, RunError."""
    rows = [(number, row) for number, row in enumerate(manifest.rows) if row.split == config.split]
    if not rows:
        raise RunError(f"{config.manifest}: has no rows in {config.split}; give another --split")
    chosen = choose_rows(rows, config.limit, config.seed)
    asked = list(
        questions(
            load_prompts(config.prompts),
            manifest,
            [number for number, _ in chosen],
            permutations=config.permutations,
            seed=config.seed,
            content_free="options" in config.ways,
        )
    )
    paths = {number: str(resolve(config.data_root, row)) for number, row in chosen}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    index = index_of(manifest, list(paths.values()), index_path(config.out), threads)
    at = {path: video for video, path in enumerate(index.videos.path)}
    videos = {number: at[path] for number, path in paths.items()}
    _check_readable(config, chosen, index, videos)
    settings = dict(store.about.settings)
    clips: dict[int | None, list[Any] | None] = {None: None}
    clips |= {
        number: [number, row.path, row.start, row.end, index.videos.xxh3[videos[number]]]
        for number, row in chosen
    }
    # The grey pictures come first: an option that the model cannot take shows at once.
    wanted: dict[int | None, list[Wanted]] = {None: []} | {number: [] for number, _ in chosen}
    places = []
    for question in asked:
        for way in config.ways:
            if question.row is None and way == "generate":
                continue
            places.append(place_of(question, way))
            key = key_of(config.model, settings, clips[question.row], asdict(question), way)
            if not store.settled(question, way, key):
                wanted[question.row].append(Wanted(question, way, key))
    return Job(manifest, chosen, index, videos, wanted, places)


def _check_readable(
    config: RunConfig, chosen: Sequence[tuple[int, Row]], index: PacketIndex, videos: Mapping[int, int]
) -> None:
    """Raises RunError where no clip can be read: the grey pictures alone tell nothing."""
    if any(not isinstance(span_of(index, videos[number], row), str) for number, row in chosen):
        return
    number, row = chosen[0]
    raise RunError(
        f"none of the {len(chosen)} clips can be read, {resolve(config.data_root, row)} among them:"
        f" {span_of(index, videos[number], row)}; check --data-root"
    )


def index_path(store: Path) -> Path:
    """Of the packet index beside a store."""
    return store.with_name(f"{store.name}.videos.h5")


def carry_out(
    config: RunConfig,
    job: Job,
    backend: Backend,
    store: AnswerStore,
    threads: int,
    progress: Progress = lambda done, of: None,
) -> Report:
    """Asks what is left. progress(done, of): questions, in all ways. Raises BackendError, StoreError,
    OSError."""
    done, asked = job.total - job.left, 0
    unreadable: list[tuple[str, str]] = []
    progress(done, job.total)

    def take(request: Request, answer: Reply | Failure) -> None:
        nonlocal done, asked
        reply = answer if isinstance(answer, Reply) else None
        failure = answer if isinstance(answer, Failure) else Failure("", False)
        shown = request.pictures.shown
        store.add(
            Asked(request.question, request.way, reply, failure.reason, failure.passes, shown), request.key
        )
        done, asked = done + 1, asked + 1
        progress(done, job.total)

    def requests() -> Iterator[Request]:
        nonlocal done
        rows = [(number, row) for number, row in job.rows if job.wanted[number]]
        yield from _of(job.wanted[None], grey_pictures(config.look) if job.wanted[None] else None)
        clips = [(job.videos[number], row) for number, row in rows]
        for (number, row), found in zip(
            rows, read_pictures(job.index, clips, config.look, threads), strict=True
        ):
            if isinstance(found, Pictures):
                yield from _of(job.wanted[number], found)
                continue
            unreadable.append((row.path, found))
            for each in job.wanted[number]:
                store.add(Asked(each.question, each.way, None, f"{UNREADABLE}: {found}"), each.key)
            done += len(job.wanted[number])
            progress(done, job.total)

    if job.left:
        backend.prepare()
        store.begin()
        backend.ask(requests(), take)
    return _report(job, store, asked, unreadable)


def _of(wanted: Sequence[Wanted], pictures: Pictures | None) -> Iterator[Request]:
    for each in wanted:
        assert pictures is not None
        yield Request(each.key, each.question, each.way, pictures)


def _report(job: Job, store: AnswerStore, asked: int, unreadable: list[tuple[str, str]]) -> Report:
    lines = [store.kept[place].asked for place in job.places]
    failed = [line for line in lines if line.failure]
    return Report(
        asked,
        len(lines) - len(failed),
        sum(line.reply is not None and line.question.row is not None for line in lines),
        len(lines),
        dict(Counter(line.failure.partition(":")[0] for line in failed)),
        sum(line.passes for line in failed),
        unreadable,
    )
