"""`python -m surgrec.predict VIDEO... --head HEAD`: which class is seen when, over whole operations."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from surgrec.configs.predict import PredictConfig

if TYPE_CHECKING:
    from surgrec.evaluation.prediction import Network, Prediction
    from surgrec.evaluation.timeline_files import Timeline

SHOWN = 5


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if a timeline was made, 1 if none was, 130 if it was interrupted."""
    config = tyro.cli(PredictConfig, args=arguments, prog="python -m surgrec.predict")
    from surgrec.corpus.build import BuildError
    from surgrec.corpus.journal import JournalBusyError
    from surgrec.curation.records import CurationError
    from surgrec.evaluation.clip_classifier import open_classifier
    from surgrec.evaluation.device import device_of
    from surgrec.evaluation.prediction import Network, VideoError

    try:
        _check(config)
        classifier = open_classifier(config.head, config.model, config.seed)
        network = Network(classifier, device_of(config.device))
        made = 0
        for video in config.videos:
            try:
                _one(config, network, video)
                made += 1
            except (VideoError, JournalBusyError) as error:
                _failed(error)
    except (ValueError, CurationError, BuildError) as error:
        return _failed(error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(
            f"{where}{error.strerror or error}; what is computed is kept, and the same command goes on from"
            " there"
        )
    except KeyboardInterrupt:
        print("surgrec.predict: stopped; the same command resumes where it was", file=sys.stderr)
        return 130
    if len(config.videos) > 1:
        print(f"{made} of {len(config.videos)} videos")
    return 0 if made else 1


def _failed(error: object) -> int:
    print(f"surgrec.predict: {error}", file=sys.stderr)
    return 1


def _check(config: PredictConfig) -> None:
    """Raises ValueError, naming the option and its bound."""
    if not config.videos:
        raise ValueError("there is no video; name one or more")
    for name in ("batch", "memory_mib"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}; it is at least 1")
    if not 0.01 <= config.every < float("inf"):
        raise ValueError(f"--every is {config.every}; it is 0.01 seconds or more")
    if config.window is not None and not 0 < config.window < float("inf"):
        raise ValueError(f"--window is {config.window}; it is a number of seconds above 0")
    if not 0 <= config.smooth < float("inf"):
        raise ValueError(f"--smooth is {config.smooth}; it is a number of seconds, 0 for none")
    _check_names(config.videos)


def _check_names(videos: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for video in videos:
        other = seen.setdefault(video.stem, video)
        if other is not video:
            raise ValueError(
                f"{other} and {video}: their timelines would have one name; run the command for each, with"
                " another --out"
            )


def _one(config: PredictConfig, network: Network, video: Path) -> None:
    """Predicts one video and writes its files. Raises what `predict` does."""
    from tqdm import tqdm

    from surgrec.evaluation.prediction import VideoError, predict
    from surgrec.evaluation.timeline_files import (
        document_of,
        make_timeline,
        read_prediction,
        write_csv,
        write_json,
    )
    from surgrec.evaluation.timeline_plot import write_plot
    from surgrec.loaders.engines.cpu import count_threads

    classifier = network.classifier
    files = {kind: config.out / f"{video.stem}.{kind}" for kind in ("json", "csv", "png")}
    reused = False

    def known(key: str) -> Prediction | None:
        nonlocal reused
        found = read_prediction(files["json"], key, len(classifier.classes))
        reused = found is not None
        foreign = [path for path in files.values() if path.exists()]
        if found is None and foreign:
            raise VideoError(f"{foreign[0]}: is there already, and not of this command; choose another --out")
        return found

    def store(found: Prediction) -> None:
        timeline = make_timeline(config, classifier.classes, found)
        write_json(files["json"], document_of(config, classifier, video, network.device.type, timeline))
        write_csv(files["csv"], timeline)
        count = len(found.plan.windows)
        read = f"{count - len(found.missing)} of {count} windows"
        about = (
            f"{classifier.about['kind']} of {classifier.model}, every {config.every:g} s,"
            f" {timeline.smoothing or 'not smoothed'}, {read}"
        )
        write_plot(files["png"], timeline, video.name, about)
        _print(video, timeline, read, reused)

    with tqdm(desc=video.name, unit="window", dynamic_ncols=True, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        threads = count_threads(config.workers)
        work = config.out / f"{video.stem}.work"
        predict(config, network, video, work, threads, known, store, progress)
    print(f"wrote {', '.join(str(path) for path in files.values())}")


def _print(video: Path, timeline: Timeline, read: str, reused: bool) -> None:
    from surgrec.curation.readable import readable
    from surgrec.evaluation.timeline_plot import clock

    found = timeline.prediction
    note = "; probabilities of an earlier run" if reused else ""
    smoothed = timeline.smoothing or "not smoothed"
    print(f"{video}: {clock(found.plan.seconds)}, {read} read, {smoothed}{note}")
    for label, name in enumerate(timeline.classes):
        own = [each for each in timeline.stretches if each.label == label]
        if own:
            shown = clock(sum(each.end - each.start for each in own))
            print(f"  {readable(name):30} {shown} in {len(own)} stretches")
    gaps = [each for each in timeline.stretches if each.label is None]
    for each in gaps[:SHOWN]:
        span = f"{clock(each.start)} to {clock(each.end)}"
        print(f"cannot be read: {video}: {span}: {each.reason}", file=sys.stderr)
    if len(gaps) > SHOWN:
        print(f"and {len(gaps) - SHOWN} gaps more", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
