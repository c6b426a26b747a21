"""What a vision-language model is asked: wordings from YAML files, filled with the classes of a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

from surgrec.configs.yaml_io import ConfigError, from_plain, load_yaml
from surgrec.evaluation.manifest import SplitManifest
from surgrec.evaluation.registry_classes import SetWords, words_from_plain
from surgrec.vision_language.option_order import Order, most_orders, orders_of
from surgrec.vision_language.prompt_set import (
    Family,
    ParserName,
    Prompt,
    PromptError,
    PromptSet,
    almost_field,
    fields_of,
)
from surgrec.vision_language.records import Question, Style
from surgrec.vision_language.wording import class_words, question_of

SHIPPED: Final = ("default", "default-names", "default-plain", "release")
_TEXT_FIELDS: Final = ("subject", "domain", "options", "reply")
_OPTION_FIELDS: Final = ("letter", "name", "definition")
_SET_FIELDS: Final = ("subject", "domain")


@dataclass(frozen=True)
class _File:
    """The entries of a file but `datasets`; None for what it leaves to the file that it extends."""

    extends: str = ""
    style: Style | None = None
    order: Literal["drawn", "fixed"] | None = None
    names: Literal["words", "raw"] | None = None
    parser: ParserName | None = None
    families: tuple[Family, ...] = ("neutral", "expert", "definitions")
    prompts: tuple[Prompt, ...] = ()


def load_prompts(path_or_name: str | Path) -> PromptSet:
    """The prompts of a YAML file, or those of SHIPPED by name.

    Raises PromptError naming the file, the entry and the remedy.
    """
    return _load(path_or_name, None, ())


def _load(path_or_name: str | Path, beside: Path | None, trail: tuple[Path, ...]) -> PromptSet:
    path = _path_of(path_or_name, beside)
    if path in trail:
        raise PromptError(f"{path}: extends itself, by {' and '.join(map(str, trail))}; end the circle")
    try:
        document = load_yaml(path)
        if not isinstance(document, dict):
            raise ConfigError(f"{path} is not a group of entries; docs/vlm.md shows one")
        own = words_from_plain(document.get("datasets", {}), "datasets")
        rest = {key: value for key, value in document.items() if key != "datasets"}
        entries = from_plain(_File, rest, "prompts")
    except ConfigError as error:
        text = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise PromptError(f"{text}; correct the file") from error
    if entries.extends:
        base = _load(entries.extends, path.parent, (*trail, path))
    else:
        base = PromptSet("", ())
    own_names = {prompt.name for prompt in entries.prompts}
    kept = tuple(prompt for prompt in base.prompts if prompt.name not in own_names)
    found = PromptSet(
        path.stem,
        tuple(prompt for prompt in kept + entries.prompts if prompt.family in entries.families),
        entries.style or base.style,
        entries.order or base.order,
        entries.names or base.names,
        entries.parser or base.parser,
        _merged(own, base.datasets),
    )
    _check(found, path)
    return found


def _merged(own: Mapping[str, SetWords], base: Mapping[str, SetWords]) -> dict[str, SetWords]:
    found = dict(base)
    for key, words in own.items():
        under = base.get(key, SetWords())
        found[key] = SetWords(
            words.subject or under.subject,
            words.domain or under.domain,
            {**under.classes, **words.classes},
        )
    return found


def _path_of(path_or_name: str | Path, beside: Path | None) -> Path:
    path = Path(path_or_name).expanduser()
    if beside is not None and (beside / path).is_file():
        return (beside / path).resolve()
    if path.is_file():
        return path.resolve()
    if str(path_or_name) in SHIPPED:
        return Path(str(files("surgrec.configs").joinpath("prompts", f"{path_or_name}.yaml"))).resolve()
    raise PromptError(
        f"{path_or_name}: no such file of prompts, and none of those that come along:"
        f" {', '.join(SHIPPED)}; check --prompts"
    )


def _check(found: PromptSet, path: Path) -> None:
    """Raises PromptError for what would ask nothing, or something else than what is written."""
    if ":" in path.stem:
        raise PromptError(f"{path}: results name the file, and a colon separates it from a prompt; rename it")
    if not found.prompts:
        raise PromptError(f"{path}: holds no prompt of the families that it keeps; write one")
    if len(found.by_name) < len(found.prompts):
        raise PromptError(f"{path}: two prompts have one name; give each its own")
    for prompt in found.prompts:
        option, reply = prompt.option.of(found.style), prompt.reply.of(found.style)
        where = f"{path}: prompt {prompt.name!r}"
        if not prompt.name or not prompt.text.strip() or not option.strip() or not reply.strip():
            raise PromptError(
                f"{where}: needs name, text, and option and reply for style {found.style}; write them"
            )
        for part, template, known in (
            ("text", prompt.text, _TEXT_FIELDS),
            ("option", option, _OPTION_FIELDS),
            ("system", prompt.system, _SET_FIELDS),
            ("reply", reply, _SET_FIELDS),
        ):
            strange = sorted(fields_of(template) - set(known))
            if strange:
                raise PromptError(f"{where}: {part} has {{{strange[0]}}}; known are {', '.join(known)}")
            almost = almost_field(template)
            if almost:
                raise PromptError(
                    f"{where}: {part} has {almost!r}, which is no field; write it as {{subject}}"
                )
        needed = "letter" if found.style == "letters" else "name"
        if "options" not in fields_of(prompt.text) or needed not in fields_of(option):
            raise PromptError(
                f"{where}: the text must hold {{options}}, and an option {{{needed}}}, or nothing can be"
                " chosen; add them"
            )


def questions(
    prompts: PromptSet,
    manifest: SplitManifest,
    rows: Iterable[int],
    *,
    permutations: int,
    seed: int,
    content_free: bool,
) -> Iterator[Question]:
    """All that is asked of some rows of a manifest, row by row.

    permutations: orders of the options in which every wording is asked of every row; orders are drawn by
    seed and row, and are the same for all wordings. content_free: ask every wording once more in each order
    that occurred, of no row, after all others. Raises PromptError at once, before the first question.
    """
    asked = tuple(rows)
    count = len(manifest.classes)
    most = 1 if prompts.order == "fixed" else most_orders(count)
    if not 1 <= permutations <= most:
        why = "its order is fixed" if prompts.order == "fixed" else f"there are {count} options"
        raise PromptError(
            f"{permutations} permutations with the prompts {prompts.name}, and {why}: 1 to {most} are"
            " possible"
        )
    words, classes = class_words(prompts, manifest)
    for prompt in prompts.prompts:
        lacking = [
            raw
            for raw, each in zip(manifest.classes, classes, strict=True)
            if not each.definition and "definition" in fields_of(prompt.option.of(prompts.style))
        ]
        if lacking:
            raise PromptError(
                f"{manifest.dataset}: the prompt {prompt.name!r} gives definitions, and there is none of"
                f" {', '.join(map(repr, lacking[:5]))}; write them under `datasets` in a file of prompts that"
                " extends this one, or take --prompts default-plain"
            )

    def orders(row: int) -> list[Order]:
        if prompts.order == "fixed":
            return [tuple(range(count))]
        return orders_of(row, count, permutations, seed)

    def ask() -> Iterator[Question]:
        seen: dict[Order, None] = {}
        for row in asked:
            own = orders(row)
            seen |= dict.fromkeys(own)
            for prompt in prompts.prompts:
                for order in own:
                    yield question_of(prompts, prompt, words, classes, order, row)
        if content_free:
            for prompt in prompts.prompts:
                for order in seen:
                    yield question_of(prompts, prompt, words, classes, order, None)

    return ask()
