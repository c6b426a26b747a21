"""A format is written beside its place, run beside the model, and only then given its name."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from surgrec.configs.convert import ConvertConfig, Format
from surgrec.exports.comparison import Check
from surgrec.exports.formats import FORMATS, ExportFormat
from surgrec.exports.source import open_source
from surgrec.loaders.whole_file import sync
from surgrec.weights.errors import WeightsError


def export(config: ConvertConfig, say: Callable[[str], None]) -> list[Check]:
    """Writes config.out and returns what was measured. say: told of each step.

    Raises WeightsError, OSError; then nothing is left behind.
    """
    if config.to is None or config.out is None:
        raise WeightsError("--to needs --out, the file or folder to write")
    chosen, out = FORMATS[config.to], config.out
    _check(config, chosen, out)
    say(f"reading {config.model}")
    source = open_source(Path(config.model))
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    folder.mkdir()
    try:
        written = folder / out.name
        say(f"writing {source.kind} of step {source.about.step} as {config.to}")
        chosen.write(source, config, written)
        say("running both sides on the same clip")
        checks = chosen.verify(source, config, written)
        _check_free(config.to, out)
        # What belongs to a file comes first: whatever has the asked name is complete.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == out.name):
            _sync_all(path)
            os.rename(path, out.with_name(path.name))
        sync(out.parent)
    except (RuntimeError, LookupError, TypeError, SafetensorError) as error:
        what = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise WeightsError(
            f"{config.to}: the model could not be written, or read again ({what}); nothing was written."
            " Please report it with the model's configuration, and the versions of torch and of that library"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return checks


def _check(config: ConvertConfig, chosen: ExportFormat, out: Path) -> None:
    """Raises WeightsError for options that do not fit, before anything is read."""
    _check_free(config.to, out)
    if out.suffix not in (chosen.suffixes or (out.suffix,)):
        raise WeightsError(
            f"--out {out}: what {config.to} writes ends in {' or '.join(chosen.suffixes)}, by which programs"
            " know it"
        )
    if config.part is not None and not chosen.one_encoder:
        raise WeightsError(f"--part {config.part}: {config.to} holds all of a model; leave --part out")
    if config.to != "hub":
        for option in ("results", "license"):
            if getattr(config, option) is not None:
                raise WeightsError(f"--{option} is for the card of --to hub; leave it out")
    missing = [name for name in chosen.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise WeightsError(
            f"--to {config.to} needs {', '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not"
            " installed: pip install 'surgrec[export]'"
        )


def _check_free(to: Format | None, out: Path) -> None:
    """Raises WeightsError where something has the name of what is to be written."""
    beside = [out.with_name(f"{out.name}.data")] if to == "onnx" else []
    for path in (out, *beside):
        if path.exists() or path.is_symlink():
            raise WeightsError(f"{path} is there already; give another --out, or remove it")


def _sync_all(path: Path) -> None:
    """A file, or a folder and what is in it, to the disk."""
    if path.is_dir():
        for each in path.iterdir():
            _sync_all(each)
    sync(path)
