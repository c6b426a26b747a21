"""The report's page in headless Chromium: no request, names inert, the tree clicked through."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from surgrec.loaders.corpus_plan import CorpusPlan
from surgrec.loaders.packet_index import PacketIndex
from surgrec.loaders.segments import SegmentTable

from surgrec.corpus.build import build_index
from surgrec.corpus.discovery import Entry
from surgrec.curate import main
from surgrec.curation.plan_file import write_plan
from surgrec.curation.report_numbers import duplicates_of
from surgrec.curation.report_page import Content, write_page
from surgrec.curation.report_stage import choose
from surgrec.curation.report_thumbnails import Thumbnail
from surgrec.curation.report_tree import make_tree

SCRIPT = "<script>document.title='owned'<"  # a folder, so that the name has a slash
NAMES = (
    f"{SCRIPT}/script>.mp4",
    "\"><img src=x onerror=document.title='owned'>.mp4",
    "{{ 7 * 7 }}&amp;'.mp4",
    "turned \u202e4pm.mp4",
    os.fsdecode(b"no \xff utf8.mp4"),
)
DOMAIN = "</script><script>document.title='owned'</script>"
OPTIONS = ("--workers", "1", "--segments.seconds", "1", "--segments.least-seconds", "0.3")
OPTIONS += ("--segments.detector", "none", "--quality.zero", "undecodable", "--cluster.levels", "6", "2")


@pytest.fixture(scope="module")
def index(streams: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> PacketIndex:
    """Videos with names that mean harm, and a file that is no video."""
    folder = tmp_path_factory.mktemp("report")
    kinds = ("h264_default", "hevc_closed", "h264_open_gop", "h264_baseline", "h264_default")
    entries = []
    for number, (name, kind) in enumerate(zip(NAMES, kinds, strict=True)):
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        streams.make_stream(kind, folder / f"made{number}", frames=90, first=number).rename(path)
        entries.append(Entry(str(path), "<b>set</b>", DOMAIN if number < 3 else ""))
    (folder / "videos" / "<i>notes.mp4").write_text("no video")
    entries.append(Entry(str(folder / "videos" / "<i>notes.mp4"), "<b>set</b>", ""))
    build_index(entries, folder / "corpus.h5", workers=1)
    return PacketIndex.open(folder / "corpus.h5")


@pytest.fixture(scope="module")
def page(index: PacketIndex) -> Path:
    """The report of a whole run."""
    out = index.path.with_name("plan.h5")
    assert main(["all", "--index", str(index.path), "--out", str(out), *OPTIONS]) == 0
    return out.with_suffix(".html")


def nodes(browser: Any) -> list[Any]:
    """Of the tree's top, once the page is drawn."""
    there = WebDriverWait(browser, 60).until(
        lambda one: one.find_elements(By.CSS_SELECTOR, "#tree > details")
    )
    assert isinstance(there, list)
    return there


def test_it_opens_without_errors_or_requests(browser: Any, page: Path) -> None:
    browser.visit(page)
    for summary in browser.find_elements(By.CSS_SELECTOR, "#tree summary"):
        summary.click()
    assert browser.errors() == []
    assert browser.requested() == {page.as_uri()}
    titles = [each.text for each in browser.find_elements(By.TAG_NAME, "h2")]
    assert titles == [
        "The corpus at a glance",
        "What is not drawn",
        "Duplicates",
        "Footage of downstream sets",
        "Clusters",
        "The mix before and after balancing",
        "Repeats over a run",
        "How it was made",
    ]
    assert len(browser.find_elements(By.TAG_NAME, "h1")) == 1
    for link in browser.find_elements(By.CSS_SELECTOR, "nav a"):
        target = link.get_dom_attribute("href")
        assert browser.find_elements(By.CSS_SELECTOR, f"h2{target}")
    images = browser.find_elements(By.TAG_NAME, "img")
    assert images
    assert all(image.get_dom_attribute("alt") for image in images)
    for chart in browser.find_elements(By.CSS_SELECTOR, "svg"):
        assert chart.get_dom_attribute("role") == "img"
        assert chart.get_dom_attribute("aria-label")


def test_the_policy_stops_what_is_not_the_page_s(browser: Any, page: Path) -> None:
    """Were a name not escaped, it could still do nothing."""
    browser.visit(page)
    browser.execute_script(
        "const bad = document.createElement('script'); bad.textContent = 'window.ran = 1';"
        "document.body.append(bad);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=https://surgrec.invalid/x.png>');"
    )
    assert browser.execute_script("return window.ran") is None
    refused = " ".join(browser.errors())
    assert "script-src" in refused
    assert "img-src" in refused
    assert browser.requested() == {page.as_uri(), "stopped https://surgrec.invalid/x.png"}


def test_hostile_names_are_text(browser: Any, page: Path) -> None:
    browser.visit(page)
    for summary in browser.find_elements(By.CSS_SELECTOR, "#tree summary"):
        summary.click()
    assert browser.title == "Curation of plan.h5"
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 2
    sources = [each.get_dom_attribute("src") for each in browser.find_elements(By.TAG_NAME, "img")]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert browser.find_elements(By.CSS_SELECTOR, "main b, main i") == []
    text = browser.execute_script("return document.body.textContent")
    for shown in (
        *NAMES[:3],
        "turned \\u202e4pm.mp4",
        "no \\udcff utf8.mp4",
        DOMAIN,
        "<b>set</b>",
        "<i>notes.mp4",
    ):
        assert shown in text
    assert "\u202e" not in text
    assert "49&" not in text


def test_clicking_through_the_tree_shows_thumbnails(browser: Any, page: Path, index: PacketIndex) -> None:
    browser.visit(page)
    plan = CorpusPlan.open(page.with_suffix(".h5"), index)
    domains = nodes(browser)
    assert len(domains) == len(np.unique(plan.levels[0]))
    assert browser.find_elements(By.CSS_SELECTOR, "#tree img") == []
    node = domains[0]
    for _ in plan.level_names:  # by mouse and by key in turns
        summary = node.find_element(By.TAG_NAME, "summary")
        if node is domains[0]:
            summary.click()
        else:
            summary.send_keys(Keys.ENTER)
        pictures = WebDriverWait(browser, 10).until(
            lambda _, node=node: node.find_elements(By.CSS_SELECTOR, ":scope > .pictures img")
        )
        assert all(image.get_property("naturalWidth") > 0 for image in pictures)
        assert {image.get_property("naturalWidth") for image in pictures} == {160}
        below = node.find_elements(By.CSS_SELECTOR, ":scope > details")
        node = below[0] if below else node
    captions = [each.text for each in node.find_elements(By.TAG_NAME, "figcaption")]
    assert captions
    assert all(caption.endswith(("0:00:00", "0:00:01", "0:00:02", "0:00:03")) for caption in captions)


def test_it_is_legible_in_light_dark_and_on_paper(browser: Any, page: Path) -> None:
    browser.visit(page)
    grounds = []
    for scheme, medium in (("light", "screen"), ("dark", "screen"), ("light", "print")):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": features})
        ground = browser.colour("body", "background-color")
        grounds.append(ground)
        for selector in ("body", ".tiles dt", "thead th", "nav a", "#tree .figures"):
            assert browser.contrast(browser.colour(selector, "color"), ground) >= 4.5, (
                scheme,
                medium,
                selector,
            )
        shown = browser.find_element(By.TAG_NAME, "nav").is_displayed()
        assert shown == (medium == "screen")
    assert grounds[0] != grounds[1]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_thousands_of_clusters_stay_usable(
    browser: Any, make_index: Callable[[Any], PacketIndex], tmp_path: Path
) -> None:
    """The paper's tree, and as many thumbnails of the greatest size as there may be."""
    levels, n, videos = (16, 128, 1024, 8192), 40_000, 400
    index = make_index(
        [{"frames": 100, "domain": "laparoscopy", "path": f"/d/{k:050}.mp4"} for k in range(videos)]
    )
    rng = np.random.default_rng(0)
    finest = np.concatenate([np.arange(8192), rng.integers(0, 8192, n - 8192)])
    starts = np.tile(np.arange(100), n // 100)
    segments = SegmentTable(np.repeat(np.arange(videos, dtype=np.int32), 100), starts, starts + 1)
    weight = rng.random(n)
    tree = {f"cluster{depth}": finest % size for depth, size in enumerate(levels)}
    write_plan(
        tmp_path / "plan.h5",
        index.digest,
        segments,
        weight / weight.sum(),
        np.zeros(n, int),
        [""],
        np.full(n, -1),
        {"domain": np.zeros(n, int), **tree},
        np.zeros((videos, 4), int),
        {},
    )
    plan = CorpusPlan.open(tmp_path / "plan.h5", index)
    seconds = np.ones(n)
    made = make_tree(index, plan, seconds)
    chosen = choose(plan, seconds, made, duplicates_of(plan), 1200)
    assert len(chosen.rows()) >= 1200 - 12  # some of those drawn most stand for a cluster as well
    pictures = {row: Thumbnail(b"\xff" * 6144, int(segments.start[row]), 160, 90) for row in chosen.rows()}
    page = tmp_path / "plan.html"
    write_page(page, Content(index, plan, seconds, made, chosen, pictures, duplicates_of(plan), None, 1000))
    assert page.stat().st_size < 12e6
    browser.visit(page)
    (domain,) = nodes(browser)
    domain.find_element(By.TAG_NAME, "summary").click()
    node = domain
    for size, more in ((16, False), (8, False), (8, False), (8, False)):
        below = WebDriverWait(browser, 10).until(
            lambda _, node=node: node.find_elements(By.CSS_SELECTOR, ":scope > details")
        )
        assert len(below) == size
        assert bool(node.find_elements(By.CSS_SELECTOR, ":scope > button")) == more
        facts = [each.find_element(By.CLASS_NAME, "figures").text for each in below]
        shares = [float(text.split(" % drawn")[0]) for text in facts]
        assert shares == sorted(shares, reverse=True)
        node = below[0]
        node.find_element(By.TAG_NAME, "summary").click()
    assert browser.errors() == []


def test_many_children_come_in_pages(
    browser: Any, make_index: Callable[[Any], PacketIndex], tmp_path: Path
) -> None:
    """60 clusters in one domain: 24, then 24 more, then the rest; by gain, another order."""
    index = make_index([{"frames": 600, "domain": "cataract"}])
    starts = np.arange(60) * 10
    lengths = np.arange(1, 61) % 7 + 1
    segments = SegmentTable(np.zeros(60, np.int32), starts, starts + lengths)
    weight = np.arange(1, 61) / np.arange(1, 61).sum()
    levels = {"domain": np.zeros(60, int), "cluster0": np.arange(60)}
    write_plan(
        tmp_path / "plan.h5",
        index.digest,
        segments,
        weight,
        np.zeros(60, int),
        [""],
        np.full(60, -1),
        levels,
        np.zeros((1, 4), int),
        {},
    )
    # Later, and without the video: all but the pictures is there.
    assert main(["report", "--index", str(index.path), "--out", str(tmp_path / "plan.h5")]) == 0
    browser.visit(tmp_path / "plan.html")
    shown = []
    nodes(browser)[0].find_element(By.TAG_NAME, "summary").click()
    while True:
        WebDriverWait(browser, 10).until(
            lambda _: len(browser.find_elements(By.CSS_SELECTOR, "#tree details details")) > sum(shown)
        )
        labels = [
            each.text
            for each in browser.find_elements(By.CSS_SELECTOR, "#tree details details > summary bdi")
        ]
        shown.append(len(labels) - sum(shown))
        buttons = browser.find_elements(By.CSS_SELECTOR, "#tree button")
        if not buttons:
            break
        buttons[0].send_keys(Keys.ENTER)
    assert shown == [24, 24, 12]
    assert labels == [f"cluster0 · {number}" for number in reversed(range(60))]
    focused = browser.switch_to.active_element
    assert focused.find_element(By.TAG_NAME, "bdi").text == "cluster0 · 11"
    Select(browser.find_element(By.ID, "order")).select_by_value("gain")
    nodes(browser)[0].find_element(By.TAG_NAME, "summary").click()
    first = WebDriverWait(browser, 10).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, "#tree details details > summary bdi")
    )
    assert first[0].text == f"cluster0 · {int(np.argmax(weight / lengths))}"
    assert "No picture: cannot be read" in browser.execute_script("return document.body.textContent")


def test_duplicates_and_footage_of_downstream_sets(
    browser: Any, page: Path, index: PacketIndex, tmp_path: Path
) -> None:
    """What other stages leave: pairs side by side, and what of downstream sets was found."""
    plan = CorpusPlan.open(page.with_suffix(".h5"), index)
    n = len(plan)
    reason = np.zeros(n, int)
    reason[1], reason[2] = 1, 2
    weight = np.where(reason == 0, 1.0, 0.0)
    out = tmp_path / "plan.h5"
    write_plan(
        out,
        index.digest,
        plan.segments,
        weight / weight.sum(),
        reason,
        ["", "duplicate", "shows <i>test</i>/clip.mp4"],
        np.where(np.arange(n) == 1, 4, -1),
        {"domain": np.zeros(n, int)},
        np.zeros((len(index), 4), int),
        {},
    )
    (tmp_path / "plan.h5.work").mkdir()
    (tmp_path / "plan.h5.work" / "decontaminated.csv").write_text(
        'path,seconds,shows\n"<i>a</i>, b.mp4",3.0,<i>test</i>/clip.mp4\n'
    )
    assert main(["report", "--index", str(index.path), "--out", str(out), "--workers", "1"]) == 0
    browser.visit(tmp_path / "plan.html")
    (pair,) = browser.find_elements(By.CSS_SELECTOR, ".pair")
    assert len(pair.find_elements(By.TAG_NAME, "img")) == 2
    assert "stands for it" in pair.text
    text = browser.find_element(By.CSS_SELECTOR, "section[aria-labelledby=decontamination]").text
    assert text.splitlines()[1].startswith("1 segment, 0.0 min, shows footage of downstream sets")
    assert "<i>a</i>, b.mp4 3.0 <i>test</i>/clip.mp4" in text
    assert browser.find_elements(By.CSS_SELECTOR, "main i") == []
    assert browser.errors() == []
