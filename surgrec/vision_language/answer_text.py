"""What of a model's text is its answer: without thoughts, repeated prompts, marks of Markdown, and JSON."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, Final

READ: Final = 4_000
"""Characters at the beginning and at the end of an answer that are read."""

_THOUGHT_END: Final = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_THOUGHT_BEGIN: Final = re.compile(r"<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_SPEAKER: Final = re.compile(
    r"(?:<\|im_start\|>\s*assistant|<\|assistant\|>|\[/INST\]|(?m:^)\s*assistant\s*:?\s*\n|(?m:^)\s*ASSISTANT\s*:)"
)
_TOKEN: Final = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<(?:eos|bos|end_of_turn|pad|unk)>")
_TAG: Final = re.compile(r"</?(?:[a-z]|[A-Za-z][A-Za-z0-9_-]{1,20})\s*/?>")
_TEX: Final = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_FENCE: Final = re.compile(r"```[A-Za-z0-9_-]*\n?|~~~[A-Za-z0-9_-]*\n?")
_MARK: Final = re.compile(
    r"(?m)\*+|`+|(?<!\w)_{1,3}(?=\S)|(?<=\S)_{1,3}(?!\w)|^\s{0,3}#{1,6}\s+|^\s{0,3}>\s?|\$+"
)

_KEYS: Final = (
    *("final_answer", "answer", "correct_answer", "choice", "option", "selected_option", "letter", "label"),
    *("class", "category", "classification", "prediction", "predicted_class", "result", "response", "output"),
)
_ENTRY: Final = re.compile(rf'["\'](?:{"|".join(_KEYS)})["\']\s*:\s*["\']?([^"\'}}\n]*)', re.IGNORECASE)


def answer_of(text: str, prompt: str) -> str:
    """The answer in a text, empty where there is none. prompt: what the model was asked; some repeat it."""
    text = unicodedata.normalize("NFKC", text).replace("\u200b", "").replace("\ufeff", "")
    text = _without_thoughts(text)
    if len(text) > 2 * READ:
        text = f"{text[:READ]}\n{text[-READ:]}"
    text = _SPEAKER.split(text)[-1]
    text = _TOKEN.sub(" ", text)
    text = _without_prompt(text.strip(), unicodedata.normalize("NFKC", prompt))
    found = _from_json(text)
    text = text if found is None else found
    text = _FENCE.sub("", text)
    while _TEX.search(text):
        text = _TEX.sub(r"\1", text)
    text = _TAG.sub(" ", text)
    return _MARK.sub("", text).strip().strip("\"'“”„«»").strip()


def _without_thoughts(text: str) -> str:
    """What follows thoughts, or what comes before them where nothing does. Those without an end are no
    answer; some templates leave their beginning out."""
    begin = _THOUGHT_BEGIN.search(text)
    ends = [end.end() for end in _THOUGHT_END.finditer(text)]
    if ends and text[ends[-1] :].strip():
        text = text[ends[-1] :]
        begin = _THOUGHT_BEGIN.search(text)
    elif ends and begin is None:
        return ""
    return text[: begin.start()] if begin else text


def _without_prompt(text: str, prompt: str) -> str:
    """Without the prompt, whole, or as far as it was repeated, or its lines where two or more are there."""
    if prompt and prompt in text:
        return text.rsplit(prompt, 1)[1].strip()
    if len(text.split()) >= 4 and prompt.startswith(text):
        return ""
    own = {line.strip() for line in prompt.splitlines() if line.strip()}
    lines = text.splitlines()
    repeated = [line for line in lines if line.strip() in own]
    if len(repeated) < 2:
        return text
    return "\n".join(line for line in lines if line.strip() not in own).strip()


def _from_json(text: str) -> str | None:
    """The answer that an object or list holds, also where its end is missing; None where there is none."""
    bare = _FENCE.sub("", text).strip()
    begin = min((at for at in (bare.find("{"), bare.find("[")) if at >= 0), default=-1)
    if begin >= 0:
        try:
            value, _ = json.JSONDecoder().raw_decode(bare[begin:])
        except (ValueError, RecursionError):
            pass
        else:
            found = _value(value)
            if found is not None:
                return found
    entries = _ENTRY.findall(bare)
    return entries[-1].strip() if len(entries) == 1 else None


def _value(value: Any) -> str | None:
    if isinstance(value, list):
        return _value(value[0]) if len(value) == 1 else None
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return None
    lowered = {str(key).casefold().replace(" ", "_"): item for key, item in value.items()}
    for key in _KEYS:
        if key in lowered:
            return _value(lowered[key])
    return _value(next(iter(value.values()))) if len(value) == 1 else None
