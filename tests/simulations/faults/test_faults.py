"""The fault matrix: its cases are complete, five of them are played, and a case that does not hold is said to fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.rounds.states import RoundState
from shared_model.errors import ConfigError
from simulations.faults.lab import SERVER, TRAINERS
from simulations.faults.matrix import SUITE, cases
from simulations.faults.points import SERVER_PLACES


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the harness forks, which a process with threads must not."""
    return subprocess.run(
        [sys.executable, "-m", "mammofed", "simulate", "faults", *arguments], capture_output=True, text=True,
        timeout=1500, cwd=Path(__file__).parents[3], check=False,
    )  # fmt: skip


def test_every_party_is_killed_at_every_state_of_the_round_table() -> None:
    names = {case.name for case in cases()}
    assert {state.value for state in RoundState} <= set(SERVER_PLACES)
    for state in RoundState:
        for party in (SERVER, *TRAINERS, "all"):
            assert f"kill/{party}/at-{SERVER}/{state.value}" in names
    assert len(names) == len(cases()) and set(SUITE) <= names


def test_cases_are_chosen_by_pattern_and_by_first_words() -> None:
    assert {case.name for case in cases(["kill/server"])} == {
        case.name for case in cases() if case.name.startswith("kill/server/")
    }
    assert [case.name for case in cases(["damage/*/ledger"])] == ["damage/site-001/ledger"]
    assert {case.name.split("/")[1] for case in cases(["kill*/all"])} == {"all"}
    assert len(cases(["kill", "malice"])) == len(cases(["kill"])) + len(cases(["malice"]))
    with pytest.raises(ConfigError, match="no such case"):
        cases(["kil"])


@pytest.mark.slow
def test_five_kills_and_each_study_comes_to_the_same_end(tmp_path: Path) -> None:
    done = command("--suite", "--json", str(tmp_path / "results.json"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert {result["name"] for result in results} == set(SUITE)
    assert all(result["faults"] == [] and "killed, COMPLETE" in result["end"] for result in results)


def test_a_pattern_that_fits_nothing_is_refused_by_the_command() -> None:
    done = command("--only", "nothing", "--list")
    assert done.returncode == ConfigError.exit_code and "no such case" in done.stderr
