"""Where the files of a model of transformers are, and what tells them from those of another."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from surgrec.configs.vlm import Kind, LocalConfig
from surgrec.curation.records import key_of
from surgrec.training.tensor_file import file_digest
from surgrec.vision_language.backend import BackendError
from surgrec.vision_language.local_model import LocalModel, one_line

PROCESSOR_FILES: Final = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHTS: Final = "*.safetensors"
OLDEST: Final = (5, 6)
"""Of transformers, as pyproject.toml has it."""


def find_model(name: str, kind: Kind, options: LocalConfig, with_weights: bool) -> LocalModel:
    """A model from a folder, or from the hub, which is asked for what is not on this machine yet.

    with_weights: otherwise only its processor is fetched. Raises BackendError.
    """
    check_transformers()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetched(name, with_weights)
        return LocalModel(name, folder, f"commit {folder.name}", kind, options)
    files = sorted({path for pattern in (WEIGHTS, *PROCESSOR_FILES) for path in folder.glob(pattern)})
    if not (folder / "config.json").is_file() or not list(folder.glob(WEIGHTS)):
        raise BackendError(
            f"hf:{name}: a folder without config.json or {WEIGHTS}; give one as transformers saves models"
        )
    digests = [[path.name, file_digest(path).xxh3] for path in files]
    return LocalModel(name, folder, key_of("vlm weights", digests), kind, options)


def check_transformers() -> None:
    """Raises BackendError where transformers is not installed, or a version that answers wrongly."""
    mend = "pip install 'surgrec[vlm]'"
    if find_spec("transformers") is None or find_spec("accelerate") is None:
        raise BackendError(f"hf: models need transformers and accelerate, which are not installed: {mend}")
    found = version("transformers")
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    if numbers < OLDEST:
        raise BackendError(
            f"transformers {found} misplaces what follows a picture; {'.'.join(map(str, OLDEST))} or later is"
            f" needed: {mend}"
        )


def _fetched(name: str, with_weights: bool) -> Path:
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*PROCESSOR_FILES, *([WEIGHTS] if with_weights else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, HTTPError, OSError) as error:
        raise BackendError(
            f"hf:{name}: no such folder, and the hub does not give it ({one_line(error)}); check the name,"
            " or the"
            " network"
        ) from error
