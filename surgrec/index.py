"""`python -m surgrec.index INPUTS... --out corpus.h5`: index videos for random access."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import tyro

from surgrec.configs.index import IndexConfig

if TYPE_CHECKING:
    from surgrec.corpus.build import Report

SHOWN_PROBLEMS = 10


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if the index holds at least one video that can be decoded, 1 otherwise."""
    config = tyro.cli(IndexConfig, args=arguments, prog="python -m surgrec.index")
    from tqdm import tqdm

    from surgrec.corpus.build import BuildError, build_index
    from surgrec.corpus.discovery import InputError, check_workers, find_entries
    from surgrec.corpus.journal import JournalBusyError

    remarks: list[str] = []
    try:
        check_workers(config.workers, config.timeout)
        entries = find_entries(config.inputs, config.manifest, config.dataset, config.domain, remarks)
        for remark in remarks:
            print(f"surgrec.index: {remark}", file=sys.stderr)
        with tqdm(total=len(entries), desc="indexing", unit="video", dynamic_ncols=True, disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            report = build_index(
                entries,
                config.out,
                config.workers,
                config.timeout,
                config.verify,
                config.rescan,
                progress,
            )
    except (InputError, BuildError, JournalBusyError) as error:
        print(f"surgrec.index: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("surgrec.index: stopped; the same command resumes where it was", file=sys.stderr)
        return 130
    _print_report(report, str(config.out))
    if report.usable == 0:
        print("surgrec.index: none of these files can be decoded", file=sys.stderr)
        return 1
    return 0


def _print_report(report: Report, out: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from surgrec.loaders.packet_index import STATUS_NAMES

    console = Console()
    table = Table(title=f"{escape(out)} {'written' if report.written else 'is up to date'}")
    table.add_column("status")
    table.add_column("videos", justify="right")
    table.add_column("meaning")
    meanings = {
        "OK": "random access",
        "SEQUENTIAL": "decodable from the start only: slow",
        "ERROR": "cannot be decoded",
        "REMOVED": "the file is gone",
    }
    for name, count in report.counts.items():
        if count:
            table.add_row(name, f"{count:,}", meanings[name])
    console.print(table)
    console.print(
        f"{report.packets:,} packets, {report.frames:,} frames, {report.hours:.2f} hours; "
        f"{report.scanned:,} files scanned, {report.reused:,} unchanged"
    )
    for problem in report.problems[:SHOWN_PROBLEMS]:
        console.print(
            f"  {STATUS_NAMES[problem.status]} {problem.path}: {problem.reason}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if len(report.problems) > SHOWN_PROBLEMS:
        console.print(f"  ... and {len(report.problems) - SHOWN_PROBLEMS} more; all reasons are in the index")


if __name__ == "__main__":
    sys.exit(main())
