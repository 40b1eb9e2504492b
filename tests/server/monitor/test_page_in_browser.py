"""The page as people see it, in a real headless Chromium: live, on a phone, in the dark, by keyboard, read aloud.

Pictures of what was seen are kept with the test's files, or in `MAMMOFED_PICTURES`.
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.control.roll import Present, Sign
from server.rounds.states import StudyStep
from shared_model.certificates import Role
from shared_model.control import TrainerState
from shared_model.phases import PHASES
from simulations.benchmarks.staged_run import StagedRun, staged_protocol
from simulations.ports import held_ports
from tests.browser import Sight, chromium, served

pytestmark = pytest.mark.slow
SITES = ("mercy-north", "st-anna", "university-hospital-of-the-east", "west")
VIEWS = ("study", "sites", "privacy", "rounds", "events", "compare")
TROUBLE = {
    2: {"west": ("late", "late: nothing by the deadline")},
    3: {"st-anna": ("refused", "norm: norm of the update 9.12, the protocol allows 2")},
    4: {"st-anna": ("failed", "code 50: the trainer died"), "west": ("failed", "absent: no node stands for this site")},
    6: {"mercy-north": ("abstained", "round 6 would bring the patients of group `train` to epsilon 8.2")},
}
NASTY = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@contextmanager
def looking(browser: Any, *, width: int = 1280, dark: bool = False) -> Iterator[Sight]:
    """One page; nothing may leave this machine, and nothing may be complained of."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    sight = Sight(context.new_page())
    try:
        yield sight
        assert sight.asked and all(url.startswith(("http://127.0.0.1:", "data:")) for url in sight.asked), sight.asked
        assert sight.complaints == []
    finally:
        context.close()


def staged(
    place: Path, name: str, *, rounds: int = 12, done: int = 0, ago: float = 0.0, seconds: float = 10.0
) -> StagedRun:
    """seconds: until everybody has answered in a round, which one more ends."""
    protocol = staged_protocol(sites=SITES, rounds=rounds)
    run = StagedRun(place / name, protocol, started=time.time() - (seconds + 1.0) * done - ago)
    run.begin()
    for number in range(1, done + 1):
        run.round(number, outcomes=TROUBLE.get(number), seconds=seconds)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One study of each kind: running, complete, incomplete, failed, stalled; `running` first."""
    place = tmp_path_factory.mktemp("kinds")
    complete, incomplete = staged(place, "complete", done=12), staged(place, "incomplete", done=3)
    complete.finish(StudyStep.COMPLETE)
    incomplete.finish(StudyStep.GIVE_UP, "round 4 has no quorum after 2 attempts")
    failed = staged(place, "failed", done=5, ago=60)
    failed.open(6)
    stalled = staged(place, "stalled", done=4, ago=200)
    stalled.open(5)
    for ended in (complete, incomplete, failed):
        ended.die()
    # Its rounds are long, so that round 8 is not stalled before the last test has looked at it.
    with staged(place, "running", done=7, seconds=600.0) as running, stalled:
        running.open(8)
        yield place


def test_rounds_appear_without_loading_anew(browser: Any, tmp_path: Path) -> None:
    run = staged(tmp_path, "live", rounds=5)
    with run, served(run.run_dir) as url, looking(browser) as sight:
        sight.open(url)
        loaded = [asked for asked in sight.asked if asked.rstrip("/").startswith(url.rstrip("/"))]
        for number in (1, 2, 3):
            run.now = max(run.now, time.time())
            run.open(number)
            sight.says(f"round {number} of 5, 4 of 4 sites asked")
            run.collect(number, outcomes={"west": ("late", "late: nothing")} if number == 2 else None, seconds=0.1)
            run.close(number)
            run.now = time.time()
            sight.page.wait_for_function(
                "n => document.querySelectorAll('circle.dot.fused').length === n + 1", arg=number)  # fmt: skip
        sight.says("round 3 of 5, 4 of 4 sites")
        assert sight.page.evaluate("performance.getEntriesByType('navigation').length") == 1
        assert sight.asked[: len(loaded)] == loaded and len(sight.asked) < len(loaded) + 4
        sight.tab("sites")
        assert sight.page.locator("path.cell.late").count() == 1
        run.finish(StudyStep.GIVE_UP, "too few sites")
        sight.says("after round 3 of 5: too few sites")
        assert sight.page.inner_text("#answer").lower().count("incomplete") == 1
        assert sight.page.title() == "Incomplete: staged 3/5"


def beats(run: StagedRun, gone: dict[str, float]) -> None:
    """What the coordinator's daemon writes. gone: seconds since each site's last heartbeat."""
    home = run.run_dir / "deployment" / "hub"
    (home / "run").mkdir(parents=True, exist_ok=True)
    (home / "coordinator.json").write_text("{}")
    now = time.time()
    members = {
        site: Sign(role=Role.SITE, time=now - gone.get(site, 0.0), clock_ahead=0.0, release="0.1.0",
                   trainer=TrainerState(up=True, device="cuda:0")) for site in SITES
    }  # fmt: skip
    draft, path = home / "run" / "draft", home / "run" / "present.json"
    draft.write_bytes(Present(time=now, members=members).encode())
    draft.chmod(0o600)
    draft.replace(path)


@contextmanager
def beating(run: StagedRun) -> Iterator[dict[str, float]]:
    """A daemon that hears all sites but those in what is given, which are silent for so many seconds."""
    gone: dict[str, float] = {}
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.5):
            beats(run, dict(gone))

    beats(run, gone)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield gone
    finally:
        over.set()
        thread.join()


def test_a_silent_site_is_named_and_seen_back(browser: Any, tmp_path: Path) -> None:
    run = staged(tmp_path, "live", done=2)
    with run, beating(run) as gone, served(run.run_dir) as url, looking(browser) as sight:
        run.now = time.time()
        run.open(3)
        daemon = (run.run_dir / "deployment" / "hub" / "audit.jsonl").open("w")
        fcntl.flock(daemon, fcntl.LOCK_EX)
        sight.open(url, "sites")
        sight.says("round 3 of 12, 4 of 4 sites asked")
        gone["st-anna"] = 9.0
        sight.says("st-anna silent for 9 s, the round needs 3 of 4, deadline in")
        assert "silent for" in sight.page.inner_text("table.stack")
        sight.shoot(tmp_path, "silent-site")
        gone.clear()
        sight.says("round 3 of 12, 4 of 4 sites asked")
        daemon.close()


def test_a_study_that_begins_later_appears_by_itself_and_is_one_click_away(browser: Any, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    (hub / "studies").mkdir(parents=True)
    (hub / "coordinator.json").write_text("{}")
    with staged(hub / "studies", "first", done=2) as first, served(hub) as url, looking(browser) as sight:
        sight.open(url)
        sight.says("round 2 of 12")
        assert sight.page.locator("#picker").is_hidden() and sight.page.locator("#fresh").is_hidden()
        with staged(hub / "studies", "second", rounds=5, done=1):
            sight.page.click('#fresh button >> text="second"')
            sight.says("round 1 of 5")
            assert sight.page.input_value("#run") == "second" and sight.page.locator("#fresh").is_hidden()
            assert sorted(sight.page.locator("#run option").all_inner_texts()) == ["first", "second"]
            sight.tab("compare")
            sight.page.wait_for_function("() => document.querySelectorAll('.runs input').length === 2")
        assert sight.page.evaluate("performance.getEntriesByType('navigation').length") == 1
        sight.page.select_option("#run", "first")
        sight.says("round 2 of 12")
        first.finish(StudyStep.STOP)
        sight.says("stopped by request")


def test_what_the_open_round_s_sites_sent_is_not_known_yet(browser: Any, tmp_path: Path) -> None:
    run = staged(tmp_path, "live", done=1)
    with run, served(run.run_dir) as url, looking(browser) as sight:
        run.now = time.time()
        run.open(2)
        sight.open(url, "rounds")
        rows = sight.page.locator('.scroll[data-key="Sites in round 2"] tbody tr')
        rows.first.wait_for()
        assert [row.split("\t")[2:4] for row in rows.all_inner_texts()] == [["–", "–"]] * 4


def test_each_state_looks_different_at_first_sight(browser: Any, runs: Path, tmp_path: Path) -> None:
    looks, words = set(), set()
    with served(runs) as url, looking(browser) as sight:
        for kind in ("running", "complete", "incomplete", "failed", "stalled"):
            sight.open(f"{url}?run={kind}")
            sight.page.wait_for_function("k => document.body.dataset.status === k", arg=kind)
            words.add(sight.page.inner_text("#word"))
            looks.add(sight.page.eval_on_selector(
                "#answer", "e => ['borderTopStyle', 'borderTopColor', 'backgroundColor'].map("
                "p => getComputedStyle(e)[p]).join()"))  # fmt: skip
            sight.shoot(tmp_path, f"state-{kind}")
    assert len(words) == len(looks) == 5  # in words and mark, and in frame or ground


def test_without_its_protocol_a_study_looks_different_and_no_number_is_made_up(browser: Any, tmp_path: Path) -> None:
    run = staged(tmp_path, "changed", done=2)
    run.die()
    protocol = run.run_dir / "protocol.json"
    protocol.write_text(protocol.read_text().replace("600.0", "700.0"))
    with served(tmp_path) as url, looking(browser) as sight:
        sight.open(url)
        sight.page.wait_for_function("document.body.dataset.status === 'unknown'")
        assert sight.page.eval_on_selector("#answer", "e => getComputedStyle(e).borderTopStyle") == "dotted"
        for view in ("study", "rounds", "compare"):
            sight.tab(view)
            assert " of 0" not in sight.page.inner_text("#panel")
        row = sight.page.inner_text('.scroll[data-key^="Each run"] tbody')
        assert "none" not in row, "whether it is private is not known"
        sight.shoot(tmp_path, "state-unknown")


@pytest.mark.parametrize("width", [1280, 375])
def test_a_round_s_seconds_are_told_by_phase(browser: Any, tmp_path: Path, width: int) -> None:
    run = StagedRun(tmp_path / "summed", staged_protocol(sites=SITES, rounds=4, secure_sum="masked"),
                    started=time.time() - 30)  # fmt: skip
    run.begin()
    run.round(1, outcomes={"west": ("late", "late: nothing by the deadline")})
    with run, served(run.run_dir) as url, looking(browser, width=width) as sight:
        sight.open(url, "rounds")
        sight.page.wait_for_selector("rect.phase")
        count = {name: sight.page.locator(f"rect.phase.{name}").count() for name in (*PHASES, "trip")}
        assert count == {"wait": 2, "load": 3, "train": 3, "mask": 3, "send": 3, "trip": 0}  # one waited for nothing
        key = sight.page.inner_text("figcaption .key")
        for words in ("for its turn", "loading", "training", "masking", "on the way", "other sites"):
            assert words in key
        wide = sight.page.eval_on_selector_all(
            "rect.phase.train, rect.phase.load", "found => found.map(e => e.getBoundingClientRect().width)"
        )
        assert wide[1] == pytest.approx(3 * wide[0], rel=0.1), "to scale: three times as long"
        cells = sight.page.locator('.scroll[data-key^="Seconds by phase"] tbody tr').all_inner_texts()
        assert [row.split("\t")[0].split("\n")[0] for row in cells] == list(SITES[:3])
        assert all(value in cells[1] for value in ("0.5 s", "1.5 s", "4.5 s", "0.8 s", "1.2 s", "8.5 s"))
        assert sight.page.locator("svg.chart text", has_text="late").count() == 1
        assert "in steps of about 12 %" in sight.page.inner_text("figcaption")
        assert "train\u00a04.5\u00a0s" in sight.page.text_content("#line-words")
        sight.shoot(tmp_path, f"phases-{width}")
        sight.tab("sites")
        text = sight.page.inner_text("#sites-table").replace("\u00a0", " ")
        assert "wait 0.5 s, load 1.5 s, train 4.5 s, mask 0.8 s, send 1.2 s, of 8.5 s" in text


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (375, False)])
def test_every_view_fits_and_passes_axe(browser: Any, runs: Path, tmp_path: Path, width: int, dark: bool) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with served(runs / "running") as url, looking(browser, width=width, dark=dark) as sight:
        for view in VIEWS:
            sight.open(url, view)
            sight.page.wait_for_function("() => document.querySelector('#panel h2')")
            assert sight.page.evaluate("document.documentElement.scrollWidth") <= width
            for summary in sight.page.locator("#panel > details > summary, #sites-table > details > summary").all():
                summary.click()
            found = axe.Axe().run(sight.page).response["violations"]
            serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")]
            assert serious == [], (view, serious)
            sight.shoot(tmp_path, f"{view}-{'dark' if dark else 'light'}-{width}")
        ground = sight.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(18, 22, 29)" if dark else "rgb(255, 255, 255)")


def test_everything_can_be_done_by_keyboard(browser: Any, runs: Path) -> None:
    with served(runs / "running") as url, looking(browser) as sight:
        page = sight.page
        sight.open(url)
        page.wait_for_function("() => document.querySelectorAll('#run option').length === 5")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "run"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "tab-study"
        page.keyboard.press("ArrowRight")
        sight.drawn("sites")
        assert page.get_attribute("#tab-sites", "aria-selected") == "true"
        while page.evaluate("document.activeElement.dataset.key") != "strip":
            page.keyboard.press("Tab")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        assert page.inner_text(".strip-words") == (
            "st-anna, round 3: rejected by the sanity gate. norm: norm of the update 9.12, the protocol allows 2"
        )
        page.keyboard.press("Enter")
        sight.drawn("rounds")
        page.wait_for_function("() => document.querySelector('#panel h2').textContent === 'Round 3 of 12'")
        while page.evaluate("document.activeElement.dataset.key") != "before":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('#panel h2').textContent === 'Round 2 of 12'")
        assert page.evaluate("document.activeElement.dataset.key") == "before"  # drawn anew, focus is kept


def test_events_are_found_and_codes_explain_themselves(browser: Any, runs: Path) -> None:
    with served(runs / "running") as url, looking(browser) as sight:
        sight.open(url, "events")
        sight.page.fill("#event-text", "st-anna norm")
        sight.page.wait_for_function("() => document.querySelectorAll('#event-rows tr').length === 1")
        row = sight.page.locator("#event-rows tr")
        assert "refused" in row.inner_text()
        row.locator("summary").first.click()
        assert "The coordinator did not take the reply" in row.inner_text()
        sight.page.fill("#event-text", "trainer died")
        sight.page.wait_for_function("() => document.querySelector('#event-rows').textContent.includes('trainer died')")
        sight.page.locator("#event-rows details.code summary", has_text="50").click()
        assert "TrainerError" in sight.page.inner_text("#event-rows")
        sight.page.fill("#event-text", "")
        sight.page.select_option("#event-severity", "warning")
        sight.page.wait_for_function("() => document.querySelectorAll('#event-rows tr').length === 5")


def test_two_runs_side_by_side(browser: Any, runs: Path, tmp_path: Path) -> None:
    with served(runs / "running") as url, looking(browser) as sight:
        sight.open(url, "compare")
        sight.page.wait_for_function("() => document.querySelectorAll('.runs input').length === 5")
        for name in ("complete", "failed"):
            box = sight.page.locator(".runs label", has_text=name).first.locator("input")
            if name == "complete":
                sight.page.locator(f'input[data-key="run-{name}"]').check()
            elif box.is_checked():
                box.uncheck()
        sight.page.wait_for_function("() => document.querySelector('#panel').textContent.includes('12 of 12')")
        text = sight.page.inner_text("#panel")
        assert "7 of 12" in text and "0.880 (0.850 to 0.910)" in text  # the test of the one that is complete
        assert sight.page.locator("polyline.line").count() >= 2
        sight.shoot(tmp_path, "compare-two")


def test_on_a_phone_no_number_of_a_comparison_is_out_of_sight(browser: Any, runs: Path) -> None:
    with served(runs / "running") as url, looking(browser, width=375) as sight:
        sight.open(url, "compare")
        rows = sight.page.locator('.scroll[data-key^="Each run"]')
        rows.locator("td").first.wait_for()
        assert rows.evaluate("box => box.scrollWidth <= box.clientWidth") and "7 of 12" in rows.inner_text()


def test_one_auc_is_the_same_number_wherever_it_stands(browser: Any, tmp_path: Path) -> None:
    run = staged(tmp_path, "live", done=1)
    with run, served(run.run_dir) as url, looking(browser) as sight:
        run.open(2)
        run.collect(2)
        run.close(2, fused=0.93846)
        sight.open(url)
        sight.page.wait_for_function("() => document.querySelector('.facts').textContent.includes('AUC 0.938')")
        assert "0.939" not in sight.page.inner_text("main") and "fused) 0.938" in sight.page.inner_text("main")


def test_hostile_words_are_text(browser: Any, tmp_path: Path) -> None:
    name = NASTY.replace("/", "_")
    run = staged(tmp_path, name, done=1)
    with run:
        run.open(2)
        run.collect(2, outcomes={"west": ("failed", NASTY)})
        with run.journal.entry():
            run.note("site_present", NASTY, site=NASTY, code=NASTY, severity="error", data={NASTY: NASTY})
        with served(run.run_dir) as url, looking(browser) as sight:
            for view in VIEWS:
                sight.open(url, view)
            sight.tab("events")
            sight.page.wait_for_selector("#event-rows tr")
            assert NASTY in sight.page.inner_text("#event-rows")
            sight.tab("rounds")
            sight.page.wait_for_function("() => document.querySelector('#panel').textContent.includes('onerror')")
            assert sight.page.evaluate("window.hurt === undefined")
            assert sight.page.locator("img, iframe, object, #panel script").count() == 0


def test_a_monitor_that_comes_back_is_found_again(browser: Any, tmp_path: Path) -> None:
    run = staged(tmp_path, "live", done=1)
    with run, looking(browser) as sight, held_ports(1) as (port,):  # nobody else is given it while it is not served
        with served(run.run_dir, port=port) as url:
            sight.open(url)
            sight.page.wait_for_function("() => document.getElementById('link').textContent === 'live'")
        sight.page.wait_for_function("() => document.getElementById('link').classList.contains('lost')")
        run.round(2)
        with served(run.run_dir, port=port):
            sight.page.wait_for_function("() => document.getElementById('link').textContent === 'live'")
            sight.says("round 2 of 12, 4 of 4 sites")
        sight.complaints.clear()  # the browser says that nobody answered


def test_five_hundred_rounds_of_fifty_sites_stay_fluid(browser: Any, tmp_path: Path) -> None:
    from simulations.benchmarks.monitor import long_run

    run = long_run(tmp_path / "long", rounds=500, sites=50, done=499)
    with run, served(run.run_dir) as url, looking(browser) as sight:
        sight.open(url, "sites")
        sight.page.evaluate("""() => { window.worst = 0; let last = performance.now();
            const step = (now) => { window.worst = Math.max(window.worst, now - last); last = now;
              requestAnimationFrame(step); };
            requestAnimationFrame(step); }""")
        run.now = time.time()
        run.open(500)
        sight.says("round 500 of 500")
        sight.shoot(tmp_path, "long-run")
        assert sight.page.locator("path.cell").count() <= 11 and sight.page.locator("#panel *").count() < 6000
