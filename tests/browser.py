"""Headless Chromium for tests of pages, with what it was asked for and what it complained of."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from selenium import webdriver

MISSING = "chromium or chromedriver is not installed: apt-get install chromium chromium-driver"


class Browser(webdriver.Chrome):
    """Chromium, driven through chromedriver."""

    def visit(self, page: Path) -> None:
        """Opens a page; errors and requests are then those of this page alone."""
        self.get("about:blank")
        for kind in ("browser", "performance"):
            self.get_log(kind)
        self.get(page.as_uri())

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
