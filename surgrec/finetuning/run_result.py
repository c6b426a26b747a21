"""The result of a run: made, kept in its folder, and appended once to the file of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgrec.configs.finetune import FinetuneConfig, of_mode
from surgrec.evaluation.clip_cut import clip_geometry
from surgrec.evaluation.manifest import SplitManifest
from surgrec.evaluation.outcome import outcome_of
from surgrec.evaluation.parts import parts_among
from surgrec.evaluation.results import append_result
from surgrec.finetuning.network_file import NetworkAbout
from surgrec.finetuning.options import options_of
from surgrec.finetuning.run_data import RunData
from surgrec.finetuning.tuner import Asked
from surgrec.models.encoder_form import document_of
from surgrec.models.network_form import NetworkForm, network_document
from surgrec.training.errors import UserError
from surgrec.training.run_folder import RunFolder
from surgrec.weights.load import OpenedModel


def kept_result(
    run: RunFolder, config: FinetuneConfig, manifest: SplitManifest, model: OpenedModel
) -> dict[str, Any] | None:
    """The result of a run that is complete, None of one that is not. Raises UserError where it is of another
    run, or damaged."""
    if not run.result.exists():
        return None
    try:
        result: dict[str, Any] = json.loads(run.result.read_text())
    except ValueError as error:
        raise UserError(
            f"{run.result} is damaged: not JSON ({error}). Remove it, and test is asked again"
        ) from error
    for name, wanted in (
        ("mode", f"finetune-{config.mode}"),
        ("options", options_of(config)),
        ("model_identity", model.identity),
        ("manifest_digest", manifest.digest),
    ):
        if result.get(name) != wanted:
            raise UserError(
                f"{run.path} holds the result of another run: {name} is {result.get(name)!r}, here"
                f" {wanted!r}; give another --out"
            )
    return result


def append_once(path: Path, result: dict[str, Any]) -> None:
    """Appends a result, unless its very line is there: a run may be stopped between keeping and appending
    it."""
    line = json.dumps(result, allow_nan=False).encode()
    if not path.exists() or line not in path.read_bytes().splitlines():
        append_result(path, result)


def result_of(
    config: FinetuneConfig,
    data: RunData,
    values: dict[str, Any],
    best: dict[str, Any],
    parameters: int,
    device: torch.device,
    test: Asked,
) -> dict[str, Any]:
    """The result's document. values: of the last checkpoint. best: the chosen entry of val. parameters: that
    were trained. Raises UserError where every epoch diverged."""
    where = str(config.manifest)
    if best["score"] is None or not np.isfinite(test.scores).all():
        raise UserError(
            f"{where}: every epoch diverged; give a smaller --lr than {of_mode(config)['lr']:g} and another"
            " --out"
        )
    # Of val, what could not be read in the last epoch.
    lost = dict(values["val_missing"]) | test.missing
    parts = parts_among(data.present(lost), data.manifest, where)
    missing = dict(sorted((data.clips.missing | lost).items()))
    return {
        "model": config.model,
        "model_identity": data.model.identity,
        "features_digest": "",
        "geometry": clip_geometry(data.model.clip),
        "clips": config.test_clips,
        "views": list(config.test_views),
        "mode": f"finetune-{config.mode}",
        "options": options_of(config),
        "device": device.type,
        "trained_parameters": parameters,
        "chosen": {name: best[name] for name in ("epoch", "score", "loss")},
        "val": values["val"],
        "substitutes": values["substitutes"],
        **outcome_of(data.manifest, parts, missing, test.scores, config.seed, config.resamples),
    }


def about_of(config: FinetuneConfig, data: RunData, result: dict[str, Any]) -> NetworkAbout:
    """What stands in the header of the network."""
    form = data.model.form
    document = network_document(form) if isinstance(form, NetworkForm) else document_of(form)
    names = ("dataset", "manifest_digest", "model", "geometry", "clips", "options", "chosen")
    return NetworkAbout(
        kind=result["mode"],
        classes=data.manifest.classes,
        identity=data.model.identity,
        encoder=document,
        head=config.head,
        blocks=config.blocks,
        views=config.test_views,
        **{name: result[name] for name in (*names, "date", "versions", "commit")},
    )
