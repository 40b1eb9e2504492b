"""The report as a browser draws it: light, dark, for somebody who sees no red and green, on a phone, and on paper."""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.reporting import write_evidence_report, write_report
from simulations.baselines.evidence import evidence
from tests.browser import PICTURES, WAIT_MS, chromium
from tests.handmade_run import write_run_dir
from tests.simulations.baselines.test_baselines_evidence import population

pytestmark = pytest.mark.slow
PHONE, DESKTOP, A4 = 390, 1280, (711, 1023)  # CSS pixels; of the paper without its margins, 188 x 271 mm
PAGES = ("study", "comparison", "few")
BEYOND = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll table, svg')
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study, a comparison, and a comparison of so few women that nearly nothing can be said."""
    place = tmp_path_factory.mktemp("pages")
    write_run_dir(place / "study")
    found = {"study": write_report(place / "study")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulations.baselines.evidence.REPLICATES", 20)
        for name, kind, women in (("comparison", "synthetic", 200), ("few", "mini_mias_composite", 26)):
            (place / name).mkdir()
            populations = [population(seed, held_out=women, own=women // 2) for seed in (1, 2)[: 1 + women // 200]]
            document = evidence("unit", kind, populations, specificity=0.85)
            (place / name / "evidence.json").write_text(json.dumps(document))
            found[name] = write_evidence_report(place / name)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def opened(browser: Any, path: Path, *, width: int, dark: bool = False) -> tuple[Any, list[str]]:
    """A page in a window of its own, and what it complained of."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    context.set_default_timeout(WAIT_MS)
    page, complaints = context.new_page(), []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    return page, complaints


def seen(page: Any, name: str) -> np.ndarray:
    """The whole page as grey values [H, W] in 0..255; kept where MAMMOFED_PICTURES names a folder."""
    data = page.screenshot(full_page=True)
    if PICTURES is not None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        (PICTURES / f"report-{name}.png").write_bytes(data)
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=np.float64)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", PAGES)
def test_page_is_drawn_legibly(browser: Any, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    page, complaints = opened(browser, pages[name], width=width, dark=dark)
    try:
        assert page.evaluate("document.documentElement.scrollWidth") == width  # wide tables scroll by themselves
        assert page.evaluate(BEYOND) == []
        grey = seen(page, f"{name}-{width}-{'dark' if dark else 'light'}")
    finally:
        page.context.close()
    assert complaints == []
    paper = np.median(grey)
    assert (paper < 40) if dark else (paper > 240)
    ink = np.abs(grey - paper) > 120
    assert 0.005 < ink.mean() < 0.3  # words and figures, neither a blank page nor a block
    assert ink[:400].any() and ink[-800:].any()
    assert not ink[:, -6:].any()  # nothing is cut off at the right edge


@pytest.mark.parametrize("name", PAGES)
def test_the_answer_comes_first_and_every_figure_says_its_women(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    page, _ = opened(browser, pages[name], width=DESKTOP)
    try:
        first = page.locator(".answer").first.bounding_box()
        assert first["y"] < 200 and first["y"] < page.locator("h2").first.bounding_box()["y"]
        captions = page.locator("figcaption").all_inner_texts()
    finally:
        page.context.close()
    assert len(captions) >= 3
    for caption in captions:
        assert re.search(r"\d (held-out )?women|n = \d", caption), caption


def test_lines_can_be_told_apart_without_colour(browser: Any, pages: dict[str, Path]) -> None:
    """No two lines of one figure have the same dashes, and no two arms of the gains' figure the same mark."""
    page, _ = opened(browser, pages["study"], width=DESKTOP)
    try:
        dashes = page.evaluate("""() => [...document.querySelectorAll(
            'svg[aria-labelledby^="roc"] g[id*="line2d"] > path')]
            .filter(p => p.getAttribute('style').includes('var(--') && !p.getAttribute('style').includes('--grid'))
            .map(p => [p.style.stroke, p.style.strokeDasharray])""")
    finally:
        page.context.close()
    by_colour = dict(dashes)
    assert len(by_colour) >= 3 and len(set(by_colour.values())) == len(by_colour)
    marks = pages["comparison"].read_text(encoding="utf-8")
    gains = marks[marks.index('aria-labelledby="gains-title') :]
    gains = gains[: gains.index("</svg>")]
    shapes = set(re.findall(r'<path id="gains-m[0-9a-f]+" d="([^"]+)"', gains))
    assert len(shapes) >= 3  # two marks and the whiskers' ends


@pytest.mark.parametrize("name", PAGES)
def test_on_paper_every_section_is_there_and_no_figure_is_cut(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    page, _ = opened(browser, pages[name], width=A4[0])
    try:
        page.emulate_media(media="print")
        sections = page.locator("h2").all_inner_texts()
        figures = page.evaluate("""() => [...document.querySelectorAll('figure')].map(
            f => [getComputedStyle(f).breakInside, f.getBoundingClientRect().height])""")
        wide = page.evaluate("""() => [...document.querySelectorAll('table')].filter(
            t => t.getBoundingClientRect().right > innerWidth + 1).map(t => t.textContent.slice(0, 60))""")
        paper = page.pdf(prefer_css_page_size=True, outline=True, tagged=True)
    finally:
        page.context.close()
    assert wide == []  # on paper nothing scrolls
    assert figures and all(rule == "avoid" and height < A4[1] for rule, height in figures)
    outline = titles(paper)
    assert len(sections) > 4 and [section for section in sections if section not in outline] == []


def titles(pdf: bytes) -> list[str]:
    """Of the outline, which Chromium makes of the headings."""
    parts = [pdf]
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, flags=re.DOTALL):
        try:
            parts.append(zlib.decompress(stream))
        except zlib.error:
            continue
    found = []
    for part in parts:
        for text in re.findall(rb"/Title\s*\(((?:\\.|[^\\)])*)\)", part, flags=re.DOTALL):
            plain = re.sub(rb"\\(.)", rb"\1", text)
            found.append(plain.decode("utf-16" if plain.startswith((b"\xfe\xff", b"\xff\xfe")) else "latin-1"))
        found += [bytes.fromhex(text.decode()).decode("utf-16")
                  for text in re.findall(rb"/Title\s*<((?:FEFF|feff)[0-9A-Fa-f]*)>", part)]  # fmt: skip
    return found
