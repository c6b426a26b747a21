"""From a manifest to a store of answers: clips, questions and ways, asked of a model, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgrec.configs.vlm import RunConfig
from surgrec.curation.records import key_of
from surgrec.evaluation.extraction import index_of
from surgrec.evaluation.manifest import Row, SplitManifest, read_manifest, resolve
from surgrec.loaders.packet_index import PacketIndex
from surgrec.vision_language.backend import UNREADABLE, Backend, BackendError, Failure, Request
from surgrec.vision_language.endpoint import EndpointBackend, key_from
from surgrec.vision_language.frames import Pictures, grey_pictures, read_pictures
from surgrec.vision_language.prompts import load_prompts, questions
from surgrec.vision_language.records import Asked, Question, Reply, Way
from surgrec.vision_language.row_choice import choose_rows
from surgrec.vision_language.store import About, AnswerStore, Place, place_of

Progress = Callable[[int, int], None]


class RunError(ValueError):
    """Options with which nothing can be asked; the message names the option and the remedy."""


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
    of how many. failures: by their names, of the others. passing: failures that may pass. unreadable: (path,
    reason)."""

    asked: int
    answered: int
    total: int
    failures: dict[str, int]
    passing: int
    unreadable: list[tuple[str, str]]


def check_options(config: RunConfig) -> None:
    """Raises RunError."""
    least: dict[str, tuple[float, float]] = {
        "permutations": (config.permutations, 1),
        "limit": (1 if config.limit is None else config.limit, 1),
        "max-new-tokens": (config.max_new_tokens, 1),
        "workers": (config.workers, 0),
        "look.frames": (config.look.frames, 1),
        "look.long-side": (config.look.long_side, 1),
        "look.short-side": (1 if config.look.short_side is None else config.look.short_side, 1),
        "local.batch": (config.local.batch, 1),
    }
    for name, (value, bound) in least.items():
        if value < bound:
            raise RunError(f"--{name} is {value}; it is at least {bound}")
    if not 0 < config.look.fps < float("inf"):
        raise RunError(f"--look.fps is {config.look.fps}; it is a number above 0")
    if not config.ways or len(set(config.ways)) < len(config.ways):
        raise RunError(f"--ways are {' '.join(config.ways) or 'empty'}; name each once, at least one")
    if not config.data_root.is_dir():
        raise RunError(f"{config.data_root}: no such folder; check --data-root")


def open_backend(config: RunConfig) -> Backend:
    """The model that --model names. Raises BackendError, FeatureError for a GPU that is not there."""
    scheme, _, name = config.model.partition(":")
    if scheme == "api" and name:
        key = key_from(config.endpoint)
        return EndpointBackend(
            name, config.endpoint, config.look.kind, config.max_new_tokens, config.seed, key
        )
    if scheme == "hf" and name:
        from surgrec.vision_language.local_backend import LocalBackend
        from surgrec.vision_language.local_model import find_model

        local = find_model(name, config.look.kind, config.local, with_weights=not config.dry_run)
        backend = LocalBackend(local, config.max_new_tokens)
        _ = local.processor  # what cannot be asked is said before the videos are looked at
        return backend
    raise BackendError(f"there is no model {config.model!r}: give hf:FOLDER, hf:NAME, or api:NAME")


def about_of(config: RunConfig, manifest: SplitManifest, backend: Backend) -> About:
    """What the store of a run is of."""
    look: dict[str, Any] = {f"look.{name}": value for name, value in asdict(config.look).items()}
    if config.look.kind != "video":
        del look["look.fps"]
    if config.look.kind == "middle":
        del look["look.frames"]
    return About(manifest.dataset, manifest.digest, config.split, config.model, {**backend.settings, **look})


def plan(
    config: RunConfig, manifest: SplitManifest, backend: Backend, store: AnswerStore, threads: int
) -> Job:
    """What is left to ask. Raises ManifestError, PromptError, BuildError, StoreError."""
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
        len(lines),
        dict(Counter(line.failure.partition(":")[0] for line in failed)),
        sum(line.passes for line in failed),
        unreadable,
    )


def open_run(config: RunConfig) -> tuple[SplitManifest, Backend, AnswerStore]:
    """What a run needs, checked; the store is not open yet. Raises RunError, ManifestError, BackendError."""
    check_options(config)
    manifest = read_manifest(config.manifest)
    backend = open_backend(config)
    return manifest, backend, AnswerStore(config.out, about_of(config, manifest, backend))
