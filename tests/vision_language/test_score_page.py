"""The page of scores in headless Chromium: wordings and positions are on it, and nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By

from surgrec.vision_language.score_table import render_scores

SCRIPT = "<script>document.title='owned'</script>"


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value / 2, "high": min(1.0, value * 1.5)}


def document(mode: str, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "format": "surgrec-result",
        "format_version": 1,
        "model": "hf:made",
        "dataset": "shades",
        "manifest_digest": "0123456789abcdef" * 2,
        "mode": mode,
        "rows": {"test": {"read": 40, "of": 41}},
        "test_groups": 12,
        "figures": {"accuracy": figure(accuracy), "flip_rate": figure(0.2)},
        "baselines": {"majority": {"accuracy": figure(0.25)}, "mae, probe-linear": {"accuracy": figure(0.5)}},
        "per_class": [{"class": name, "recall": None, "auroc": None} for name in ("a", "b")],
        "options": {"prompts": "own"},
        "trained_parameters": 0,
    } | more


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    positions = {"chosen": [300, 100], "expected": [210.5, 189.5], "chi_square": 81.2, "p": 0.001}
    path = tmp_path_factory.mktemp("page") / "scores.html"
    documents = [
        document("vlm-generate-own", 0.4, positions=positions),
        document("vlm-generate-own:plain", 0.3, family="neutral"),
        document("vlm-generate-own:" + SCRIPT, 0.5, family=SCRIPT),
        document("vlm-sum-own", 0.45, positions={"chosen": "many", "expected": None}),
        document("probe-linear", 0.5, model="mae"),
    ]
    path.write_text(render_scores(documents, "html"), encoding="utf-8")
    return path


def test_it_opens_without_errors_or_requests(browser: Any, page: Path) -> None:
    browser.visit(page)
    assert browser.errors() == []
    assert browser.requested() == {page.as_uri()}
    assert browser.find_elements(By.CSS_SELECTOR, "script") == []
    assert browser.title == "Benchmark results"
    titles = [each.text for each in browser.find_elements(By.CSS_SELECTOR, "section > h3")]
    assert titles == ["Wordings: hf:made, vlm-generate-own", "Positions: hf:made, vlm-generate-own"]


def test_models_probes_and_baselines_stand_together(browser: Any, page: Path) -> None:
    browser.visit(page)
    section = browser.find_elements(By.CSS_SELECTOR, "main > section")[1]
    main, wordings, positions = section.find_elements(By.CSS_SELECTOR, ":scope > .scroll table")
    names = [each.text for each in main.find_elements(By.CSS_SELECTOR, "tbody th")]
    assert names == ["hf:made", "hf:made", "mae", "always the most frequent class", "mae, probe-linear"]
    rows = [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in (
        *wordings.find_elements(By.TAG_NAME, "tr"), *positions.find_elements(By.TAG_NAME, "tr"),
    )]  # fmt: skip
    assert rows == [
        ["Wording", "Family", "Top-1", "Flips of wording"],
        ["plain", "neutral", "30.0 [15.0, 45.0]", "20.0 [10.0, 30.0]"],
        [SCRIPT, SCRIPT, "50.0 [25.0, 75.0]", "20.0 [10.0, 30.0]"],
        ["Position", "Chosen", "Expected"],
        ["A", "300", "210.5"],
        ["B", "100", "189.5"],
    ]
    note = section.find_elements(By.CSS_SELECTOR, ":scope > .note")[-1].text
    assert "Chi-square 81.2, p 0.001." in note


def test_bars_say_what_was_counted(browser: Any, page: Path) -> None:
    browser.visit(page)
    (chart,) = browser.find_elements(By.CSS_SELECTOR, "section > svg")
    assert chart.get_dom_attribute("role") == "img"
    assert chart.get_dom_attribute("aria-label") == "Positions: hf:made, vlm-generate-own"
    bars = [float(bar.get_dom_attribute("width")) for bar in chart.find_elements(By.CSS_SELECTOR, ".bar")]
    assert bars == pytest.approx([480.0, 160.0])
    marks = [each.get_dom_attribute("d") for each in chart.find_elements(By.CSS_SELECTOR, ".whisker")]
    assert [float(mark[1:].split()[0]) for mark in marks] == pytest.approx(
        [60 + 480 * 210.5 / 300, 60 + 480 * 189.5 / 300], abs=0.06
    )
    outside = browser.execute_script(
        """
        const box = arguments[0].getBoundingClientRect();
        return [...arguments[0].querySelectorAll('text')].filter(text => {
          const own = text.getBoundingClientRect();
          return own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1;
        }).length;
        """,
        chart,
    )
    assert outside == 0
    wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0
