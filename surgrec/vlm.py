"""`python -m surgrec.vlm run | score | table`: vision-language models on the benchmark's splits."""

from __future__ import annotations

import sys
from typing import Any

import tyro

from surgrec.configs.vlm import COMMANDS, RunConfig, ScoreConfig, TableConfig

PROG = "python -m surgrec.vlm"
SHOWN = 10


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if every question has an answer, or a failure that no further run would mend, 1
    otherwise, 130 if it was interrupted."""
    about = "Vision-language models on the benchmark's splits."
    config = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog=PROG, description=about, args=arguments)
    from surgrec.corpus.build import BuildError
    from surgrec.corpus.journal import JournalBusyError
    from surgrec.vision_language.backend import BackendError

    try:
        return _run(config)
    except (ValueError, BackendError, BuildError, JournalBusyError) as error:
        return _failed(error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        kept = "; what is answered is kept" if isinstance(config, RunConfig) else ""
        return _failed(f"{where}{error.strerror or error}{kept}")
    except KeyboardInterrupt:
        print("surgrec.vlm: stopped; what is answered is kept, and the same command goes on", file=sys.stderr)
        return 130


def _run(config: Any) -> int:
    if isinstance(config, ScoreConfig):
        return _score(config)
    if isinstance(config, TableConfig):
        return _table(config)
    assert isinstance(config, RunConfig)
    return _ask(config)


def _failed(error: object) -> int:
    print(f"surgrec.vlm: {error}", file=sys.stderr)
    return 1


def _ask(config: RunConfig) -> int:
    from contextlib import nullcontext

    from tqdm import tqdm

    from surgrec.loaders.engines.cpu import count_threads
    from surgrec.vision_language.estimate import estimate, estimate_text
    from surgrec.vision_language.run import carry_out, plan
    from surgrec.vision_language.run_setup import open_run

    manifest, backend, store = open_run(config)
    threads = count_threads(config.workers)
    # A dry run leaves no store behind.
    with nullcontext() if config.dry_run and not config.out.exists() else store:
        job = plan(config, manifest, backend, store, threads)
        if config.dry_run:
            print(estimate_text(config, estimate(config, job, backend, store)))
            return 0
        with tqdm(desc="ask", unit="question", dynamic_ncols=True, disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            report = carry_out(config, job, backend, store, threads, progress)
    for path, reason in report.unreadable[:SHOWN]:
        print(f"unreadable: {path}: {reason}", file=sys.stderr)
    if len(report.unreadable) > SHOWN:
        print(f"and {len(report.unreadable) - SHOWN} clips more", file=sys.stderr)
    for name, count in sorted(report.failures.items()):
        print(f"{count:,} questions without an answer: {name}", file=sys.stderr)
    print(
        f"{config.out}: {report.answered:,} of {report.total:,} questions are answered, {report.asked:,} were"
        " asked now"
    )
    return 1 if report.passing or not report.about_clips else 0


def _score(config: ScoreConfig) -> int:
    from tqdm import tqdm

    from surgrec.evaluation.results import append_result
    from surgrec.vision_language.score_text import print_scores
    from surgrec.vision_language.scoring import score

    with tqdm(bar_format="{desc}", disable=None, leave=False) as bar:

        def tell(text: str) -> None:
            bar.write(f"surgrec.vlm: {text}", file=sys.stderr)

        documents = score(config, tell, bar.set_description_str)
    for document in documents:
        append_result(config.out, document)
    print_scores(documents)
    print(f"{config.out}: {len(documents)} results were appended")
    return 0


def _table(config: TableConfig) -> int:
    from surgrec.evaluation.results import read_documents
    from surgrec.loaders.whole_file import replacing
    from surgrec.vision_language.score_table import render_scores

    documents = [document for path in config.results for document in read_documents(path)]
    if not documents:
        return _failed(f"no results in {', '.join(map(str, config.results))}; score a model first")
    text = render_scores(documents, config.form)
    if config.out is None:
        print(text)
        return 0
    with replacing(config.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{config.out}: {len(documents)} results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
