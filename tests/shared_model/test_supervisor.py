"""Children that die are started again; whatever they started goes with them, however the supervisor ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared_model import supervisor as module
from shared_model.errors import StorageError
from shared_model.guard import descendants
from shared_model.supervisor import MAX_LOG_BYTES, Service, Supervisor

HANG_S = 120.0  # each wait is for something that must come: an interpreter takes long to start on a busy machine
# Says its own number and its child's, then waits; the child ignores all but SIGKILL.
FAMILY = """
import os, signal, subprocess, sys, time
deaf = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)'
child = subprocess.Popen([sys.executable, '-c', deaf])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANG_S
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def service(folder: Path, code: str, *, name: str = "child", restart_s: float = 0.05) -> Service:
    return Service(name=name, command=[sys.executable, "-c", code], environment={"PATH": os.environ["PATH"]},
                   folder=folder, log=folder / f"{name}.log", restart_s=restart_s, slowest_s=0.2)  # fmt: skip


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def families(log: Path) -> list[list[int]]:
    return [[int(pid) for pid in line.split()] for line in log.read_text().splitlines()] if log.exists() else []


def test_a_killed_child_is_started_again_and_its_own_child_is_gone(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    with Supervisor() as supervisor:
        supervisor.add(service(tmp_path, FAMILY))
        until(lambda: len(families(log)) == 1)
        first, its_child = families(log)[0]
        os.kill(first, signal.SIGKILL)
        until(lambda: len(families(log)) == 2)
        assert not alive(its_child)
        until(lambda: supervisor.states()["child"].starts == 2)
        assert supervisor.alive("child")
    assert not any(alive(pid) for family in families(log) for pid in family)


def test_one_that_dies_young_is_started_again_and_again_and_said_to_have_ended(tmp_path: Path) -> None:
    said: list[str] = []
    state = tmp_path / "state.json"
    with Supervisor(state=state, report=lambda name, words: said.append(words)) as supervisor:
        supervisor.add(service(tmp_path, "import sys; sys.exit(7)"))
        until(lambda: supervisor.states()["child"].starts >= 4)
        assert json.loads(state.read_text())["child"]["last_exit"] == 7
    waits = [words.rpartition(" in ")[2] for words in said if words.startswith("ended with 7")]
    assert waits[:3] == ["0.1 s", "0.2 s", "0.2 s"], "each wait is twice the last, up to the slowest"


def test_restart_and_remove_leave_nobody(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    with Supervisor() as supervisor:
        supervisor.add(service(tmp_path, FAMILY))
        until(lambda: len(families(log)) == 1)
        supervisor.restart("child")
        until(lambda: len(families(log)) == 2)
        assert not any(alive(pid) for pid in families(log)[0])
        supervisor.remove("child")
        assert not any(alive(pid) for pid in families(log)[1])
        assert supervisor.states() == {}
        supervisor.remove("child")


def test_nobody_is_left_when_the_supervisor_itself_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    code = f"""
import time, sys
from pathlib import Path
from tests.shared_model.test_supervisor import FAMILY, service
from shared_model.supervisor import Supervisor
with Supervisor() as supervisor:
    supervisor.add(service(Path({str(tmp_path)!r}), FAMILY))
    print("up", flush=True)
    time.sleep(600)
"""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    until(lambda: len(families(log)) == 1)
    everybody = descendants(process.pid)
    process.kill()
    process.wait()
    until(lambda: not any(alive(pid) for pid in everybody))


def test_a_log_that_has_grown_is_put_aside_at_the_next_start(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.write_bytes(b"x" * (MAX_LOG_BYTES + 1))
    with Supervisor() as supervisor:
        supervisor.add(service(tmp_path, "print('new', flush=True); import time; time.sleep(600)"))
        until(lambda: log.exists() and log.read_text() == "new\n")
    assert log.with_name("child.log.1").stat().st_size > MAX_LOG_BYTES


def test_a_child_that_cannot_be_started_does_not_end_the_supervision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full, or no process to be had: said once, tried again, and the other children are looked after."""
    said: list[str] = []
    starts, writes, refuses = subprocess.Popen, module.write_private, threading.Event()

    def start(command: list[str], **more: Any) -> Any:
        if refuses.is_set() and "pass" in command:
            raise OSError(errno.EAGAIN, "no process to be had")
        return starts(command, **more)

    def write(path: Path, data: bytes) -> None:
        if refuses.is_set():
            raise StorageError("the disk is full")
        writes(path, data)

    monkeypatch.setattr(module.subprocess, "Popen", start)
    monkeypatch.setattr(module, "write_private", write)
    with Supervisor(state=tmp_path / "state.json", report=lambda name, words: said.append(f"{name} {words}")) as there:
        there.add(service(tmp_path, "import time; time.sleep(600)", name="other"))
        there.add(service(tmp_path, "pass", name="one"))
        refuses.set()
        until(lambda: [words for words in said if words.startswith("one cannot be started")])
        guard = there.states()["other"].pid
        assert guard is not None  # 0 would be this very process's group
        os.kill(guard, signal.SIGKILL)
        until(lambda: there.states()["other"].starts == 2)
        refuses.clear()
        before = there.states()["one"].starts
        until(lambda: there.states()["one"].starts > before)
        until(lambda: json.loads((tmp_path / "state.json").read_text())["other"]["starts"] == 2)
    assert len([words for words in said if words.startswith("one cannot be started")]) == 1


def test_adopted_processes_that_end_leave_no_zombie(tmp_path: Path) -> None:
    """SuperExec's app processes outlive it now and then; over weeks their remains would fill the table of processes."""
    code = ("import os, subprocess, sys, time\n"
            "subprocess.run([sys.executable, '-c', 'import os, time\\nif not os.fork(): time.sleep(0.3)'])\n"
            "print('left', flush=True); time.sleep(600)")  # fmt: skip
    with Supervisor() as supervisor:
        supervisor.add(service(tmp_path, code))
        guard = supervisor.states()["child"].pid
        assert guard is not None
        until(lambda: "left" in (tmp_path / "child.log").read_text() and len(descendants(guard)) == 1)


def test_a_log_that_grows_while_its_child_runs_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SuperLink runs for months, with a line for each message: no site is to fill the coordinator's disk."""
    monkeypatch.setattr(module, "LOG_LOOK_S", 0.0)
    monkeypatch.setattr(module, "MAX_LOG_BYTES", 1000)
    code = "import time\nwhile True: print('x' * 99, flush=True); time.sleep(0.01)"
    with Supervisor() as supervisor:
        supervisor.add(service(tmp_path, code))
        until(lambda: (tmp_path / "child.log.1").exists())
        until(lambda: 0 < (tmp_path / "child.log").stat().st_size < 1000)
        assert supervisor.states()["child"].starts == 1
        assert (tmp_path / "child.log").read_bytes()[:1] != b"\0", "the child goes on at the new end"
