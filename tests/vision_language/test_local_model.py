"""Models of transformers: tiny ones of five families, against a plain restatement of scoring and of greedy
writing; folders that cannot be asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from surgrec.configs.vlm import Kind, LocalConfig

from surgrec.vision_language import local_backend, model_files
from surgrec.vision_language.backend import BackendError, Failure, Request
from surgrec.vision_language.frames import Pictures
from surgrec.vision_language.local_backend import LocalBackend
from surgrec.vision_language.local_model import LocalModel
from surgrec.vision_language.model_files import find_model
from surgrec.vision_language.records import Question, Reply, Shown, Way
from surgrec.vision_language.target_scores import PREFIX_ONCE

CPU = LocalConfig(batch=2, device="cpu")
TARGETS = ("polyp", "no polyp", "bleeding of the mucosa", "A")
MOST = 5


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder_of(tiny_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """folder_of(family): of a tiny model."""

    @cache
    def made(family: str) -> Path:
        found = tiny_models.make_model(family, tmp_path_factory.mktemp(family))
        assert isinstance(found, Path)
        return found

    return made


def request_of(number: int, way: Way, count: int, text: str = "", system: str = "") -> Request:
    """A question about pictures of its own, of another size than others'."""
    text = text or "What does it show? " * (number + 1)
    question = Question(number, "plain", "names", (0, 1, 2, 3), system, text, TARGETS)
    height, width = 40 + 12 * number, 96 - 12 * number
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 256, (count, height, width, 3), np.uint8)
    seconds = tuple(0.4 * k for k in range(count))
    shown = Shown(tuple(range(count)), seconds, count, height, width, f"{number}/{count}")
    return Request(f"{number}/{way}", question, way, Pictures(shown, pixels))


def ask(local: LocalModel, requests: Sequence[Request]) -> dict[str, Reply | Failure]:
    found: dict[str, Reply | Failure] = {}

    def take(request: Request, answer: Reply | Failure) -> None:
        assert request.key not in found
        found[request.key] = answer

    LocalBackend(local, MOST).ask(iter(requests), take)
    assert found.keys() == {request.key for request in requests}
    return found


def alone(local: LocalModel, request: Request) -> dict[str, torch.Tensor]:
    """The inputs of one prompt, as transformers' own method makes them of a chat."""
    pictures = [Image.fromarray(frame) for frame in request.pictures.pixels]
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    if local.kind == "video":
        content = [{"type": "video", "video": request.pictures.pixels}]
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": request.question.text}]}]
    if request.question.system:
        system = [{"type": "text", "text": request.question.system}]
        chat.insert(0, {"role": "system", "content": system})
    more: dict[str, Any] = {}
    if local.kind == "video":
        count = len(pictures)
        metadata = {"total_num_frames": count, "fps": 2.5, "frames_indices": list(range(count))}
        more = {"do_sample_frames": False, "video_metadata": [metadata]}
    made = local.processor.apply_chat_template(
        chat,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=more,
    )
    return dict(made)


def extended(inputs: dict[str, torch.Tensor], tokens: Sequence[int]) -> dict[str, torch.Tensor]:
    """With tokens behind the prompt."""
    more = torch.tensor([list(tokens)])
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    if "mm_token_type_ids" in inputs:
        longer["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more)], 1)
    return longer


def plain_score(local: LocalModel, inputs: dict[str, torch.Tensor], target: str) -> tuple[float, int]:
    """The sum of log-softmax over the target's tokens, by one reading of prompt and target."""
    tokens = local.tokenizer(target, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = local.model(**extended(inputs, tokens), use_cache=False).logits[0].double()
    log_shares = logits.log_softmax(-1)
    first = inputs["input_ids"].shape[1] - 1
    return sum(float(log_shares[first + k, token]) for k, token in enumerate(tokens)), len(tokens)


def plain_writing(local: LocalModel, inputs: dict[str, torch.Tensor]) -> list[int]:
    """The likeliest token, again and again, without a cache."""
    written: list[int] = []
    while len(written) < MOST:
        longer = extended(inputs, written) if written else inputs
        with torch.no_grad():
            token = int(local.model(**longer, use_cache=False).logits[0, -1].argmax())
        written.append(token)
        if token == local.tokenizer.eos_token_id:
            break
    return written


CASES: list[tuple[str, Kind]] = [
    (family, kind)
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_next", "internvl")
    for kind in ("middle", "frames", "video")
    if (family, kind) != ("llava_next", "video")
]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_answers_are_those_of_the_plain_model(
    folder_of: Any, family: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = find_model(str(folder_of(family)), kind, CPU, with_weights=True)
    ways: tuple[Way, Way] = ("generate", "options")
    count = 1 if kind == "middle" else 4
    requests = [
        request_of(number, way, count, system="You are a surgeon." if number else "")
        for number in range(3)
        for way in ways
    ]
    answers = ask(local, requests)
    assert local.model.config.model_type in PREFIX_ONCE
    monkeypatch.setattr(local_backend, "PREFIX_ONCE", frozenset())
    by_each = ask(local, requests)
    seen = []
    for request in requests:
        answer, inputs = answers[request.key], alone(local, request)
        assert isinstance(answer, Reply)
        assert answer.prompt_tokens == inputs["input_ids"].shape[1]
        assert LocalBackend(local, MOST).tokens(request.question, request.pictures) == answer.prompt_tokens
        if request.way == "options":
            scores, lengths = zip(*(plain_score(local, inputs, each) for each in TARGETS), strict=True)
            np.testing.assert_allclose(answer.log_likelihoods, scores, rtol=1e-4, atol=1e-3)
            assert answer.tokens == lengths
            assert max(lengths) > 2
            whole = by_each[request.key]
            assert isinstance(whole, Reply)
            np.testing.assert_allclose(whole.log_likelihoods, scores, rtol=1e-4, atol=1e-3)
            seen.append(scores)
        else:
            written = plain_writing(local, inputs)
            assert answer.text == local.tokenizer.decode(written, skip_special_tokens=True)
            assert answer.reply_tokens == len(written)
            assert answer.finish == ("stop" if written[-1] == local.tokenizer.eos_token_id else "length")
    # What is compared depends on the pictures and the question.
    assert min(np.abs(np.subtract(a, b)).max() for k, a in enumerate(seen) for b in seen[:k]) > 0.01


def test_the_picture_decides(folder_of: Any) -> None:
    local = find_model(str(folder_of("qwen2_vl")), "middle", CPU, with_weights=True)
    request = request_of(1, "options", 1)
    black = replace(request.pictures, pixels=np.zeros_like(request.pictures.pixels))
    one, two = (ask(local, [each])["1/options"] for each in (request, replace(request, pictures=black)))
    assert isinstance(one, Reply)
    assert isinstance(two, Reply)
    assert np.abs(np.subtract(one.log_likelihoods, two.log_likelihoods)).max() > 0.01


def test_writing_ends_at_the_end_token(folder_of: Any) -> None:
    local = find_model(str(folder_of("qwen2_vl")), "middle", CPU, with_weights=True)
    request = request_of(0, "generate", 1)
    free = plain_writing(local, alone(local, request))
    local.model.generation_config.eos_token_id = free[2]
    reply = ask(local, [request])["0/generate"]
    at = free.index(free[2])
    assert reply == Reply(
        local.tokenizer.decode(free[:at], skip_special_tokens=True),
        (),
        (),
        "stop",
        reply.prompt_tokens,
        at + 1,
    )


def test_sampling_and_penalties_of_the_model_are_left_out(folder_of: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of("qwen2_vl"), folder)
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "top_k": 3}
    (folder / "generation_config.json").write_text(json.dumps(config))
    requests = [request_of(number, "generate", 1) for number in range(3)]
    found = [
        ask(find_model(str(each), "middle", CPU, with_weights=True), requests)
        for each in (folder, folder_of("qwen2_vl"))
    ]
    assert found[0] == found[1]


def test_context_overflow_is_named(folder_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    local = find_model(str(folder_of("qwen2_vl")), "middle", CPU, with_weights=True)
    short = request_of(0, "generate", 1)
    long = request_of(1, "generate", 1, text="What does it show? " * 400)
    scored = request_of(1, "options", 1, text="What does it show? " * 2000)
    answers = ask(local, [short, long, scored])
    assert isinstance(answers["0/generate"], Reply)
    monkeypatch.setattr(local.model.config.get_text_config(), "max_position_embeddings", 1000)
    again = ask(local, [short, long, scored])
    assert again["0/generate"] == answers["0/generate"]
    for key, more in (("1/generate", MOST), ("1/options", 5)):
        failure = again[key]
        assert isinstance(failure, Failure)
        assert not failure.passes
        assert failure.reason.startswith("context overflow: ")
        assert failure.reason.endswith(f" tokens and {more} to come, the model takes 1000")


def test_folders_that_cannot_be_asked(folder_of: Any, tiny_models: ModuleType, tmp_path: Path) -> None:
    whole = folder_of("qwen2_vl")

    def changed(name: str) -> Path:
        shutil.copytree(whole, tmp_path / name)
        return tmp_path / name

    silent = tiny_models.make_model("qwen2_vl", tmp_path / "silent", chat=False)
    plain = changed("plain")
    for path in (*plain.glob("*processor*"), plain / "chat_template.jinja"):
        path.unlink(missing_ok=True)
    lacking = changed("lacking")
    tensors = load_file(lacking / "model.safetensors")
    name = sorted(tensors)[0]
    save_file(
        {key: value for key, value in tensors.items() if key != name},
        lacking / "model.safetensors",
        {"format": "pt"},
    )
    torn = changed("torn")
    with (torn / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    foreign = changed("foreign")
    config = json.loads((foreign / "config.json").read_text())
    config |= {"model_type": "of_its_own", "auto_map": {"AutoModelForImageTextToText": "code.Model"}}
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for folder, text in (
        (silent, "has no chat template"),
        (plain, "processor"),
        (lacking, "1 of its weights are lacking or of another shape"),
        (torn, "cannot be loaded"),
        (foreign, "cannot be loaded"),
    ):
        local = find_model(str(folder), "middle", CPU, with_weights=True)
        with pytest.raises(BackendError, match=text) as caught:
            ask(local, [request_of(0, "generate", 1)])
        assert f"hf:{folder}" in str(caught.value)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(BackendError, match=r"takes no videos; give --look\.kind frames"):
        ask(find_model(str(folder_of("llava_next")), "video", CPU, True), [request_of(0, "generate", 4)])
    with pytest.raises(BackendError, match=r"a folder without config\.json or"):
        find_model(str(tmp_path), "middle", CPU, with_weights=True)


def test_what_tells_models_apart(folder_of: Any, tmp_path: Path) -> None:
    whole = folder_of("qwen2_vl")
    shutil.copytree(whole, tmp_path / "copy")
    weights = [find_model(str(folder), "middle", CPU, True).weights for folder in (whole, tmp_path / "copy")]
    assert weights[0] == weights[1]
    template = tmp_path / "copy" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert find_model(str(tmp_path / "copy"), "middle", CPU, True).weights != weights[0]


def test_pictures_that_the_processor_refuses(folder_of: Any) -> None:
    """One of another shape than it takes fails alone; where no other is answered, nothing goes on."""
    local = find_model(str(folder_of("qwen2_vl")), "middle", CPU, with_weights=True)
    fine, odd = request_of(0, "options", 1), request_of(1, "options", 1)
    shown = replace(odd.pictures.shown, height=1, width=900)
    odd = replace(odd, pictures=Pictures(shown, np.zeros((1, 1, 900, 3), np.uint8)))
    for order in ([fine, odd], [odd, fine]):
        answers = ask(local, order)
        assert answers["0/options"] == ask(local, [fine])["0/options"]
        failure = answers["1/options"]
        assert isinstance(failure, Failure)
        assert failure.reason.startswith("pictures refused: absolute aspect ratio")
        assert not failure.passes
    with pytest.raises(BackendError, match=r"its processor refuses the pictures \(absolute aspect ratio"):
        ask(local, [odd])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_videos_of_few_frames(folder_of: Any, family: str) -> None:
    """Two, three and four; one is no video to some processors, which fails by name."""
    local = find_model(str(folder_of(family)), "video", CPU, with_weights=True)
    answers = ask(local, [request_of(number, "options", number + 2) for number in range(3)])
    assert all(isinstance(answer, Reply) for answer in answers.values())
    lone = ask(local, [request_of(0, "options", 2), request_of(1, "options", 1)])["1/options"]
    assert isinstance(lone, Reply) or lone.reason.startswith("pictures refused: t:1 must be larger")


def test_templates_that_do_not_take_a_prompt(folder_of: Any) -> None:
    local = find_model(str(folder_of("qwen2_vl")), "middle", CPU, with_weights=True)
    request = request_of(0, "generate", 1, system="You are a surgeon.")
    whole = local.processor.chat_template
    for template, text in (
        (
            whole.replace(
                "{% for part", "{% if message.role == 'system' %}{% continue %}{% endif %}{% for part"
            ),
            "leaves out the system message of prompt 'plain'",
        ),
        (whole.replace("{{ part.text }}", "{{ part.text[:9] }}"), "leaves out the text of prompt 'plain'"),
        ("{{ raise_exception('no system here') }}", r"refuses prompt 'plain' \(no system here"),
    ):
        local.processor.chat_template = template
        with pytest.raises(BackendError, match=text):
            ask(local, [request])
    local.processor.chat_template = whole
    assert isinstance(ask(local, [request])["0/generate"], Reply)


def test_models_of_the_hub(folder_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known by their commit; a dry run fetches no weights, and nothing fetches pickles."""
    commit = tmp_path / ("c" * 40)
    shutil.copytree(folder_of("qwen2_vl"), commit)
    wanted = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        wanted.append((name, allow_patterns))
        if name == "some/model":
            return str(commit)
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot reach the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    for with_weights in (True, False):
        local = find_model("some/model", "middle", CPU, with_weights)
        assert local.weights == f"commit {'c' * 40}"
        name, patterns = wanted.pop()
        assert name == "some/model"
        assert ("*.safetensors" in patterns) == with_weights
        assert not any(each.endswith((".bin", ".pt", ".py")) for each in patterns)
    with pytest.raises(BackendError, match="the hub does not give it"):
        find_model("no/model", "middle", CPU, with_weights=True)


def test_control_tokens_in_a_question_are_refused(folder_of: Any) -> None:
    local = find_model(str(folder_of("qwen2_vl")), "middle", CPU, with_weights=True)
    with pytest.raises(BackendError, match=r"prompt 'plain' holds '<\|image_pad\|>', a control token"):
        ask(local, [request_of(0, "generate", 1, text="What is <|image_pad|>?")])


def test_weights_that_give_no_numbers(folder_of: Any, tmp_path: Path) -> None:
    folder = tmp_path / "nan"
    shutil.copytree(folder_of("qwen2_vl"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackendError, match="gives log-likelihoods that are not finite"):
        ask(find_model(str(folder), "middle", CPU, True), [request_of(0, "options", 1)])


def test_answers_behind_a_prompt(folder_of: Any) -> None:
    """As the tokenizer has them there: with a space before them, but behind white space."""
    local = find_model(str(folder_of("qwen2_vl")), "middle", CPU, with_weights=True)
    behind, bare, spaced = (
        local.continuation("assistant:", "polyp"),
        local.continuation("assistant\n", "polyp"),
        local.tokenizer(" polyp").input_ids,
    )
    assert behind == spaced
    assert bare == local.tokenizer("polyp").input_ids
    assert bare != behind


def test_old_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, fine in (
        ("4.57.1", False),
        ("5.5.0", False),
        ("5.6.0.dev0", True),
        ("5.24.0", True),
        ("6.0", True),
    ):
        monkeypatch.setattr(model_files, "version", lambda name, found=found: found)
        if fine:
            model_files.check_transformers()
            continue
        with pytest.raises(
            BackendError, match=rf"transformers {found} misplaces .*; 5\.6 or later is needed"
        ):
            model_files.check_transformers()
    monkeypatch.setattr(model_files, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pip install 'surgrec\[vlm\]'"):
        model_files.check_transformers()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_precision_and_spreading(folder_of: Any, dtype: Any) -> None:
    options = LocalConfig(batch=2, device="spread", dtype=dtype)
    if torch.cuda.is_available():
        options = replace(options, device="cpu")
    local = find_model(str(folder_of("qwen2_vl")), "middle", options, with_weights=True)
    backend = LocalBackend(local, MOST)
    assert backend.settings["dtype"] == dtype
    assert backend.settings["device"] == "cpu"
    assert next(local.model.parameters()).dtype == getattr(torch, dtype)
    assert isinstance(ask(local, [request_of(0, "options", 1)])["0/options"], Reply)
