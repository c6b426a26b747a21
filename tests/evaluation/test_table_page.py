"""The page of results in headless Chromium: no request, nothing runs, everything of a result is on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By

from surgrec.evaluation.results import ClassResult, Interval, Result
from surgrec.evaluation.table import render

SCRIPT = "<script>document.title='owned'</script>"
IMAGE = "\"><img src=https://surgrec.invalid/x.png onerror=document.title='owned'>"
CLASSES = ("left", "right", SCRIPT, IMAGE)


def result(model: str, dataset: str, **changes: Any) -> Result:
    facts: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        "manifest_digest": "0123456789abcdef" * 2,
        "features_digest": "fe" * 16,
        "mode": "probe-linear",
        "n": 40,
        "m": 41,
        "groups": 12,
        "figures": {"accuracy": Interval(0.5, 0.35, 0.66), "macro_f1": Interval(0.45, 0.3, 0.6)},
        "baselines": {"majority": {"accuracy": Interval(0.25, 0.2, 0.3)}},
        "classes": (
            ClassResult("left", Interval(0.8, 0.5, 1.0), 0.9),
            ClassResult("right", Interval(0.4), 0.7),
            ClassResult(SCRIPT, Interval(0.0, 0.0, 0.0), None),
            ClassResult(IMAGE, None, None),
        ),
        "confusion": ((8, 2, 0, 0), (3, 4, 3, 0), (10, 10, 0, 0), (0, 0, 0, 0)),
        "trained_parameters": 1538,
        "options": {"seed": 0},
        "chosen": {"lr": 0.1},
        "date": "2026-01-02T03:04:05+0000",
        "versions": {"torch": "2.11"},
        "commit": "abc",
    }
    return Result(**facts | changes)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    many = tuple(ClassResult(f"class {k}", Interval(0.5, 0.4, 0.6), 0.5) for k in range(40))
    results = [
        result("mae", "cholec80"),
        result(SCRIPT, "cholec80"),
        result("mae", IMAGE, mode="probe-knn", n=41),
        result("mae", "many", classes=many, confusion=((1,) * 40,) + ((0,) * 40,) * 39),
        result("jepa", "many", confusion=()),
    ]
    path = tmp_path_factory.mktemp("table") / "results.html"
    path.write_text(render(results, "html"), encoding="utf-8")
    return path


def opened(browser: Any, page: Path) -> None:
    """The page with all that unfolds unfolded, by clicks."""
    browser.visit(page)
    for summary in browser.find_elements(By.CSS_SELECTOR, "section > details > summary"):
        summary.click()


def test_it_opens_without_errors_or_requests(browser: Any, page: Path) -> None:
    opened(browser, page)
    for summary in browser.find_elements(By.CSS_SELECTOR, "details details > summary"):
        summary.click()
    assert browser.errors() == []
    assert browser.requested() == {page.as_uri()}
    assert browser.title == "Benchmark results"
    titles = [each.text for each in browser.find_elements(By.TAG_NAME, "h2")]
    assert titles == ["Overview", "cholec80", IMAGE, "many", "Published results"]
    for link in browser.find_elements(By.CSS_SELECTOR, "nav a, td a, th a"):
        assert browser.find_elements(By.CSS_SELECTOR, f"h2{link.get_dom_attribute('href')}")
    for chart in browser.find_elements(By.CSS_SELECTOR, "svg"):
        assert chart.get_dom_attribute("role") == "img"
        assert chart.get_dom_attribute("aria-label")


def test_hostile_names_are_text_and_the_policy_stops_the_rest(browser: Any, page: Path) -> None:
    browser.visit(page)
    assert browser.find_elements(By.CSS_SELECTOR, "script, img, iframe, object") == []
    text = browser.execute_script("return document.body.textContent")
    assert SCRIPT in text
    assert IMAGE in text
    browser.execute_script(
        "const bad = document.createElement('script'); bad.textContent = 'window.ran = 1';"
        "document.body.append(bad);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=https://surgrec.invalid/x.png>');"
    )
    assert browser.execute_script("return window.ran") is None
    assert browser.requested() == {page.as_uri(), "stopped https://surgrec.invalid/x.png"}
    assert len(browser.errors()) == 2


def test_figures_intervals_baselines_and_published_numbers(browser: Any, page: Path) -> None:
    browser.visit(page)
    section = browser.find_elements(By.CSS_SELECTOR, "main > section")[1]
    rows = [
        [cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")]
        for row in section.find_elements(By.CSS_SELECTOR, ":scope > .scroll tr")
    ]
    assert rows[0] == ["Model", "Evaluation", "Test clips", "Groups", "Top-1", "Macro F1"]
    facts = ["probe-linear", "40 of 41", "12", "50.0 [35.0, 66.0]", "45.0 [30.0, 60.0]"]
    assert rows[1] == ["mae", *facts]
    assert rows[2] == [SCRIPT, *facts]
    assert rows[3] == [
        "always the most frequent class",
        "baseline",
        "40 of 41",
        "12",
        "25.0 [20.0, 30.0]",
        "",
    ]
    assert rows[9] == ["SurgRec-MAE", "arXiv 2603.29966, Table 2", "", "", "29.30", ""]
    assert len(rows) == 11
    published = browser.find_elements(By.CSS_SELECTOR, "main > section:last-child tbody tr")
    assert len(published) == 17
    assert published[5].text == "Cholec80 22.34 16.12 14.65 24.18 26.01 29.30 31.14"


def test_bars_and_confusion_say_what_was_counted(browser: Any, page: Path) -> None:
    opened(browser, page)
    details = browser.find_element(By.CSS_SELECTOR, "section > details")
    bars, matrix = details.find_elements(By.CSS_SELECTOR, "svg")
    widths = [float(bar.get_dom_attribute("width")) for bar in bars.find_elements(By.CSS_SELECTOR, ".bar")]
    assert widths == pytest.approx([0.8 * 370, 0.4 * 370, 0.0])
    assert len(bars.find_elements(By.CSS_SELECTOR, ".whisker")) == 2
    texts = [each.text for each in bars.find_elements(By.TAG_NAME, "text")]
    assert "80.0 [50.0, 100.0]" in texts
    assert "no test clip" in texts
    counts = [each.text for each in matrix.find_elements(By.CSS_SELECTOR, ".count")]
    assert counts == ["8", "2", "3", "4", "3", "10", "10"]
    hints = browser.execute_script(
        "return [...arguments[0].querySelectorAll('g title')].map(each => each.textContent)", matrix
    )
    assert len(hints) == 16
    assert hints[4] == "right taken for left: 3 of 10"
    assert len(matrix.find_elements(By.CSS_SELECTOR, ".right")) == 4
    facts = details.find_element(By.TAG_NAME, "dl").text
    for fact in ("fe" * 16, "1,538", "lr 0.1", "seed 0", "2026-01-02T03:04:05+0000", "torch 2.11", "abc"):
        assert fact in facts
    many, unknown = browser.find_elements(By.CSS_SELECTOR, "section > details")[3:]
    assert many.find_elements(By.CSS_SELECTOR, ".count") == []  # 40 classes: shade and hints alone
    assert len(many.find_elements(By.CSS_SELECTOR, "g")) == 1600
    assert "Not shown: not recorded." in unknown.text


def test_nothing_lies_on_something_else(browser: Any, page: Path) -> None:
    """Labels of charts stay within them, at a desk and on a telephone."""
    for width in (1200, 400):
        browser.set_window_size(width, 900)
        opened(browser, page)
        outside = browser.execute_script(
            """
            return [...document.querySelectorAll('svg')].flatMap(chart => {
              const box = chart.getBoundingClientRect();
              return [...chart.querySelectorAll('text')].filter(text => {
                const own = text.getBoundingClientRect();
                return own.left < box.left - 1 || own.right > box.right + 1
                  || own.top < box.top - 1 || own.bottom > box.bottom + 1;
              }).map(text => text.textContent);
            });
            """
        )
        assert outside == []
        wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0
    browser.set_window_size(1200, 900)


def test_it_is_legible_in_light_dark_and_on_paper(browser: Any, page: Path) -> None:
    opened(browser, page)
    grounds = []
    for scheme, medium in (("light", "screen"), ("dark", "screen"), ("light", "print")):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": features})
        ground = browser.colour("body", "background-color")
        grounds.append(ground)
        for selector in ("body", "thead th", "tr.baseline td", "tr.incomplete .clips", "dt"):
            assert browser.contrast(browser.colour(selector, "color"), ground) >= 4.5, (
                scheme,
                medium,
                selector,
            )
        ink, cell = (browser.colour(f".chart .{name}", "fill") for name in ("count", "cell"))
        for kind in ("right", "wrong"):  # numbers on the darkest shade
            element = browser.find_element(By.CSS_SELECTOR, f".chart .{kind}")
            shade = float(element.value_of_css_property("opacity"))
            fill = browser.colour(f".chart .{kind}", "fill")
            under = [shade * a + (1 - shade) * b for a, b in zip(fill, cell, strict=True)]
            assert browser.contrast(ink, under) >= 4.5, (scheme, medium, kind)
    assert grounds[0] != grounds[1]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
