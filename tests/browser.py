"""A real Chromium for tests of the monitor's page: what it asked for, what it complained of, pictures of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.monitor.web.runs import Runs
from server.monitor.web.serve import Door, serving
from server.monitor.web.source import Source

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PICTURES = Path(os.environ.get("MAMMOFED_PICTURES", "")) if os.environ.get("MAMMOFED_PICTURES") else None
WAIT_MS = 120_000  # nothing here is timed: a machine that is busy draws a page late


@contextmanager
def served(place: Path | Source, **door: Any) -> Iterator[str]:
    """The page of `place` or of another source, served by this process; gives its address."""
    with serving(Runs(place) if isinstance(place, Path) else place, Door(**{"port": 0, **door})) as url:
        yield url


class Sight:
    """One page in a browser. asked: every address that it wanted; complaints: errors on its console."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, url: str, view: str = "study") -> None:
        """Go there and wait until the view is drawn."""
        self.page.goto(f"{url}#{view}", wait_until="domcontentloaded")
        self.drawn(view)

    def drawn(self, view: str) -> None:
        """Wait until a view is drawn."""
        self.page.wait_for_selector(f'#panel[data-drawn^="{view} "]')

    def tab(self, view: str) -> None:
        """Choose a view by its tab."""
        self.page.click(f"#tab-{view}")
        self.drawn(view)

    def says(self, text: str) -> None:
        """Wait until the sentence says it."""
        self.page.wait_for_function("t => document.getElementById('sentence').textContent.includes(t)", arg=text)

    def shoot(self, folder: Path, name: str) -> Path:
        """Keep a picture, in `MAMMOFED_PICTURES` where that is set."""
        folder = PICTURES or folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.png"
        self.page.screenshot(path=str(path), full_page=True)
        return path


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser; the test is skipped, with words, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install .[test]")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, timeout=WAIT_MS, args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--no-first-run",
        ])  # fmt: skip
        try:
            yield browser
        finally:
            browser.close()
