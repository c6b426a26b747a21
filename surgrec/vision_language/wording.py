"""A wording with the classes of a data set in it: the text of a question."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

from surgrec.evaluation.manifest import SplitManifest
from surgrec.evaluation.registry_classes import ClassWords, SetWords, words_of
from surgrec.vision_language.option_mentions import words_in
from surgrec.vision_language.option_order import Order
from surgrec.vision_language.prompt_set import Prompt, PromptError, PromptSet, filled
from surgrec.vision_language.records import Question


def class_words(prompts: PromptSet, manifest: SplitManifest) -> tuple[SetWords, tuple[ClassWords, ...]]:
    """The data set in words, and its classes by label, as these prompts show them.

    Raises PromptError where two classes read the same, or an answer could not name one.
    """
    subject, classes = words_of(manifest.dataset, manifest.classes, prompts.datasets)
    if prompts.names == "raw":
        classes = tuple(
            replace(words, name=name, synonyms=(words.name, *words.synonyms))
            for words, name in zip(classes, manifest.classes, strict=True)
        )
    seen: dict[str, str] = {}
    for words, raw in zip(classes, manifest.classes, strict=True):
        key = unicodedata.normalize("NFKC", words.name).casefold()
        if prompts.style == "names":  # answers are read by letters and digits alone
            key = "".join(words_in(key))
        if not key:
            raise PromptError(
                f"{manifest.dataset}: the class {raw!r} is shown as {words.name!r}, which has no letter that"
                " an answer could name it by; give it a `name` under `datasets` in a file of prompts, or take"
                " lettered options"
            )
        if key in seen:
            raise PromptError(
                f"{manifest.dataset}: the classes {seen[key]!r} and {raw!r} are both shown"
                f" as {words.name!r}, or differ in signs alone, which answers are not read by; give one"
                " another `name` under `datasets` in a file of prompts"
            )
        seen[key] = raw
    return subject, classes


def letter_of(position: int) -> str:
    """Of an option: A to Z, then AA, AB and so on, as columns of a spreadsheet."""
    letters = ""
    position += 1
    while position:
        position, digit = divmod(position - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return letters


def question_of(
    prompts: PromptSet,
    prompt: Prompt,
    words: SetWords,
    classes: tuple[ClassWords, ...],
    order: Order,
    row: int | None,
) -> Question:
    """A wording of `prompts` with the options in an order; words, classes: as class_words gives them."""
    letters = [letter_of(position) for position in range(len(order))]
    template = prompt.option.of(prompts.style)
    options = [
        filled(template, {"letter": letter, "name": classes[k].name, "definition": classes[k].definition})
        for letter, k in zip(letters, order, strict=True)
    ]
    of_set = {"subject": words.subject, "domain": words.domain}
    reply = filled(prompt.reply.of(prompts.style), of_set)
    values = {**of_set, "options": "\n".join(options), "reply": reply}
    targets = letters if prompts.style == "letters" else [classes[k].name for k in order]
    return Question(
        row,
        prompt.name,
        prompts.style,
        order,
        filled(prompt.system, of_set).strip(),
        filled(prompt.text, values).strip(),
        tuple(targets),
    )
