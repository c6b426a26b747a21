"""`python -m surgrec.extract --manifest M.json --data-root DIR --model ckpt:RUN --out F.h5`: frozen
features."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import tyro

from surgrec.configs.extract import ExtractConfig

if TYPE_CHECKING:
    from surgrec.evaluation.extraction import Report

SHOWN = 10


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if the features are written, 1 otherwise, 130 if it was interrupted."""
    config = tyro.cli(ExtractConfig, args=arguments, prog="python -m surgrec.extract")
    from tqdm import tqdm

    from surgrec.corpus.build import BuildError
    from surgrec.corpus.journal import JournalBusyError
    from surgrec.curation.ranks import start_ranks
    from surgrec.curation.records import CurationError
    from surgrec.evaluation.extraction import extract
    from surgrec.loaders.engines.cpu import count_threads
    from surgrec.training.errors import UserError

    try:
        with start_ranks(config.device) as ranks:
            off = None if ranks.world.first else True
            with tqdm(desc="extract", unit="row", dynamic_ncols=True, disable=off) as bar:

                def progress(done: int, total: int) -> None:
                    bar.total = total
                    bar.update(done - bar.n)

                report = extract(config, count_threads(config.workers), progress, ranks)
    except (ValueError, CurationError, BuildError, JournalBusyError, UserError) as error:
        print(f"surgrec.extract: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"surgrec.extract: {where}{error.strerror or error}; what is computed is kept, and the same"
            " command"
            f" goes on from there",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("surgrec.extract: stopped; the same command resumes where it was", file=sys.stderr)
        return 130
    if report is not None:
        _print(report, config)
    return 0


def _print(report: Report, config: ExtractConfig) -> None:
    for path, reason in report.missing[:SHOWN]:
        print(f"missing: {path}: {reason}", file=sys.stderr)
    if len(report.missing) > SHOWN:
        print(f"and {len(report.missing) - SHOWN} missing rows more", file=sys.stderr)
    if report.reused:
        print(f"{config.out} holds these features already; remove it to extract them again")
    read = report.rows - len(report.missing)
    print(f"{config.out}: features of {read} of {report.rows} rows, digest {report.digest}")


if __name__ == "__main__":
    sys.exit(main())
