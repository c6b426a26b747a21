"""A prediction as files: JSON with everything, CSV with the stretches of one class."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from surgrec.configs.predict import PredictConfig
from surgrec.evaluation.clip_classifier import ClipClassifier
from surgrec.evaluation.prediction import Prediction, VideoError
from surgrec.evaluation.results import provenance
from surgrec.evaluation.table_text import spreadsheet_cell
from surgrec.evaluation.timeline import Stretch, cells_of, smooth, stretches_of
from surgrec.evaluation.window_plan import Window, WindowPlan
from surgrec.loaders.whole_file import replacing

FORMAT_NAME: Final = "surgrec-prediction"
FORMAT_VERSION: Final = 1


@dataclass(frozen=True)
class Timeline:
    """A prediction as it is shown. smoothing: in words, empty for none. shares: float64 [n, C], smoothed.
    cells: float64 [n, 2], seconds that each window stands for."""

    prediction: Prediction
    classes: tuple[str, ...]
    smoothing: str
    shares: NDArray[np.float64]
    cells: NDArray[np.float64]
    stretches: list[Stretch]


def make_timeline(config: PredictConfig, classes: tuple[str, ...], found: Prediction) -> Timeline:
    """Smooths a prediction as config asks for, and finds its stretches."""
    shares, words = found.shares, ""
    if config.smooth > 0:
        shares = smooth(found.plan, shares, found.present, config.smoothing, config.smooth)
        words = f"{config.smoothing} over {config.smooth:g} s"
    stretches = stretches_of(found.plan, shares, found.missing)
    return Timeline(found, classes, words, shares, cells_of(found.plan.windows), stretches)


def document_of(
    config: PredictConfig, classifier: ClipClassifier, video: Path, device: str, timeline: Timeline
) -> dict[str, Any]:
    """Everything, as JSON's plain values; docs/predict.md describes them."""
    found = timeline.prediction
    smoothed = config.smooth > 0
    cells = timeline.cells.tolist()
    windows = []
    for number, (window, (low, high)) in enumerate(zip(found.plan.windows, cells, strict=True)):
        entry: dict[str, Any] = {
            "start": window.start,
            "end": window.end,
            "shown_from": low,
            "shown_to": high,
            "frames": list(window.frames),
        }
        if number in found.missing:
            windows.append(entry | {"reason": found.missing[number]})
            continue
        entry["probabilities"] = found.shares[number].tolist()
        if smoothed:
            entry["smoothed"] = timeline.shares[number].tolist()
        windows.append(entry)
    shown = [each for each in timeline.stretches if each.label is not None]
    return {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "key": found.key,
        "video": str(video),
        "video_xxh3": found.xxh3,
        "seconds": found.plan.seconds,
        "classes": list(timeline.classes),
        "model": classifier.model,
        "model_identity": classifier.identity,
        "head_digest": classifier.digest,
        "head": classifier.about,
        "geometry": classifier.geometry,
        "view": "centre",
        "every": config.every,
        "window": config.window,
        "verified": config.verify,
        "smoothing": {"kind": config.smoothing, "seconds": config.smooth} if smoothed else None,
        "device": device,
        "read": {"windows": len(found.plan.windows) - len(found.missing), "of": len(found.plan.windows)},
        "timeline": [
            {
                "start": each.start,
                "end": each.end,
                "class": timeline.classes[each.label],
                "probability": each.probability,
            }
            for each in shown
            if each.label is not None
        ],
        "unreadable": [
            {"start": each.start, "end": each.end, "reason": each.reason}
            for each in timeline.stretches
            if each.label is None
        ],
        "holes": [list(each) for each in found.plan.holes],
        "windows": windows,
        **provenance(),
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a document, whole or not at all, a line a window. Raises OSError."""
    head = {name: value for name, value in document.items() if name != "windows"}
    lines = ",\n".join(json.dumps(window, allow_nan=False) for window in document["windows"])
    text = json.dumps(head, indent=1, allow_nan=False)[:-2] + f',\n "windows": [\n{lines}\n ]\n}}\n'
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_prediction(path: Path, key: str, classes: int) -> Prediction | None:
    """The prediction that a document holds, None where there is no file.

    Raises VideoError for one with another key, or that is no prediction: it is not overwritten.
    """
    if not path.exists():
        return None
    elsewhere = "choose another --out, or remove it"
    try:
        document = json.loads(path.read_bytes().decode("utf-8"))
        if document["format"] != FORMAT_NAME or document["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {document['format']!r} {document['format_version']!r}")
        if document["key"] != key:
            raise VideoError(
                f"{path}: holds another prediction, by {document['model']} with head"
                f" {document['head_digest']}, every {document['every']:g} s, of a video of digest"
                f" {document['video_xxh3']}; {elsewhere}"
            )
        shares = np.zeros((len(document["windows"]), classes))
        windows, missing = [], {}
        for number, each in enumerate(document["windows"]):
            windows.append(Window(tuple(each["frames"]), float(each["start"]), float(each["end"])))
            if "reason" in each:
                missing[number] = str(each["reason"])
            else:
                shares[number] = each["probabilities"]
        holes = [(float(start), float(end)) for start, end in document["holes"]]
        if not np.isfinite(shares).all() or not math.isfinite(document["seconds"]):
            raise ValueError("values that are not finite")
        plan = WindowPlan(windows, holes, document["seconds"])
        return Prediction(key, document["video_xxh3"], plan, shares, missing)
    except VideoError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VideoError(f"{path}: no prediction, or a damaged one ({error!r}); {elsewhere}") from error


def write_csv(path: Path, timeline: Timeline) -> None:
    """A line for each stretch of one class: start and end in seconds, class, mean probability. A gap has no
    class, and the reason. Raises OSError."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["start", "end", "class", "probability", "unreadable"])
    for each in timeline.stretches:
        name = "" if each.label is None else spreadsheet_cell(timeline.classes[each.label])
        share = "" if each.probability is None else f"{each.probability:.6f}"
        reason = spreadsheet_cell(each.reason)
        rows.writerow([f"{each.start:.3f}", f"{each.end:.3f}", name, share, reason])
    with replacing(path) as temporary:
        temporary.write_text(out.getvalue(), encoding="utf-8")
