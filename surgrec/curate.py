"""`python -m surgrec.curate all --index corpus.h5 --out plan.h5`: what is drawn of a corpus, how often."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import tyro

from surgrec.configs.curate import CurateConfig

if TYPE_CHECKING:
    from surgrec.curation.pipeline import Report

SHOWN_NOTES = 10


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if all stages named are finished, 1 otherwise, 130 if it was interrupted."""
    config = tyro.cli(CurateConfig, args=arguments, prog="python -m surgrec.curate")
    from tqdm import tqdm

    from surgrec.corpus.discovery import InputError, check_workers
    from surgrec.curation.pipeline import curate
    from surgrec.curation.records import CurationError
    from surgrec.loaders.engines.cpu import count_threads
    from surgrec.loaders.packet_index import PacketIndexError
    from surgrec.training.errors import UserError

    bars: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            unit = "step" if stage == "cluster" else "video"
            bars[stage] = tqdm(total=total, desc=stage, unit=unit, dynamic_ncols=True, disable=None)
        bars[stage].update(done - bars[stage].n)

    try:
        check_workers(config.workers, 1.0)
        report = curate(config, count_threads(config.workers), progress)
    except (CurationError, PacketIndexError, InputError, UserError, ValueError) as error:
        print(f"surgrec.curate: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"surgrec.curate: {where}{error.strerror or error}; what is finished is kept, and the same"
            f" command goes on from there",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("surgrec.curate: stopped; the same command resumes where it was", file=sys.stderr)
        return 130
    finally:
        for bar in bars.values():
            bar.close()
    if report is not None:
        _print_report(report, config)
    return 0


def _print_report(report: Report, config: CurateConfig) -> None:
    for stage in report.reused:
        print(f"{stage}: finished before with the same options")
    for stage, notes in report.notes.items():
        for path, note in list(notes.items())[:SHOWN_NOTES]:
            print(f"{stage}: {path}: {note}", file=sys.stderr)
        if len(notes) > SHOWN_NOTES:
            print(f"{stage}: and {len(notes) - SHOWN_NOTES} videos more", file=sys.stderr)
    for remark in report.remarks:
        print(remark)
    if report.segments or not report.page:
        print(f"{report.segments} segments")
    for reason, count in report.excluded.items():
        print(f"  not drawn: {count}, {reason}")
    if report.page:
        print(f"report: {report.page}")
    if report.digest:
        print(f"{config.out} written, digest {report.digest}")
        print(
            f"train with it: python -m surgrec.pretrain mae-vitb --data.index {config.index}"
            f" --data.plan {config.out}"
        )


if __name__ == "__main__":
    sys.exit(main())
