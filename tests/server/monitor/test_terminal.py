"""The terminal's view and `mammofed status`: each state looks different, hostile words are plain, codes are stable."""

from __future__ import annotations

import io
import json
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from mammofed import cli
from server.monitor.draw import STATUS, draw, headline, notable
from server.monitor.status import CODES, WORST, exit_code
from server.monitor.terminal import Terminal
from server.monitor.view import AlarmView, Auc, PhasesView, StudyView
from server.rounds.states import StudyStep
from shared_model.errors import ConfigError
from simulations.benchmarks.staged_run import StagedRun, staged_protocol
from tests.server.monitor.views import NOW, privacy, refused, site, study

HOSTILE = "[red]north[/red]\x1b[2J\n\x1b]0;title\x07"
ALARM = AlarmView(rule="silent_site", severity="warning", text="north is silent", site="north")


def shown(view: StudyView, *, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(draw(view, width=width))
    return console.export_text()


def test_a_study_at_a_glance() -> None:
    view = study(sites=(site(), site("south", now="late", silent_s=40.0, privacy=privacy(0.9, last_round=12))),
                 alarms=(ALARM,), events=(refused(9),), best=None)  # fmt: skip
    text = shown(view)
    assert "▶ running  round 10 of 30, 2 of 2 sites" in text and "9 of 30 rounds closed" in text
    assert re.search(r"north\s+contributed\s+9 of 9\s+4\.00 / 8\.00\s+2\.5\s+9\.0 kB / 9\.1 kB\s+2 s ago", text)
    assert "late, silent 40 s" in text and "7.20 / 8.00, out after 12" in text
    assert "! silent site: north is silent" in text and "WARNING round 9: site replied north, refused" in text
    assert "fused 0.800" in text


def test_a_wide_terminal_tells_a_round_s_seconds_by_phase() -> None:
    known = PhasesView(load=0.5, train=60.0, round_trip=0.4)  # of a kept reply nothing is said of sending
    text = shown(study(sites=(site(), site("south", phases=known), site("west", phases=None))), width=160)
    assert "Seconds: wait / load / train / mask / send" in text
    assert re.search(r"north .* 0\.1 / 0\.5 / 2\.0 / 0\.0 / 0\.9", text)
    assert re.search(r"south .* – / 0\.5 / 60\.0 / – / –", text)
    assert "Seconds: wait" not in shown(study(), width=120)


@pytest.mark.parametrize("status", list(STATUS))
def test_each_state_has_a_sign_a_word_and_a_colour_of_its_own(status: Any) -> None:
    view = study(status=status, sentence=f"{status}: some words")
    assert headline(view).plain == f"{STATUS[status][0]} {status}: some words"
    assert len({sign for sign, _ in STATUS.values()}) == len({style for _, style in STATUS.values()}) == len(STATUS)


@pytest.mark.parametrize("status", ["stalled", "failed", "incomplete"])
def test_the_sentence_is_said_once_and_no_alarm_says_it_again(status: Any) -> None:
    said = f"{status}: too few sites" if status != "incomplete" else "incomplete after round 9 of 30: too few sites"
    again = AlarmView(rule="study_failed", severity="error", text=said)
    text = shown(study(status=status, sentence=said, alarms=(again, ALARM)))
    assert (text.count("too few sites"), text.count(f"{status}")) == (1, 1)
    assert "silent site: north is silent" in text and "study failed" not in text


def test_of_a_site_that_has_not_answered_no_bytes_are_shown() -> None:
    text = shown(study(sites=(site(), site("south", now="asked", bytes_up=None, bytes_down=None))))
    assert re.search(r"south\s+asked .* – / –", text) and " 0 B" not in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_the_terminal_and_keeps_every_site(width: int) -> None:
    lines = shown(study(alarms=tuple(replace(ALARM, rule=f"rule_{i}") for i in range(9))), width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert any("north" in line for line in lines) and any("south" in line for line in lines)


def test_hostile_names_and_words_are_plain_text() -> None:
    view = study(name=HOSTILE, run=HOSTILE, sentence=HOSTILE, sites=(site(HOSTILE),), events=(refused(9, HOSTILE),),
                 alarms=(replace(ALARM, text=HOSTILE),))  # fmt: skip
    console = Console(file=io.StringIO(), width=160, force_terminal=True, color_system=None)
    console.print(draw(view, width=160))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]north[/red]" in printed and "\x1b[2J" not in printed and "\x07" not in printed


def test_of_many_sites_those_in_trouble_are_shown() -> None:
    sites = [site(f"s{i:02d}") for i in range(40)]
    sites[37] = site("s37", silent_s=30.0)
    sites[38] = site("s38", now="rejected")
    rows, others = notable(tuple(sites))
    assert len(rows) == 15 and {"s37", "s38"} <= {row.name for row in rows} and others == {"contributed": 25}


def test_a_study_without_a_curve_or_privacy_is_shown_all_the_same() -> None:
    text = shown(study(rounds=(), private=False, sites=(site(privacy=None),), planned=0))
    assert "not measured yet" in text and "psilon" not in text


def test_an_exploration_has_no_rounds_in_the_terminal() -> None:
    counted = shown(study(explores=True, planned=1, closed=0, rounds=(), sites=(site(privacy=None),), best=None))
    assert "women are counted once" in counted and "rounds closed" not in counted


def test_the_interval_stands_with_the_score_that_the_study_is_about() -> None:
    (last,) = study().rounds[-1:]
    with_interval = replace(last, auc={"fused": Auc(value=0.8, low=0.7, high=0.9), "image": Auc(value=0.7, low=0.6)})
    assert "fused 0.800 (0.700 to 0.900)  image 0.700" in shown(study(rounds=(with_interval,)))


# --- on a run directory ---


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "staged-1"


def staged(run_dir: Path) -> StagedRun:
    run = StagedRun(run_dir, staged_protocol(sites=["east", "west"], rounds=3, quorum=1), started=NOW)
    run.begin()
    run.round(1)
    return run


def terminal(run_dir: Path, *, drawn: bool = False) -> tuple[Terminal, Console]:
    console = Console(file=io.StringIO(), width=120, record=True, force_terminal=drawn)
    return Terminal(lambda: [run_dir], console=console), console


def test_without_a_terminal_each_change_is_a_line_and_nothing_is_said_twice(run_dir: Path) -> None:
    with staged(run_dir) as run:
        there, console = terminal(run_dir)
        there.look()
        run.round(2, outcomes={"west": ("late", "late: no reply")})
        there.look()
        there.look()
        run.finish(StudyStep.GIVE_UP, "round 3 has no quorum")
        there.look()
    lines = console.export_text().splitlines()
    assert sum("round closed" in line for line in lines) == 1  # the first one was before
    assert sum("WARNING round 2: site replied west, late" in line for line in lines) == 1
    assert any("staged-1 incomplete after round 2 of 3: round 3 has no quorum" in line for line in lines)
    assert sum("ALARM study_failed (error)" in line for line in lines) == 1
    assert sum("round 3 has no quorum" in line and "finished" not in line for line in lines) == 1
    assert any("ALARM epsilon_near_budget (info)" in line for line in lines)


def test_on_a_terminal_it_is_drawn_until_it_is_stopped_and_gives_the_cursor_back(run_dir: Path) -> None:
    with staged(run_dir):
        there, console = terminal(run_dir, drawn=True)
        stop = threading.Event()
        stop.set()
        there.run(stop)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "MammoFed study staged" in printed and printed.count("\x1b[?25h") == printed.count("\x1b[?25l") == 1


def invoke(*arguments: str) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(cli, list(arguments))
    return done.exit_code, done.output, done.exception


def test_the_exit_code_says_how_a_study_stands(run_dir: Path) -> None:
    with staged(run_dir) as run:
        code, output, _ = invoke("status", str(run_dir))
        assert (code, output.startswith("▶ running")) == (100, True)
        run.die()
        assert invoke("status", str(run_dir))[0] == 104
    with StagedRun(run_dir.with_name("ended"), staged_protocol(sites=["east"], rounds=1), started=NOW) as run:
        run.begin()
        run.round(1)
        run.finish(StudyStep.COMPLETE)
        assert invoke("status", str(run_dir.with_name("ended")))[0] == 0
    assert invoke("status", str(run_dir.parent))[0] == 104, "of several the worst"
    assert invoke("status", str(run_dir.parent), "--study", "ended")[0] == 0


def test_status_says_why_a_study_ended_once_and_scripts_are_told_its_alarm(run_dir: Path) -> None:
    with staged(run_dir) as run:
        run.finish(StudyStep.GIVE_UP, "round 2 has no quorum")
        _, output, _ = invoke("status", str(run_dir))
        assert output.count("round 2 has no quorum") == 1 and output.count("incomplete") == 1
        (found,) = json.loads(invoke("status", str(run_dir), "--json")[1])["studies"]
    assert ("study_failed", found["sentence"]) in [(alarm["rule"], alarm["text"]) for alarm in found["alarms"]]


def test_for_scripts_it_is_json_with_the_same_code(run_dir: Path) -> None:
    with staged(run_dir) as run:
        run.finish(StudyStep.STOP)
        code, output, _ = invoke("status", str(run_dir), "--json")
    (found,) = json.loads(output)["studies"]
    assert (code, found["exit_code"], found["status"], found["closed"]) == (103, 103, "incomplete", 1)
    assert [one["site"] for one in found["sites"]] == ["east", "west"] and found["best"]["round"] == 1


def test_codes_are_a_table_for_scripts() -> None:
    assert CODES == {"complete": 0, "running": 100, "preparing": 101, "stalled": 102, "incomplete": 103, "failed": 104,
                     "unknown": 105}
    assert set(WORST) == set(CODES) == set(STATUS)
    paper = (Path(__file__).resolve().parents[3] / "shared_model" / "EXIT_CODES.md").read_text()
    assert all(f"| {code} |" in paper for code in CODES.values())
    assert exit_code([study(status="complete"), study(status="stalled"), study(status="running")]) == 102


def test_what_is_no_study_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").touch()
    for command in (("status", str(tmp_path)), ("monitor", "--terminal", str(tmp_path))):
        error = invoke(*command)[2]
        assert isinstance(error, ConfigError) and "mammofed site watch" in str(error)
    (tmp_path / "policy.yaml").unlink()
    error = invoke("status", str(tmp_path))[2]
    assert isinstance(error, ConfigError) and "none is in it" in str(error)


def test_another_machine_s_coordinator_is_watched_with_a_member_s_certificate(tmp_path: Path) -> None:
    error = invoke("monitor", "https://hub.example:8443")[2]
    assert isinstance(error, ConfigError) and "--home" in str(error)
    error = invoke("monitor", "https://hub.example:8443", "--home", str(tmp_path))[2]
    assert isinstance(error, ConfigError) and "site's home" in str(error)
