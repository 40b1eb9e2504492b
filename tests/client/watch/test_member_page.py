"""A member's live page, whole: the command, real certificates, the coordinator's doors over TLS, a real Chromium."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from client.deploy.home import SiteHome
from client.deploy.identity import SiteIdentity
from client.deploy.inbox import Inbox
from shared_model.certificates import Member, Role
from shared_model.errors import CertificateError
from tests.browser import Sight, chromium
from tests.conftest import write_cohort
from tests.controlled import Hub
from tests.enrolled import HANG_S, words
from tests.typed import typed

pytestmark = pytest.mark.slow
SITES = ("east", "north", "south", "west")
BACK_MS = 120_000  # a line is made anew every 5 s
WORDS_OF_SOUTH = "the trainer of south says so"
SECRET = 77.125


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


def member_home(hub: Hub, folder: Path) -> SiteHome:
    """North: enrolled, with the coordinator's protocol in its inbox."""
    write_cohort(folder / "cohort", site="north", patients=4, seed=1)
    home = SiteHome.create(folder / "home", cohort=folder / "cohort", role=Role.SITE)
    invitation = hub.home.enrolment.invite(Member("north", Role.SITE))
    identity = SiteIdentity.begin(home.folder / "identity", invitation, host="localhost", port=hub.gateway.port,
                                  clock=hub.home.clock)  # fmt: skip
    hub.home.exchange(identity)
    hub.home.enrolment.confirm("north", identity.words(words))
    assert hub.home.exchange(identity)
    inbox = Inbox(home.courier, site="north", release=version("mammofed"))
    inbox.pin(hub.signer)
    signed = hub.offer(release=version("mammofed"))
    assert inbox.take([signed.to_json().encode()], offered=[signed.sha256]) == []
    return home


@contextmanager
def watching(home: SiteHome, port: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`mammofed monitor https://...` as a member calls it; gives the page's address, and the process."""
    with typed("monitor", f"https://localhost:{port}", "--home", home.folder, "--no-open", "--port", 0) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Monitor  http://127.0.0.1:"), process.communicate(timeout=HANG_S)
        yield line.split()[1], process


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and last words."""
    _, said = process.communicate(timeout=HANG_S)
    return process.returncode, said


def play(hub: Hub, number: int, *, closed: bool = True) -> None:
    """A round as the coordinator journals it: with everybody's numbers and words."""

    def tell(kind: str, **values: Any) -> None:
        hub.board.tell("quick", kind=kind, round=number, attempt=1, time=time.time(), **values)

    tell("round_opened", text="4 sites")
    for site in SITES:
        tell("site_started", site=site)
    if not closed:
        return
    for site in SITES:
        names = ("seconds", "bytes_up", "bytes_down", "epsilon", "load_s", "train_s", "send_s", "round_trip_s")
        own = dict(zip(names, (2.5, 1000.0, 1000.0, 1.5, 0.5, 2.0, 0.4, 2.9), strict=True))
        data = {"outcome": "contributed", "budget": 8.0, **(own if site == "north" else dict.fromkeys(names, SECRET))}
        late = {"severity": "warning", "code": "late", "text": WORDS_OF_SOUTH} if site == "south" else {}
        tell("site_replied", site=site, data=data, **late)
    tell("evaluated", site="hub-evaluator", data={f"auc_{name}": 0.7 + 0.01 * number for name in ("fused", "image")})
    tell("round_closed", text="contributed: east, north and west", data={"contributed": 3.0})


def serious(page: Any) -> list[str]:
    """What axe finds serious, where it is installed."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [str(one["id"]) for one in found if one["impact"] in ("serious", "critical")]


def runs_of(url: str) -> Any:
    """What the page lists, and who watches."""
    with urllib.request.urlopen(f"{url}api/runs", timeout=HANG_S) as answer:
        return json.load(answer)


def everything(url: str) -> str:
    """All that the page can be asked for, as text."""
    paths = ("/api/runs", "/api/view?run=quick", "/api/round?run=quick&number=1", "/api/events?run=quick", "/metrics")
    found = []
    for path in paths:
        with urllib.request.urlopen(url.rstrip("/") + path, timeout=HANG_S) as answer:
            found.append(answer.read().decode())
    return "\n".join(found)


def test_a_member_sees_rounds_appear_the_line_lost_and_back(browser: Any, tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    sight = Sight(context.new_page())
    page = sight.page
    with ExitStack() as stack:
        stack.callback(context.close)
        with hub.open():
            home, port = member_home(hub, tmp_path), hub.gateway.port
            url, process = stack.enter_context(watching(home, port))
            page.goto(url, wait_until="domcontentloaded")
            sight.says("No study is here yet")
            page.wait_for_function("() => document.getElementById('member').textContent.startsWith('Seen by north.')")
            hub.board.tell("quick", kind="study_started", time=time.time(), text="12 rounds, 4 sites")
            play(hub, 1)
            sight.says("round 1 of 12, 3 of 4 sites")
            sight.says("; south late in round 1")
            play(hub, 2, closed=False)
            sight.says("round 2 of 12, 4 of 4 sites asked")
            assert page.evaluate("performance.getEntriesByType('navigation').length") == 1
            sight.tab("sites")
            rows = page.locator("table.stack tr")
            mine, south = (rows.filter(has_text=name).first.inner_text() for name in ("north", "south"))
            assert "train\u00a02.0\u00a0s" in mine and "1.0 kB" in mine and "77" not in south
            certificate = home.identity().certificate()
            assert certificate is not None and certificate.not_valid_after_utc.date().isoformat() in mine
            assert page.locator("#sites-table table td[data-label='Certificate ends']:not(.none)").count() == 1
            assert "The evaluator hub-evaluator, which measures the model: heard " in page.inner_text("p.evaluator")
            assert page.locator("path.cell.late").count() == 1
            sight.shoot(tmp_path, "member-sites")
            sight.tab("rounds")
            page.click("button[data-key=before]")
            page.wait_for_function("() => document.querySelector('#panel h2').textContent === 'Round 1 of 12'")
            sight.shoot(tmp_path, "member-rounds")
            sight.tab("study")
            assert page.locator("circle.dot.fused").count() == 1 and page.locator("#lost").is_hidden()
            sight.shoot(tmp_path, "member-study")
            told = everything(url)
            assert WORDS_OF_SOUTH not in told and str(SECRET) not in told
            assert json.loads(told.splitlines()[0])["member"]["up"] is True
        page.wait_for_function("() => !document.getElementById('lost').hidden", timeout=BACK_MS)
        assert "No connection to the coordinator since" in page.inner_text("#lost")
        sight.says("before that: round 2 of 12, 4 of 4 sites asked")
        assert page.inner_text("#word") == "? Unknown"
        sight.shoot(tmp_path, "member-lost")
        page.set_viewport_size({"width": 375, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert serious(page) == []
        sight.shoot(tmp_path, "member-lost-375")
        with hub.open(port=port):
            page.wait_for_function("() => document.getElementById('lost').hidden", timeout=BACK_MS)
            assert page.inner_text("#word") == "▶ Running"  # nothing new was told; the line alone is back
            play(hub, 3)
            sight.says("round 3 of 12, 3 of 4 sites")
            sight.says("; south late in round 3")
            assert page.locator("circle.dot.fused").count() == 2
            process.send_signal(signal.SIGINT)
            code, said = ended(process)
            assert code == 0 and "Watched no longer" in said
        assert all(asked.startswith("http://127.0.0.1:") for asked in sight.asked)


def test_who_is_revoked_keeps_what_was_heard_and_hears_why(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    with hub.open():
        home = member_home(hub, tmp_path)
        with watching(home, hub.gateway.port) as (url, process):
            hub.board.tell("quick", kind="study_started", time=time.time())
            deadline = time.monotonic() + HANG_S
            while not runs_of(url)["runs"]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            hub.home.enrolment.revoke("north", reason="keys were lost")
            assert process.stdout is not None
            assert process.stdout.readline().startswith("Nothing more will come: ")
            kept = runs_of(url)
            assert kept["runs"][0]["status"] == "unknown" and kept["member"]["up"] is False
            process.send_signal(signal.SIGINT)
            code, said = ended(process)
            assert code == CertificateError.exit_code and "revoked" in said
        with watching(home, hub.gateway.port) as (_, process):
            code, said = ended(process)  # by itself: nothing was heard that could be kept
            assert code == CertificateError.exit_code and "revoked" in said
