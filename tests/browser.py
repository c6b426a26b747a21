"""Headless Chromium for tests of pages, with what it was asked for and what it complained of."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By

MISSING = "chromium or chromedriver is not installed: apt-get install chromium chromium-driver"


class Browser(webdriver.Chrome):
    """Chromium, driven through chromedriver."""

    def visit(self, page: Path) -> None:
        """Opens a page; errors and requests are then those of this page alone."""
        self.get("about:blank")
        for kind in ("browser", "performance"):
            self.get_log(kind)
        self.get(page.as_uri())

    def colour(self, selector: str, name: str) -> list[float]:
        """Red, green and blue, 0 to 1, of a property of the first element."""
        text = self.find_element(By.CSS_SELECTOR, selector).value_of_css_property(name)
        return [float(part) / 255 for part in text[text.index("(") + 1 :].rstrip(")").split(",")[:3]]

    @staticmethod
    def contrast(one: list[float], other: list[float]) -> float:
        """Of two colours, by WCAG 2: relative luminances."""

        def luminance(colour: list[float]) -> float:
            linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        high, low = sorted((luminance(one), luminance(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    def errors(self) -> list[str]:
        """What stands in the console."""
        return [entry["message"] for entry in self.get_log("browser")]

    def requested(self) -> set[str]:
        """Addresses that the page asked for, but for those that hold what they name; what its policy stopped
        is led by `stopped`."""
        messages = [json.loads(entry["message"])["message"] for entry in self.get_log("performance")]
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        failed = [each["params"] for each in messages if each["method"] == "Network.loadingFailed"]
        stopped = {each["requestId"] for each in failed if each.get("blockedReason") == "csp"}
        return {
            "stopped " * (each["requestId"] in stopped) + each["request"]["url"]
            for each in sent
            if not each["request"]["url"].startswith("data:")
        }


def start() -> Browser | None:
    """A Chromium; None where none is installed."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        return None
    os.environ |= {
        "SE_OFFLINE": "true",
        "SE_AVOID_STATS": "true",
    }  # selenium looks for nothing, and tells nobody
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    options.add_argument("--disable-dev-shm-usage")  # containers have little of it
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return Browser(options=options, service=webdriver.ChromeService(driver))
