"""The live view: what it says of a study, on a terminal and without one, and that it gives the terminal back."""

from __future__ import annotations

import io
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from server.rounds.events import Event
from shared_model.protocol import Protocol
from simulations.live import LiveView, draw_study, event_line, stop_on_interrupt
from simulations.live_state import SHOWN_SITES, StudyState
from simulations.tables import final_tables
from tests.handmade_run import SITES, protocol_values, summary_values, write_run_dir

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def event(kind: str, **values: Any) -> Event:
    return Event(**({"time": 1000.0, "kind": kind} | values))


def replied(site: str, number: int, **data: Any) -> Event:
    found = {"outcome": "contributed", "seconds": 1.5, "bytes_up": 500_000, "bytes_down": 600_000} | data
    return event("site_replied", round=number, attempt=1, site=site, data=found)


def one_round(number: int, *, private: bool) -> list[Event]:
    extra = {"epsilon": 0.5 * number, "budget": 8.0} if private else {"loss": 0.6 / number}
    sites = sorted(SITES)
    return [
        event("round_opened", round=number, attempt=1),
        *(event("site_started", round=number, attempt=1, site=site) for site in sites),
        *(replied(site, number, **extra) for site in sites),
        event("evaluated", round=number,
              data={"auc_fused": 0.7 + 0.01 * number, "auc_image": 0.69, "auc_clinical": 0.6}),
        event("round_closed", round=number, attempt=1),
    ]  # fmt: skip


def state_after(rounds: int, *, private: bool = True) -> StudyState:
    state = StudyState.of(Protocol.create(protocol_values(private=private)))
    state.apply(event("study_started"))
    for number in range(1, rounds + 1):
        for each in one_round(number, private=private):
            state.apply(each)
    return state


def drawn(state: StudyState, *, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(draw_study(state, width=width, elapsed=83.0))
    return console.export_text()


def test_state_counts_bytes_rounds_phases_and_budget() -> None:
    state = state_after(5)
    assert (state.round, state.closed, state.phase, state.status) == (5, 5, "fusion", "running")
    assert state.bytes == 5 * 4 * 1_100_000
    assert state.sites["north"].epsilon == 2.5 and state.sites["north"].budget == 8.0
    assert [point.fused for point in state.selection] == pytest.approx([0.71, 0.72, 0.73, 0.74, 0.75])
    assert state_after(2).phase == "image"


def test_view_under_privacy_shows_epsilon_and_hides_the_loss() -> None:
    text = drawn(state_after(5))
    row = next(line for line in text.splitlines() if " north " in line)
    assert re.search(r"north\s+300\s+contributed\s+– private\s+2\.50 / 8\.00\s+1\.5\s+2\.5 MB / 3\.0 MB", row)
    assert "round 5/12" in text and "phase fusion" in text and "1 min 23 s" in text
    assert "held-out AUC (selection): fused 0.750  image 0.690  clinical 0.600" in text


def test_view_without_privacy_shows_the_loss_and_no_epsilon() -> None:
    text = drawn(state_after(2, private=False))
    assert "0.300" in text and "psilon" not in text and "private" not in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_view_fits_the_terminal_and_keeps_every_site(width: int) -> None:
    lines = drawn(state_after(3), width=width).splitlines()
    assert max(len(line) for line in lines) <= width
    for site in SITES:
        assert any(site in line for line in lines)


def test_a_site_that_is_late_stays_visible_and_the_next_round_clears_it() -> None:
    state = state_after(1)
    state.apply(event("site_replied", round=2, attempt=1, site="west", severity="warning", code="late",
                      data={"outcome": "late"}))  # fmt: skip
    assert state.sites["west"].state == "late" and state.sites["west"].seconds is None
    assert "late" in drawn(state)
    state.apply(event("round_opened", round=3, attempt=1))
    assert state.sites["west"].state == "waiting"


def test_events_of_the_evaluator_add_no_row() -> None:
    state = state_after(1)
    state.apply(replied("evaluator", 1))
    assert sorted(state.sites) == sorted(SITES)


def test_numbers_that_are_none_do_not_reach_the_view() -> None:
    state = state_after(0)
    state.apply(replied("north", 1, seconds=float("nan"), epsilon="much"))
    assert state.sites["north"].seconds is None and state.sites["north"].epsilon is None


def test_plain_output_is_one_line_an_event_without_escapes(tmp_path: Path) -> None:
    write_run_dir(tmp_path)
    stream = io.StringIO()
    ticks = iter(range(1000))
    with LiveView(tmp_path, console=Console(file=stream, width=40), clock=lambda: float(next(ticks))) as view:
        with view.stage("Prepare films", 8) as advance:
            for done in range(1, 9):
                advance(done, 8)
        for each in one_round(1, private=True):
            view.observe(each)
        view.observe(event("alarm", severity="warning", round=1, text="[red]the image branch[/red] fell"))
        view.note("one word more")
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert all(re.match(r"\[ *\d+\.\d s\] ", line) for line in lines)
    words = [line.partition("] ")[2] for line in lines]
    assert words[:5] == [
        "Prepare films: 8 to do", "Prepare films: 2 of 8", "Prepare films: 4 of 8", "Prepare films: 6 of 8",
        words[4],
    ]  # fmt: skip
    assert re.fullmatch(r"Prepare films  8  done in \d+\.0 s", words[4])
    assert sum("site replied" in line and "loss private" in line for line in words) == 4
    assert "WARNING round 1: alarm, [red]the image branch[/red] fell" in words and words[-1] == "one word more"


def test_a_stage_that_fails_says_so_and_the_error_goes_on(tmp_path: Path) -> None:
    stream = io.StringIO()
    with (
        pytest.raises(ValueError, match="no such film"),
        LiveView(tmp_path, console=Console(file=stream)) as view,
        view.stage("Prepare films", None),
    ):
        raise ValueError("no such film")
    assert "Prepare films  NOT finished" in stream.getvalue()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_terminal_is_given_back_whatever_happens(tmp_path: Path, error: type[BaseException]) -> None:
    write_run_dir(tmp_path)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, _environ={"TERM": "xterm-256color"})
    with pytest.raises(error), LiveView(tmp_path, console=console) as view:
        view.observe(event("study_started"))
        raise error
    text = stream.getvalue()
    assert text.count(HIDE_CURSOR) >= 1 and text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)


def test_many_threads_may_report_while_the_view_draws(tmp_path: Path) -> None:
    """The drawing thread holds rich's lock and wants ours; nobody may print while holding ours."""
    write_run_dir(tmp_path)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm-256color"})
    with LiveView(tmp_path, console=console) as view:

        def report(site: str) -> None:
            with view.stage(f"prepare {site}", 50) as advance:
                for number in range(1, 51):
                    advance(number, 50)
                    view.observe(replied(site, number))
                    view.observe(event("alarm", severity="warning", round=number, text="look"))
                    view.note("a line")

        threads = [threading.Thread(target=report, args=(site,), daemon=True) for site in SITES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)


def test_first_interrupt_asks_to_stop_the_second_leaves(tmp_path: Path) -> None:
    stream, stop = io.StringIO(), threading.Event()
    before = signal.getsignal(signal.SIGINT)
    view = LiveView(tmp_path, console=Console(file=stream))
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt(stop, view):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_event_line_names_place_site_and_numbers() -> None:
    line = event_line(replied("north", 3, epsilon=1.23456), private=True)
    assert line == (
        "round 3: site replied north, outcome contributed, seconds 1.5, bytes up 500.0 kB, bytes down 600.0 kB, "
        "epsilon 1.235, loss private"
    )


def crowd(*, private: bool = True) -> Protocol:
    """The handmade study with a hundred sites."""
    values = protocol_values(private=private)
    names = [f"site_{number:03d}" for number in range(1, 101)]
    values["federation"] |= {
        "sites": [{"name": name, "patients": 40, "weight": 0.01} for name in names], "sites_per_round": 100,
    }  # fmt: skip
    return Protocol.create(values)


def test_of_a_hundred_sites_a_terminal_shows_those_in_trouble_and_counts_the_rest() -> None:
    state = StudyState.of(crowd())
    state.apply(event("round_opened", round=1, attempt=1))
    for number in range(1, 61):
        state.apply(replied(f"site_{number:03d}", 1, epsilon=1.0, budget=8.0))
    state.apply(event("site_replied", round=1, site="site_093", severity="warning", data={"outcome": "late"}))
    state.deliver("site_077", state="training")
    lines = drawn(state).splitlines()
    assert sum("site_" in line and "replied" not in line for line in lines) == SHOWN_SITES - 1
    assert any("site_093" in line and "late" in line for line in lines)
    assert any("site_077" in line and "training" in line for line in lines)
    assert any("and 85 others: 47 contributed, 38 waiting" in line for line in lines)
    assert len(lines) < 40


def test_plain_output_of_a_hundred_sites_is_not_a_line_a_site(tmp_path: Path) -> None:
    write_run_dir(tmp_path)
    (tmp_path / "protocol.json").write_text(crowd().to_json())
    stream = io.StringIO()
    with LiveView(tmp_path, console=Console(file=stream)) as view:
        view.observe(event("round_opened", round=1, attempt=1))
        for number in range(1, 101):
            view.observe(replied(f"site_{number:03d}", 1))
        view.observe(event("site_replied", round=1, site="site_004", severity="warning", data={"outcome": "late"}))
        view.observe(event("round_closed", round=1, attempt=1, data={"contributed": 99}))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "site_004" in lines[1] and "contributed 99" in lines[2]


def test_final_table_of_a_hundred_sites_shows_those_that_contributed_least(tmp_path: Path) -> None:
    protocol = crowd()
    summary = summary_values(protocol)
    names = [site.name for site in protocol.federation.sites]
    summary["participation"] = {name: {"contributed": 12 if name != "site_088" else 3} for name in names}
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(final_tables(summary, protocol, run_dir=tmp_path, report=tmp_path / "report.html"))
    text = console.export_text()
    assert "the 20 of 100 that contributed least" in text
    assert "site_088" in text and "site_019" in text and "site_020" not in text


def final(tmp_path: Path, *, private: bool = True, **changes: Any) -> str:
    protocol = Protocol.create(protocol_values(private=private))
    console = Console(file=io.StringIO(), width=120, record=True)
    summary = summary_values(protocol) | changes
    console.print(final_tables(summary, protocol, run_dir=tmp_path, report=tmp_path / "report.html"))
    return console.export_text()


def test_final_tables_show_what_hospitals_added_and_what_it_cost(tmp_path: Path) -> None:
    text = final(tmp_path)
    assert re.search(r"Public weights only, no hospital data\s+0\.790 \(0\.760-0\.815\)", text)
    assert re.search(r"Films \+ table \(fused\)\s+0\.873 \(0\.843-0\.898\)\s+77 % \(67-85\)\s+84 %", text)
    assert text.index("Public weights only, no") < text.index("Table alone") < text.index("(fused)")
    assert re.search(r"west\s+100\s+12\s+7\.43 of 8\.00", text) and "delta 1e-05" in text
    assert str(tmp_path / "report.html") in text.replace("\n", "") and "COMPLETE" in text


def test_final_tables_lose_no_column_on_a_terminal_of_80_columns(tmp_path: Path) -> None:
    protocol = Protocol.create(protocol_values())
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(final_tables(summary_values(protocol), protocol, run_dir=tmp_path, report=tmp_path / "report.html"))
    row = next(line for line in console.export_text().splitlines() if "Films + table" in line)
    assert re.search(r"0\.873 \(0\.843-0\.898\)\s+77 % \(67-85\)\s+84 %", row)


def test_final_tables_of_a_stopped_study_say_how_to_go_on(tmp_path: Path) -> None:
    text = final(tmp_path, status="STOPPED", rounds_completed=3, metrics={"held_out": None, "sites": {}}, privacy={})
    assert "STOPPED  3 of 12 rounds" in text and "mammofed simulate resume" in text
    assert "Model  " not in text and "none spent" in text


def test_final_tables_without_privacy_have_no_epsilon(tmp_path: Path) -> None:
    assert "Epsilon" not in final(tmp_path, private=False)
