"""Case page and board list as a browser prints them: no column leaves the paper."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.inference.explain import write_pages
from shared_model.released import ReleasedModel
from tests.browser import WAIT_MS, chromium
from tests.client.inference.conftest import Hospital

pytestmark = pytest.mark.slow
A4 = (711, 1023)  # CSS pixels without margins, 188 x 271 mm
CUT = "() => [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"


def test_nothing_is_cut_off(hospital: Hospital, model_folder: Path, tmp_path: Path) -> None:
    pages = write_pages(hospital.site, ReleasedModel.read(model_folder), hospital.ids[:3], tmp_path, method="hirescam")
    with chromium() as browser:
        page = browser.new_context(viewport={"width": A4[0], "height": A4[1]}).new_page()
        page.set_default_timeout(WAIT_MS)
        page.emulate_media(media="print")
        for path in pages:
            page.goto(path.as_uri())
            assert page.evaluate(CUT) == [], path.name
