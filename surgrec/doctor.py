"""`python -m surgrec.doctor`: what this machine can do, and the remedy for what it cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from surgrec.configs.doctor import DoctorConfig

if TYPE_CHECKING:
    from surgrec.diagnostics.check import Check


def examine(data: Path) -> Iterable[Check]:
    """All checks, one after the other."""
    from surgrec.diagnostics import accelerator, machine, media, software

    yield software.check_python()
    for name in (*software.NEEDED, *software.OPTIONAL):
        yield software.check_package(name)
    gpu = False
    if software.version_of("torch") is not None:
        gpu = accelerator.has_gpu()
        yield software.check_threads()
        yield software.check_attention(gpu)
        if gpu and accelerator.has_hopper():
            yield software.check_products()
            yield software.check_flash4()
    yield software.check_dali()
    yield software.check_numba()
    yield accelerator.check_driver()
    if software.version_of("torch") is not None:
        yield accelerator.check_cuda()
        yield accelerator.check_nvdec(gpu)
        yield accelerator.check_nv_video_codec(gpu)
    yield media.check_ffmpeg()
    yield media.check_decoders()
    yield media.check_encoders()
    yield machine.check_processor()
    yield machine.check_memory()
    yield machine.check_files()
    yield machine.check_shared_memory()
    yield machine.check_disk(data)


def can_pretrain(checks: Iterable[Check]) -> bool:
    """Whether nothing that pretraining requires is missing."""
    return not any(check.required and check.status == "missing" for check in checks)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 where pretraining can run, 1 where it cannot."""
    import tyro

    config = tyro.cli(DoctorConfig, args=arguments, prog="python -m surgrec.doctor")
    checks = list(examine(config.data))
    if config.json:
        import json

        print(
            json.dumps(
                {"can_pretrain": can_pretrain(checks), "checks": [asdict(c) for c in checks]}, indent=1
            )
        )
    else:
        print_report(checks)
    return 0 if can_pretrain(checks) else 1


def print_report(checks: list[Check]) -> None:
    """The checks as a table by group, and the verdict."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    styles = {"ok": "green", "warn": "yellow", "missing": "red"}
    table = Table("", "", "", "", title="SurgRec doctor", title_justify="left", box=None, show_header=False)
    previous = ""
    for check in checks:
        if check.group != previous and previous:
            table.add_section()
        state = f"[{styles[check.status]}]{check.status}[/]"
        table.add_row(
            check.group if check.group != previous else "", state, escape(check.name), escape(check.value)
        )
        if check.remedy:
            table.add_row("", "", "", f"[{styles[check.status]}]remedy:[/] {escape(check.remedy)}")
        previous = check.group
    console = Console()
    console.print(table)
    if can_pretrain(checks):
        console.print("Pretraining can run here.", style="bold")
    else:
        names = ", ".join(check.name for check in checks if check.required and check.status == "missing")
        console.print(f"Pretraining cannot run here until this is mended: {names}", style="bold red")


if __name__ == "__main__":
    sys.exit(main())
