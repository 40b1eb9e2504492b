"""A real study with real trainer processes, watched in a real browser: rounds appear, a killed site is named, and seen
back, a hung one likewise. The round loop runs in this test's own process, so that it can be held at a round until the
page has shown it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.monitor.status import CODES, exit_code, views_of
from server.rounds.events import Event
from server.rounds.loop import run_study
from shared_model.messages import weights_sha256
from shared_model.protocol import Protocol
from simulations.engine import GridEvent, LocalGrid, TrainerPool
from simulations.live import silent_parties
from tests.browser import Sight, chromium, served

pytestmark = pytest.mark.slow
VICTIM = "site-02"
ONE_IS_SILENT = """() => {
    const bad = [...document.querySelectorAll('#sites-table .here.bad')];
    return bad.length === 1 && bad[0].textContent.startsWith('silent for')
        && document.querySelectorAll('#sites-table .here.good').length === 3;  // two sites and the evaluator
}"""
HANG_S = 600.0  # a bound for a machine that is busy


def until(true: Callable[[], bool]) -> None:
    """Wait for something that other processes bring about."""
    deadline = time.monotonic() + HANG_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_study_is_watched_while_a_site_dies_and_comes_back(small_study: Callable[..., Any], tmp_path: Path) -> None:
    study = small_study(sites=3, patients=20, held_out=30, federation__quorum=2, federation__deadline_s=HANG_S)
    values = study.protocol.model_dump(mode="json")
    values["initial_weights"]["sha256"] = weights_sha256(study.arrays)
    protocol, run_dir = Protocol.create(values), tmp_path / "run"
    for file in study.files.values():
        (file.parent / "protocols" / "approved.json").write_text(protocol.to_json())
    named, back, armed, hang = threading.Event(), threading.Event(), threading.Event(), threading.Event()
    killed: list[float] = []
    hung: list[int] = []
    began, seen_failing, well, third, frozen = (threading.Event() for _ in range(5))
    rounds = protocol.rounds
    assert rounds >= 4

    def observe(event: Event) -> None:
        began.set()
        if event.kind == "round_closed" and event.round == 1:
            assert armed.wait(HANG_S)  # until the page has shown round 1
        if event.kind == "site_replied" and event.site == VICTIM and event.data["outcome"] == "failed":
            seen_failing.set()
        if event.kind == "round_closed" and event.round == 2:
            assert named.wait(HANG_S)
        if event.kind == "round_closed" and event.round == 3:
            third.set()
            assert back.wait(HANG_S)
        if event.kind == "round_closed" and event.round == 4:
            assert well.wait(HANG_S)

    logs = run_dir / "logs"
    with TrainerPool(list(study.files.values()), log_dir=logs, processes=4, start_timeout_s=HANG_S) as pool:

        def kill(event: GridEvent) -> None:
            trainer = pool.trainer(VICTIM)
            if armed.is_set() and not killed and (event.kind, event.site) == ("started", VICTIM) and trainer.process:
                os.kill(trainer.process.pid, signal.SIGSTOP)  # it can answer nothing more ...
                threading.Timer(0.2, os.kill, (trainer.process.pid, signal.SIGKILL)).start()
                killed.append(time.monotonic())
            if hang.is_set() and not hung and (event.kind, event.site) == ("started", VICTIM) and trainer.process:
                os.kill(trainer.process.pid, signal.SIGSTOP)
                hung.append(trainer.process.pid)
                frozen.set()

        grid = LocalGrid(pool, observer=kill)
        loop = threading.Thread(target=run_study, kwargs={
            "grid": grid, "protocol": protocol, "run_dir": run_dir, "initial": study.arrays, "observer": observe,
            "stop": threading.Event(),
        })  # fmt: skip
        loop.start()
        assert began.wait(HANG_S)
        with chromium() as browser, served(run_dir) as url:
            sight = Sight(browser.new_page())
            sight.page.set_default_timeout(1000 * HANG_S)
            sight.page.goto(url)
            sight.says(f"round 1 of {rounds}, 3 of 3 sites")
            armed.set()
            sight.says(f"{VICTIM} failed in round 2")
            took = time.monotonic() - killed[0]
            assert seen_failing.wait(HANG_S)  # the page may be told of it before this process' own observer
            sight.shoot(tmp_path, "real-site-killed")
            named.set()
            sight.says(f"round 3 of {rounds}, 3 of 3 sites")
            sight.page.wait_for_function("() => !document.getElementById('sentence').textContent.includes('failed')")
            assert third.wait(HANG_S)  # started again, however long that took: it was silent meanwhile
            sight.tab("sites")
            sight.page.wait_for_function("() => document.querySelectorAll('#sites-table .here.good').length === 4")
            hang.set()
            back.set()
            assert frozen.wait(HANG_S)  # on a busy machine one that is well may be silent for a while, too
            sight.says(f"{VICTIM} silent for")  # beside the word `stalled`
            sight.page.wait_for_function(ONE_IS_SILENT)  # sooner or later it alone: so is it said here and below
            until(lambda: ([exit_code([view]) for view in views_of(run_dir)], [*silent_parties(run_dir)])
                  == ([CODES["stalled"]], [VICTIM]))  # fmt: skip
            sight.shoot(tmp_path, "real-site-hangs")
            os.kill(hung[0], signal.SIGCONT)
            sight.says(f"round 4 of {rounds}, 3 of 3 sites")
            sight.page.wait_for_function("() => document.querySelectorAll('#sites-table .here.good').length === 4")
            well.set()
            sight.says(f"all {rounds} rounds are closed, the held-out test is opened")
            sight.tab("sites")
            assert sight.page.locator("path.cell.failed").count() == 1
            sight.shoot(tmp_path, "real-study-complete")
            assert sight.complaints == []
        loop.join(HANG_S)
        assert not loop.is_alive()
        grid.close()
    print(f"named {took:.1f} s after it was killed (to be named within 10)")
