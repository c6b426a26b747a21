"""The card of a model: what it saw, how it was made, what it can do, and what it is not for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from surgrec.curation.readable import readable
from surgrec.evaluation.results import ResultsError, read_results
from surgrec.evaluation.table import make_table
from surgrec.evaluation.table_text import markdown, markdown_cell
from surgrec.exports.model_file import ModelAbout
from surgrec.exports.pretraining import pretraining_of
from surgrec.exports.source import Part, Source
from surgrec.weights.errors import WeightsError

NAMES: Final[dict[Part, str]] = {"encoder": "the encoder", "target_encoder": "the teacher"}
USE: Final = """## Intended use

Features of surgical video for research: probing, fine-tuning, retrieval, and comparison with other models.

## Limits

- **Not a medical device.** It has not been evaluated for diagnosis, for decisions during surgery, or for any
  other clinical use, and must not be used so.
- Features may carry what identifies a hospital, a recorder or an operation. A figure on data of one source
  says little of another: evaluate on your own, with splits by patient and hospital.
- It was trained on video that may hold near copies of public test sets, unless these were searched for and
  left out before (`surgrec.curate --decontaminate.videos`).
- Clips of another size, length or frame rate than the model's are outside of what it was trained on.
"""


def plain_card(about: ModelAbout, part: Part, license: str | None = None) -> str:
    """Of what a model's files say."""
    return "\n\n".join([_head(about, part, license), USE])


def run_card(source: Source, part: Part, results: Path | None, license: str | None) -> str:
    """With the run's record, its recipe, and results of this model.

    results: a results.jsonl whose rows are of one model, this one. Raises WeightsError for rows of several,
    a file that cannot be used, or a licence of several lines.
    """
    parts = [_head(source.about, part, license), *_made(source)]
    if results is not None:
        parts.append(_results(results))
    return "\n\n".join([*parts, USE])


def _head(about: ModelAbout, part: Part, license: str | None) -> str:
    if license is not None and not (license.isprintable() and license.strip()):
        raise WeightsError(f"--license is {license!r}; it is one line of text, such as apache-2.0")
    lines = ["---", "library_name: surgrec", "pipeline_tag: feature-extraction"]
    # JSON is YAML, whatever a text has in it.
    lines += [] if license is None else [f"license: {json.dumps(license)}"]
    lines += ["tags:", "- video", "- surgery", "- self-supervised", "---"]
    model, data = about.pretraining["model"], about.pretraining["data"]
    rate = f"{data['fps']:g} frames/s" if data.get("fps") is not None else f"every {data['stride']}th frame"
    objective = "MAE" if about.pretraining["objective"] == "mae" else "JEPA"
    return "\n".join(
        [
            *lines,
            "",
            f"# SurgRec {objective}, ViT-{model['size']}",
            "",
            f"A video transformer pretrained on video without labels: {NAMES[part]} of {objective} after"
            f" {about.step:,} steps. It takes clips of {data['frames']} frames ({rate}) of"
            f" {data['size']} x {data['size']} pixels, and gives a token for each {model['tubelet']} x"
            f" {model['patch']} x {model['patch']} of them.",
            "",
            "```python",
            "from surgrec.hub import SurgRecModel",
            "",
            'model = SurgRecModel.from_pretrained("FOLDER or NAME")',
            "tokens = model.forward_features(clips)  # uint8, or 0..1, [B, T, S, S, 3] -> [B, N, D]",
            "```",
            "",
            f"Colours are normalised by the model (mean {model['mean']}, deviation {model['std']}). Weights:"
            f" `{about.identity}`.",
        ]
    )


def _made(source: Source) -> list[str]:
    """Data, training and recipe."""
    about = source.about
    found = pretraining_of(about, source.run, source.recipe, _plain)
    if found.data is None:
        known = f"index `{about.index_digest}`" if about.index_digest else "no digest"
        data = [f"The file that this was made from holds no record of a run: {known}."]
    else:
        data = [f"- {line}" for line in found.data]
        data += ["", "## Training", "", *(f"- {line}" for line in found.training)]
    recipe = ["## Recipe", ""]
    if not found.scheduled:
        recipe += ["The schedule is not in the file that this was made from; the model is:", ""]
    recipe += ["| entry | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in found.recipe)]
    return ["\n".join(["## Data", "", *data]), "\n".join(recipe)]


def _results(path: Path) -> str:
    try:
        rows = read_results(path)
    except ResultsError as error:
        raise WeightsError(str(error)) from error
    names = sorted({row.model for row in rows})
    if len(names) != 1:
        raise WeightsError(
            f"{path}: has rows of {', '.join(names) or 'no model'}; give a file of this model's rows alone"
        )
    return "# Results\n\n" + markdown(make_table(rows)).rstrip()


def _plain(text: str) -> str:
    """A text from a file as a cell of Markdown."""
    return markdown_cell(readable(text))
