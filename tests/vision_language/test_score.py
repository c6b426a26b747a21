"""From a scripted server to results: answerers of whom it is known what they should get, and bad input."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from surgrec.configs.vlm import ScoreConfig

from surgrec.benchmark import main as benchmark
from surgrec.demo_data.encode import write_h264
from surgrec.evaluation.manifest import Row, SplitManifest, write_manifest
from surgrec.evaluation.results import append_result, read_documents, read_results
from surgrec.vision_language.prompts import load_prompts, questions
from surgrec.vision_language.records import Asked, Reply
from surgrec.vision_language.scoring import score
from surgrec.vision_language.store import About, AnswerStore
from surgrec.vlm import main

SHADES = {"black": 16, "dark": 90, "light": 165, "white": 235}
CLASSES = tuple(SHADES)
GREY = 128
TEST = range(8, 20)
"""Rows of test: three clips of each class, in six groups."""
PROMPTS = """
style: letters
prompts:
  - {name: plain, text: "Which shade?\\n{options}\\n{reply}", reply: {letters: A letter., names: A name.}}
  - name: expert
    family: expert
    system: You know shades.
    text: "Name the shade.\\n{options}\\n{reply}"
    option: {letters: "({letter}) {name}", names: "{name}"}
    reply: {letters: The letter., names: The name.}
  - name: defined
    family: definitions
    text: "{options}\\nWhich?\\n{reply}"
    option: {letters: "{letter}) {name} = {definition}", names: "{name}"}
    reply: {letters: The letter., names: The name.}
datasets:
  shades:
    subject: shade
    classes:
      black: {definition: no light}
      dark: {definition: little light}
      light: {definition: much light}
      white: {definition: all light}
"""


@dataclass(frozen=True)
class Shades:
    root: Path
    manifest: Path
    prompts: Path


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Shades:
    """A video of one shade for each class; 8 rows of train, 12 of test, of which one video is gone."""
    root = tmp_path_factory.mktemp("shades")
    for name, value in SHADES.items():
        picture = np.full((64, 64, 3), value, np.uint8)
        write_h264(root / f"{name}.mp4", (picture for _ in range(30)), 10)
    rows = [Row(f"{CLASSES[k % 4]}.mp4", k % 4, "train", f"t{k // 2}", 0.0, 3.0) for k in range(8)]
    rows += [
        Row(f"{CLASSES[k % 4]}.mp4", k % 4, "test", f"g{k // 2}", 0.5 * (k // 4), 1.0 + 0.5 * (k // 4))
        for k in range(12)
    ]
    rows.append(Row("gone.mp4", 0, "test", "lost"))
    write_manifest(root / "split.json", SplitManifest("shades", CLASSES, tuple(rows)))
    (root / "prompts.yaml").write_text(PROMPTS)
    return Shades(root, root / "split.json", root / "prompts.yaml")


def shown(payload: dict[str, Any]) -> int | None:
    """The class of the picture, None for the one without content."""
    urls = [part["image_url"]["url"] for part in payload["messages"][-1]["content"] if "image_url" in part]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(urls[0].partition(",")[2]))))
    value = float(pixels.mean())
    if abs(value - GREY) < 10:
        return None
    return int(np.argmin([abs(value - shade) for shade in SHADES.values()]))


def places(text: str) -> dict[int, str]:
    """Letter of each class in a question."""
    found = {}
    for line in text.splitlines():
        for number, name in enumerate(CLASSES):
            bare = line.strip().lstrip("(")
            if name in line.split("=")[0].split() and bare[:1] in "ABCD":
                found[number] = bare[0]
    assert len(found) == 4
    return found


Answerer = Callable[[int | None, dict[int, str]], str]
ANSWERERS: dict[str, Answerer] = {
    "oracle": lambda label, letters: letters[label or 0],
    "constant": lambda label, letters: letters[2],
    "biased": lambda label, letters: "C",
}


def ask(shades: Shades, scripted: ModuleType, answerer: Answerer, out: Path, *more: str) -> tuple[int, int]:
    """Runs the command against a server; its exit status and how many requests there were."""

    def script(payload: dict[str, Any], number: int) -> Any:
        said = answerer(shown(payload), places(scripted.text_of(payload)))
        if not payload.get("logprobs"):
            return scripted.Action(body=scripted.completion(f"**Answer: {said}**"))
        top = [{"token": each, "logprob": math.log(0.7 if each == said else 0.1)} for each in "ABCD"]
        logprobs = {"content": [{"token": said, "top_logprobs": top}]}
        return scripted.Action(body=scripted.completion(said, logprobs=logprobs))

    given = ["run", "--manifest", str(shades.manifest), "--data-root", str(shades.root), "--workers", "1"]
    given += ["--model", "api:scripted", "--prompts", str(shades.prompts), "--permutations", "4"]
    with scripted.serve(script) as server:
        status = main([*given, "--out", str(out), "--endpoint.url", server.url, *more])
        return status, len(server.seen)


def scored(shades: Shades, store: Path, out: Path, *more: str) -> dict[str, dict[str, Any]]:
    """Documents by mode."""
    given = ["score", str(store), "--manifest", str(shades.manifest), "--prompts", str(shades.prompts)]
    assert main([*given, "--out", str(out), "--resamples", "100", *more]) == 0
    return {document["mode"]: document for document in read_documents(out)}


def values(document: dict[str, Any]) -> dict[str, float]:
    return {name: figure["value"] for name, figure in document["figures"].items()}


EXPECTED = {
    "oracle": {"accuracy": 1.0, "order_consistency": 1.0, "position_bias": 0.0, "ece": 0.3},
    "constant": {"accuracy": 0.25, "order_consistency": 1.0, "position_bias": 0.0, "ece": 0.45},
    "biased": {"accuracy": 0.25, "order_consistency": 0.0, "position_bias": 0.75, "ece": 0.45},
}


@pytest.mark.parametrize("name", ANSWERERS)
def test_answerers_get_what_they_should(
    shades: Shades,
    scripted: ModuleType,
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, out = tmp_path / "answers.jsonl", tmp_path / "results.jsonl"
    status, requests = ask(shades, scripted, ANSWERERS[name], store)
    assert status == 0
    rows, wordings, orders = 12, 3, 4
    grey = requests - 2 * rows * wordings * orders
    assert grey % wordings == 0
    assert 4 <= grey // wordings <= 16  # the orders that occurred
    capsys.readouterr()
    found = scored(shades, store, out)
    printed = capsys.readouterr()
    assert "missing: gone.mp4: clip unreadable" in printed.err
    rules = ("generate", "sum", "length", "prior")
    assert list(found) == [
        mode for rule in rules for mode in (
            f"vlm-{rule}-prompts", *(f"vlm-{rule}-prompts:{each}" for each in ("plain", "expert", "defined"))
        )
    ]  # fmt: skip
    expected = EXPECTED[name]
    same = {
        "accuracy": expected["accuracy"],
        "accuracy_parsed": expected["accuracy"],
        "parse_failure_rate": 0.0,
        "prompt_min": expected["accuracy"],
        "prompt_max": expected["accuracy"],
        "prompt_sd": 0.0,
        "flip_rate": 0.0,
        "order_consistency": expected["order_consistency"],
        "position_bias": expected["position_bias"],
    }
    for rule in ("generate", "sum", "length"):
        document = found[f"vlm-{rule}-prompts"]
        own = same if rule == "generate" else same | {"ece": expected["ece"]}
        assert values(document) == pytest.approx(own)
        assert document["rows"]["test"] == {"read": 12, "of": 13}
        assert document["test_groups"] == 6
        chosen = document["positions"]["chosen"]
        assert chosen == ([0, 0, 144, 0] if name == "biased" else [36] * 4)
        assert document["positions"]["expected"] == pytest.approx([36] * 4)
        assert document["baselines"]["majority"]["accuracy"]["value"] == 0.25
        assert document["trained_parameters"] == 0
    # Without content the answerers like what they like anyway: nothing is left of it but for the oracle.
    prior = values(found["vlm-prior-prompts"])
    if name == "oracle":  # it takes the grey picture for class 0, which the prior then holds against it
        assert prior["accuracy"] == 0.75
        assert prior["parse_failure_rate"] == 0.25
    else:  # all options are equally likely then, and none is chosen
        assert prior["parse_failure_rate"] == 1.0
        assert prior["accuracy"] == 0.0
        assert "accuracy_parsed" not in prior
    one = found["vlm-generate-prompts:expert"]
    assert one["family"] == "expert"
    assert one["classes"] == [*CLASSES, "unparsed"]
    assert [row for row, _ in one["predictions"]] == list(TEST)
    if name != "biased":
        assert [label for _, label in one["predictions"]] == [
            row % 4 if name == "oracle" else 2 for row in TEST
        ]
        assert values(one)["accuracy"] == expected["accuracy"]
    # Asking again changes nothing, and scores of the same answers are the same.
    assert ask(shades, scripted, ANSWERERS[name], store) == (0, 0)
    again = scored(shades, store, tmp_path / "again.jsonl")
    assert [values(each) for each in again.values()] == [values(each) for each in found.values()]


def write_store(path: Path, shades: Shades, answer: Callable[[Any], str], **about: Any) -> None:
    """Free answers to all questions about the rows of test that can be read."""
    from surgrec.evaluation.manifest import read_manifest

    manifest = read_manifest(shades.manifest)
    facts: dict[str, Any] = {"dataset": "shades", "manifest_digest": manifest.digest, "split": "test"}
    facts |= {"model": "hf:made", "settings": {}} | about
    asked = questions(
        load_prompts(shades.prompts), manifest, TEST, permutations=2, seed=0, content_free=False
    )
    with AnswerStore(path, About(**facts)) as store:
        for number, question in enumerate(asked):
            store.add(Asked(question, "generate", Reply(answer(question))), str(number))


def test_beside_probes_on_the_same_rows_and_compared(
    shades: Shades, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the answers name no class: they are wrong, and remain so beside a probe and in `compare`."""
    store, out, probes = (tmp_path / name for name in ("answers.jsonl", "results.jsonl", "probes.jsonl"))
    write_store(
        store, shades, lambda q: "I cannot tell." if q.row % 4 < 2 else q.targets[q.order.index(q.row % 4)]
    )
    found = scored(shades, store, out)
    together = values(found["vlm-generate-prompts"])
    assert (together["accuracy"], together["accuracy_parsed"], together["parse_failure_rate"]) == (
        0.5,
        1.0,
        0.5,
    )
    assert found["vlm-generate-prompts"]["reasons"] == {"letter": 36, "refusal": 36}
    one = found["vlm-generate-prompts:plain"]
    assert one["confusion"] == [[0, 0, 0, 0, 3], [0, 0, 0, 0, 3], [0, 0, 3, 0, 0], [0, 0, 0, 3, 0], [0] * 5]
    assert one["per_class"][4] == {"class": "unparsed", "recall": None, "auroc": None}
    assert [each["recall"]["value"] for each in one["per_class"][:4]] == [0, 0, 1, 1]
    assert values(one)["macro_f1"] == 0.5  # (0 + 0 + 1 + 1) / 4: no answer is no class
    # A probe that is right for classes 0 to 2, on more rows than the model was asked about; and one on fewer.
    probe = {
        **found["vlm-generate-prompts:plain"],
        "model": "mae", "mode": "probe-linear", "classes": list(CLASSES),
        "rows": {"test": {"read": 13, "of": 13}},
        "per_class": [{"class": name, "recall": None, "auroc": None} for name in CLASSES],
        "confusion": [],
        "predictions": [[row, min(row % 4, 2)] for row in (*TEST, 20)],
    }  # fmt: skip
    append_result(probes, probe)
    append_result(
        probes,
        probe | {"model": "few", "predictions": [[8, 0]], "rows": {"test": {"read": 1, "of": 13}}},
    )
    capsys.readouterr()
    beside = scored(shades, store, tmp_path / "beside.jsonl", "--beside", str(probes), "--no-each-prompt")
    assert list(beside) == ["vlm-generate-prompts"]
    shown_beside = beside["vlm-generate-prompts"]["baselines"]
    assert list(shown_beside) == ["majority", "source_lookup", "mae, probe-linear"]
    assert shown_beside["mae, probe-linear"]["accuracy"]["value"] == 0.75
    assert (
        "few, probe-linear is not shown beside: it has no prediction of 11 of the 12"
        in capsys.readouterr().err
    )
    with out.open("ab") as file:
        file.write(probes.read_bytes().splitlines(keepends=True)[0])
    given = ["compare", str(out), "--models", "mae", "hf:made", "--modes", "probe-linear"]
    given += ["vlm-generate-prompts:plain", "--manifests", str(shades.manifest), "--form", "json"]
    assert benchmark(given) == 0
    (compared,) = json.loads(capsys.readouterr().out)["sets"]
    accuracy = compared["figures"]["accuracy"]
    assert (accuracy["first"], accuracy["second"], accuracy["difference"]["value"]) == (0.75, 0.5, 0.25)


def test_tables(shades: Shades, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = tmp_path / "answers.jsonl", tmp_path / "results.jsonl"
    write_store(store, shades, lambda question: question.targets[question.order.index(question.row % 4)])
    scored(shades, store, out)
    capsys.readouterr()
    assert main(["table", str(out)]) == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("| hf\\:made")]
    assert len(lines) == 1
    assert "| 12 of 13 | 6 | 100.0 \\[100.0, 100.0\\] |" in lines[0]
    assert "### Wordings\\: hf\\:made, vlm-generate-prompts" in text
    assert "| defined | definitions | 100.0 \\[100.0, 100.0\\] |" in text
    assert "### Positions\\: hf\\:made, vlm-generate-prompts" in text
    latex = tmp_path / "table.tex"
    assert main(["table", str(out), "--form", "latex", "--out", str(latex)]) == 0
    assert latex.read_text().count(r"\begin{table}") == latex.read_text().count(r"\end{table}") == 3
    assert main(["table", str(out), "--form", "csv"]) == 0
    assert "vlm-generate-prompts:expert" in capsys.readouterr().out
    assert benchmark(["table", str(out)]) == 0  # all of them in one table
    assert r"vlm-generate-prompts\:expert" in capsys.readouterr().out
    assert len(read_results(out)) == 4


def test_what_cannot_be_scored(shades: Shades, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = tmp_path / "answers.jsonl", tmp_path / "results.jsonl"
    write_store(store, shades, lambda question: "A")
    given = ["--manifest", str(shades.manifest), "--out", str(out)]
    own = ["--prompts", str(shades.prompts)]

    def said(*arguments: str) -> str:
        assert main(["score", *arguments, *given]) == 1
        return capsys.readouterr().err

    assert "holds answers to prompts that were not given (defined, expert, plain)" in said(str(store))
    assert "no such file of prompts" in said(str(store), "--prompts", "nothing")
    assert "cannot be read" in said(str(tmp_path / "none.jsonl"), *own)
    assert "--resamples is 0" in said(str(store), *own, "--resamples", "0")
    for name, value, message in (
        ("manifest_digest", "f" * 32, "give the manifest that was asked about"),
        ("split", "val", "results are of test"),
    ):
        other = tmp_path / f"{name}.jsonl"
        write_store(other, shades, lambda question: "A", **{name: value})
        assert message in said(str(other), *own)
    changed = tmp_path / "changed.yaml"
    changed.write_text(PROMPTS.replace("Which shade?", "What shade?"))
    assert "its words have changed" in said(str(store), "--prompts", str(changed))
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(store.read_bytes().splitlines(keepends=True)[0])
    assert "holds no answer yet" in said(str(empty), *own)
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(store.read_bytes()[:-100])  # a killed run: a row that is not answered in full
    assert main(["score", str(torn), *own, *given]) == 0
    assert "not answered yet: 5 of 6 questions" in capsys.readouterr().err
    assert out.exists()
    refused = tmp_path / "refused.jsonl"
    lines = [json.loads(line) for line in store.read_text().splitlines()]
    for line in lines[1:]:
        line |= {"reply": None, "failure": "refused: no such way"}
    refused.write_text("".join(json.dumps(line) + "\n" for line in lines))
    message = said(str(refused), *own)
    assert (
        "no figures of the way generate: none of 72 questions was answered: refused: no such way" in message
    )
    assert "there is nothing to score" in message
    assert main(["table", str(tmp_path / "none.jsonl")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_the_release_is_scored_by_its_rules(shades: Shades, tmp_path: Path) -> None:
    """Every answer says `A` by the way and means the class: only the release takes it for option A."""
    from surgrec.evaluation.manifest import read_manifest

    manifest = read_manifest(shades.manifest)
    store = tmp_path / "answers.jsonl"
    asked = questions(load_prompts("release"), manifest, TEST, permutations=1, seed=0, content_free=False)
    with AnswerStore(store, About("shades", manifest.digest, "test", "hf:made", {})) as answers:
        for number, question in enumerate(asked):
            text = f"A {CLASSES[(question.row or 0) % 4]} picture"
            answers.add(Asked(question, "generate", Reply(text)), str(number))
    config = ScoreConfig((store,), shades.manifest, ("release",), resamples=10)
    shown: list[str] = []
    together, *wordings = score(config, progress=shown.append)
    assert shown == [f"read {store}", f"judge {store}, vlm-generate-release"]
    assert (together["mode"], len(wordings)) == ("vlm-generate-release", 2)
    assert values(together)["accuracy"] == 0.25
    assert together["positions"]["chosen"] == [24, 0, 0, 0]
    assert together["positions"]["p"] is None
    assert together["options"]["parser"] == "release"


def test_what_is_left_out_is_said(shades: Shades, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Likelihoods without those for the grey picture have no prior; results of other splits are not shown."""
    store, out = tmp_path / "answers.jsonl", tmp_path / "results.jsonl"
    write_store(store, shades, lambda question: question.targets[0])
    lines = [json.loads(line) for line in store.read_text().splitlines()]
    for line in lines[1:]:
        likelihoods = [-1.0 if k == line["question"]["row"] % 4 else -2.0 for k in line["question"]["order"]]
        line["way"], line["reply"] = "options", {**line["reply"], "text": "", "log_likelihoods": likelihoods}
        line["reply"]["tokens"] = [1] * 4
    store.write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = tmp_path / "other.jsonl"
    found = scored(shades, store, out, "--no-each-prompt")
    assert list(found) == ["vlm-sum-prompts", "vlm-length-prompts"]
    assert values(found["vlm-sum-prompts"])["accuracy"] == 1.0
    share = math.exp(-1) / (math.exp(-1) + 3 * math.exp(-2))
    assert values(found["vlm-sum-prompts"])["ece"] == pytest.approx(1 - share)
    assert "no figures by the rule prior: " in capsys.readouterr().err
    append_result(other, found["vlm-sum-prompts"] | {"manifest_digest": "f" * 32, "model": "mae"})
    beside = scored(shades, store, tmp_path / "beside.jsonl", "--no-each-prompt", "--beside", str(other))
    assert list(beside["vlm-sum-prompts"]["baselines"]) == ["majority", "source_lookup"]
    assert "mae, vlm-sum-prompts is not shown beside: it is of split ffff" in capsys.readouterr().err
    # A reply whose likelihoods are not as many as its tokens is no answer: the file is named.
    lines[5]["reply"]["tokens"] = [1]
    store.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["score", str(store), "--manifest", str(shades.manifest), "--prompts", str(shades.prompts)]
    assert main([*given, "--out", str(out)]) == 1
    assert "answers.jsonl, vlm-sum-prompts: a reply without a log-likelihood" in capsys.readouterr().err
    assert len(read_results(out)) == 2
