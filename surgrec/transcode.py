"""`python -m surgrec.transcode --index corpus.h5 --out proxies`: training proxies of videos."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import tyro

from surgrec.configs.transcode import TranscodeConfig

if TYPE_CHECKING:
    from surgrec.transcoding.run import Failure, Report

SHOWN_PROBLEMS = 10


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if there is a proxy of at least one video, 1 otherwise, 130 after Ctrl-C."""
    config = tyro.cli(TranscodeConfig, args=arguments, prog="python -m surgrec.transcode")
    from tqdm import tqdm

    from surgrec.corpus.discovery import InputError, check_workers
    from surgrec.loaders.packet_index import PacketIndexError
    from surgrec.transcoding.journal import FolderBusyError
    from surgrec.transcoding.manifest import ManifestError
    from surgrec.transcoding.options import OptionError
    from surgrec.transcoding.run import TranscodeError, transcode

    expected = (OptionError, InputError, PacketIndexError, ManifestError, FolderBusyError, TranscodeError)
    shape = "{l_bar}{bar}| {n:.2f}/{total} videos [{elapsed}<{remaining}]"
    try:
        with tqdm(total=0, desc="transcoding", bar_format=shape, dynamic_ncols=True, disable=None) as bar:

            def progress(done: float, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            check_workers(config.workers, config.timeout)
            report = transcode(config, progress)
    except expected as error:
        print(f"surgrec.transcode: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "surgrec.transcode: stopped; finished proxies are kept, the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    _print_report(report, config)
    total = report.usable + len(report.failures)
    if report.failures:
        print(
            f"surgrec.transcode: {len(report.failures)} of {total} videos failed; "
            f"all reasons are in {config.out / 'failures.jsonl'}",
            file=sys.stderr,
        )
    return 0 if report.usable else 1


def _print_report(report: Report, config: TranscodeConfig) -> None:
    from rich.console import Console

    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    def list_some(mark: str, problems: list[Failure]) -> None:
        for problem in problems[:SHOWN_PROBLEMS]:
            say(f"  {mark} {problem.path}: {problem.reason}")
        if len(problems) > SHOWN_PROBLEMS:
            say(f"  ... and {len(problems) - SHOWN_PROBLEMS} more")

    kept = f", {report.kept:,} out of date and kept" if report.kept else ""
    say(f"{config.out}: {report.made:,} proxies made, {report.unchanged:,} unchanged{kept}")
    if report.frames:
        share = 100 * report.bytes / max(1, report.source_bytes)
        say(
            f"{report.frames:,} frames, {report.seconds / 3600:.2f} hours, {report.bytes / 1e6:,.1f} MB: "
            f"{share:.1f}% of the sources"
        )
    for encoder, count in report.encoders.items():
        say(f"encoded by {encoder}: {count:,}")
    if report.no_nvenc:
        say(f"NVENC was not used: {report.no_nvenc}")
    list_some("NOTE", report.notes)
    list_some("FAILED", report.failures)
    if report.usable:
        table = shlex.quote(str(config.out / "videos.csv"))
        index = shlex.quote(str(config.out / "corpus.h5"))
        fps = f" --data.fps {config.rate:g}" if config.rate else ""
        say("next:")
        say(f"  python -m surgrec.index --manifest {table} --out {index}")
        say(f"  python -m surgrec.pretrain mae-vitb --data.index {index}{fps}")


if __name__ == "__main__":
    sys.exit(main())
