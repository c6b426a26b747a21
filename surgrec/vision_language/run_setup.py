"""What a run is set up from: its options checked, its model, and the store of its answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from surgrec.configs.vlm import RunConfig
from surgrec.evaluation.manifest import SplitManifest, read_manifest
from surgrec.vision_language.backend import Backend, BackendError
from surgrec.vision_language.endpoint import EndpointBackend, key_from
from surgrec.vision_language.store import About, AnswerStore


class RunError(ValueError):
    """Options with which nothing can be asked; the message names the option and the remedy."""


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
        from surgrec.vision_language.model_files import find_model

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
    # Another seed draws other orders, and rows that have some of both are never answered in full.
    settings = {**backend.settings, **look, "order_seed": config.seed}
    return About(manifest.dataset, manifest.digest, config.split, config.model, settings)


def open_run(config: RunConfig) -> tuple[SplitManifest, Backend, AnswerStore]:
    """What a run needs, checked; the store is not open yet. Raises RunError, ManifestError, BackendError."""
    check_options(config)
    manifest = read_manifest(config.manifest)
    backend = open_backend(config)
    return manifest, backend, AnswerStore(config.out, about_of(config, manifest, backend))
