"""The daemon: what keeps it going, what ends it; the real one killed, started again, told to end, started twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.deploy import daemon
from server.deploy.daemon import Housekeeper
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.link import SUPERLINK
from server.deploy.record import Doorkeeper
from shared_model.audit import AuditLog
from shared_model.errors import RoundError, StorageError
from shared_model.guard import descendants
from shared_model.supervisor import ServiceState
from simulations.ports import held_ports
from tests.fake_superlink import FakeLink, FakeSuperLink
from tests.flower_processes import PATIENCE_S, ROOT


@pytest.fixture
def home(tmp_path: Path) -> Iterator[CoordinatorHome]:
    with held_ports(3) as (port, enrol_port, link_port):
        settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost",), listen="127.0.0.1", port=port,
                                   enrol_port=enrol_port, link_port=link_port)  # fmt: skip
        yield CoordinatorHome.create(tmp_path / "hub", settings)


def entries(home: CoordinatorHome) -> list[str]:
    with home.audit_log() as log:
        return [entry.kind for entry in log.entries()]


def test_a_command_that_is_writing_the_log_only_delays_the_daemon(
    home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = home.audit_log()
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            held.close()

    monkeypatch.setattr(daemon.asyncio, "sleep", pause)
    with asyncio.run(daemon._audit_log(home)):
        assert len(waits) == 2
        monkeypatch.setattr(daemon, "LOG_PATIENCE_S", 0.0)
        with pytest.raises(StorageError):
            asyncio.run(daemon._audit_log(home))


# --- the housekeeper ---


class Supervised:
    """SuperLink was started so many times."""

    def __init__(self) -> None:
        self.starts = 1

    def states(self) -> dict[str, ServiceState]:
        return {SUPERLINK: ServiceState(pid=1, starts=self.starts, seconds=1.0, last_exit=None)}


class House:
    """A housekeeper in a thread; `round` is one more of its rounds."""

    def __init__(self, home: CoordinatorHome, log: AuditLog) -> None:
        self.superlink, self.supervised, self.log = FakeSuperLink(), Supervised(), log
        self.link = FakeLink(home, self.superlink)
        self.keeper = Housekeeper(home, self.link, self.supervised, log, Doorkeeper(log))  # type: ignore[arg-type]
        self.failed: list[BaseException] = []

    def run(self, rounds: int) -> None:
        """So many rounds, in this thread."""
        waits = iter([False] * rounds + [True])

        class Ends(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                return next(waits)

        self.keeper.run(Ends())


@pytest.fixture
def log(home: CoordinatorHome) -> Iterator[AuditLog]:
    with home.audit_log() as found:
        yield found


def test_a_step_that_fails_is_said_once_keeps_no_other_from_running_and_is_tried_again(
    home: CoordinatorHome, log: AuditLog, caplog: pytest.LogCaptureFixture
) -> None:
    house, ran = House(home, log), list[str]()

    def nonsense() -> None:
        ran.append("nonsense")
        raise KeyError("a mistake of ours")

    def away() -> None:
        ran.append("away")
        raise RoundError("SuperLink does not answer")

    house.keeper._steps = (("a", nonsense), ("b", away), ("c", lambda: ran.append("c")))
    with caplog.at_level("WARNING"):
        house.run(3)
    assert ran == ["nonsense", "away", "c"] * 3
    said = [record.getMessage() for record in caplog.records]
    assert said == ["a: KeyError('a mistake of ours')", "b: SuperLink does not answer"]
    assert caplog.records[0].exc_info, "an error that nobody expected comes with its place"


def test_a_log_that_cannot_be_written_ends_the_daemon_so_that_a_new_start_opens_it_anew(
    home: CoordinatorHome, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared_model.audit import file

    def full(handle: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    house = House(home, log)
    home.record("invited", site="north")
    with monkeypatch.context() as patches:
        patches.setattr(file, "_write", full)
        with pytest.raises(StorageError, match=r"audit log cannot be written.*No space left.*a new start goes on"):
            house.run(5)
    log.close()
    with home.audit_log() as again:
        home.drain(again)
        assert [entry.kind for entry in again.entries()][-1] == "invited", "nothing was lost meanwhile"


def test_a_superlink_that_was_started_again_is_compared_again(home: CoordinatorHome, log: AuditLog) -> None:
    house = House(home, log)
    house.run(3)
    asked = len(house.superlink.calls)
    assert asked >= 1
    house = House(home, log)
    real = house.supervised.states
    rounds = iter([1, 1, 2, 2])

    def states() -> dict[str, ServiceState]:
        house.supervised.starts = next(rounds)
        return real()

    house.supervised.states = states  # type: ignore[method-assign]
    house.run(4)
    assert len(house.superlink.calls) == 2 * asked, "once at the start, once after the second start, and no more"


# --- the real one ---


def serve(home: CoordinatorHome) -> subprocess.Popen[bytes]:
    """`mammofed server serve` as a service would run it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with (home.folder.parent / "serve.log").open("ab") as stream:
        return subprocess.Popen([sys.executable, "-m", "mammofed", "server", "serve", str(home.folder)], cwd=ROOT,
                                env=environment, stdout=stream, stderr=stream, start_new_session=True)  # fmt: skip


def said(home: CoordinatorHome) -> str:
    path = home.folder.parent / "serve.log"
    return path.read_text() if path.exists() else ""


def until(home: CoordinatorHome, true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"{what}\n{said(home)}"
        time.sleep(0.1)


def both_doors_are_open(home: CoordinatorHome) -> bool:
    for port in (home.settings.port, home.settings.enrol_port):
        context = ssl.create_default_context(cadata=home.authority().ca_pem)
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as raw:
                context.wrap_socket(raw, server_hostname="localhost").close()
        except OSError:
            return False
    return True


def superlink_listens(home: CoordinatorHome) -> bool:
    place = ("127.0.0.1", home.settings.link_port)
    with contextlib.suppress(OSError), socket.create_connection(place, timeout=PATIENCE_S):
        return True
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_real_daemon_survives_a_kill_refuses_a_second_one_and_ends_without_leaving_a_process(
    home: CoordinatorHome,
) -> None:
    first = serve(home)
    try:
        until(home, lambda: both_doors_are_open(home) and superlink_listens(home), "it does not serve")
        second = serve(home)
        assert second.wait(PATIENCE_S) == StorageError.exit_code
        assert "another process writes the audit log" in said(home) and "Traceback" not in said(home)
        assert both_doors_are_open(home) and superlink_listens(home), "the first one does not mind"
        with home.enrolment() as enrolment:
            assert enrolment.pending() == [], "commands work beside it"
        home.record("invited", site="north")
        until(home, lambda: not list((home.folder / "audit-spool").iterdir()), "it does not take what commands did")
        everybody = descendants(first.pid)
        assert len(everybody) >= 4, "SuperLink and SuperExec, each with its guard"
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    third = serve(home)  # at once: the first one's SuperLink may still hold its port
    try:
        until(home, lambda: both_doors_are_open(home), "it does not serve again")
        until(home, lambda: not any(map(alive, everybody)), "the first one's processes stay")
        until(home, lambda: superlink_listens(home), "SuperLink does not come back")
        everybody = descendants(third.pid)
        began = time.monotonic()
        third.terminate()
        assert third.wait(60) == 0, "TimeoutStopSec of its unit"
        assert not any(map(alive, everybody)), f"left behind after {time.monotonic() - began:.0f} s"
    finally:
        third.kill()
        third.wait()
    found = entries(home)
    assert found.count("daemon_started") == 2 and found.count("daemon_ended") == 1
    assert found.count("invited") == 1 and found[-1] == "daemon_ended"
    assert "door" in found, "what came to the doors is on record"


@pytest.mark.slow
def test_a_daemon_whose_port_is_taken_says_which_and_leaves_nobody(home: CoordinatorHome) -> None:
    with socket.create_server(("127.0.0.1", home.settings.enrol_port)):
        process = serve(home)
        assert process.wait(PATIENCE_S) == 10
    assert f"127.0.0.1:{home.settings.enrol_port}" in said(home) and "Traceback" not in said(home)
    assert not superlink_listens(home)
    assert json.loads((home.run / "processes.json").read_text()) == {}, "nothing was begun before the doors were open"


@pytest.mark.slow
def test_a_frozen_superlink_does_not_keep_the_daemon_from_ending(home: CoordinatorHome) -> None:
    """A command of Flower's waits for it for two minutes; systemd does not."""
    with home.enrolment():
        pass
    process = serve(home)
    try:
        until(home, lambda: both_doors_are_open(home) and superlink_listens(home), "it does not serve")
        for pid in descendants(process.pid):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"flower-superlink" in line and b"guard" not in line:
                    os.kill(pid, signal.SIGSTOP)
        from shared_model.certificates import Member, Role  # a change of the registry makes it ask SuperLink

        with home.enrolment() as enrolment:
            enrolment.invite(Member("north", Role.SITE))
        until(home, lambda: any(_is_flwr(pid) for pid in descendants(process.pid)), "it does not ask SuperLink")
        everybody = descendants(process.pid)
        process.terminate()
        assert process.wait(daemon.GRACE_S + 45) == 0
        assert not any(map(alive, everybody))
    finally:
        process.kill()
        process.wait()


def _is_flwr(pid: int) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"flower_shell.py" in line or b"/flwr\0supernode" in line
