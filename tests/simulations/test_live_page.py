"""The page beside a simulation: it is served by a process of its own, and ends with the study."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from simulations import page
from simulations.benchmarks.staged_run import StagedRun, staged_protocol
from simulations.composition import compose_config
from simulations.page import live_page

LONG_S = 300.0


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study does not wait long for a page that does not come; here it comes, on a busy machine too."""
    monkeypatch.setattr(page, "START_S", LONG_S)
    monkeypatch.setattr(page, "STOP_S", LONG_S)


def test_the_page_of_a_study_is_served_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LAST_LOOK_S", 0.0)
    said: list[str] = []
    with StagedRun(tmp_path / "run", staged_protocol(sites=("a", "b"), rounds=2), started=time.time()) as run:
        run.begin()
        with live_page({"kind": "web", "port": 0, "open": False}, run.run_dir, said.append):
            url = re.search(r"http://127\.0\.0\.1:\d+/", said[0])
            assert url is not None, said
            with urllib.request.urlopen(f"{url[0]}api/runs", timeout=LONG_S) as answer:
                assert json.load(answer)["runs"][0]["status"] == "running"
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url[0], timeout=LONG_S)


def test_a_page_that_cannot_be_served_is_said_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LAST_LOOK_S", 0.0)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = {"kind": "web", "port": taken.getsockname()[1], "open": False}
        with live_page(settings, tmp_path, said.append):
            pass
    assert "cannot listen on 127.0.0.1" in said[0]


def test_of_a_page_that_breaks_the_error_is_said_not_the_head_of_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    (tmp_path / "code.py").write_text("raise RuntimeError('no module of that name')")
    monkeypatch.setattr(page.guard, "__file__", str(tmp_path / "code.py"))
    with live_page({"kind": "web", "port": 0, "open": False}, tmp_path, said.append):
        pass
    assert said[0] == "The live page could not be served: RuntimeError: no module of that name"


def test_no_page_is_the_default_and_web_is_a_choice() -> None:
    assert compose_config([])["monitor"]["kind"] == "none"
    web = compose_config(["monitor=web", "monitor.port=9000"])["monitor"]
    assert web["kind"] == "web" and web["port"] == 9000 and web["open"] is True and web["stay"] is False
    with live_page({"kind": "none"}, Path("/nowhere"), pytest.fail):
        pass
