"""The judges of the fault matrix: each of them finds the difference that it is there for, and nothing else is one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simulations.faults.damage import regions, same_but
from simulations.faults.ending import Ending, as_planned, never_less, same_model, same_participation
from simulations.faults.malice import LIAR, like_absent

ROUNDS = {number: {"site-001": "contributed", "site-002": "contributed"} for number in (1, 2, 3)}
GOOD = Ending(
    status="COMPLETE", model="m", checkpoints={"round-0001.safetensors": "a", "round-0002.safetensors": "b"},
    participation=ROUNDS, measured={"1/selection/evaluator/auc_fused": 0.5},
    ledgers={site: {("train", 1): 1, ("train", 2): 1, ("metrics", 0): 1} for site in ("site-001", "site-002")},
    epsilon={"site-001": 2.0, "site-002": 2.0}, told={"site-001": 2.0, "site-002": 2.0},
)  # fmt: skip


def ledger(site: str, key: tuple[str, int], count: int) -> Ending:
    return replace(GOOD, ledgers={**GOOD.ledgers, site: {**GOOD.ledgers[site], key: count}})


def test_the_same_end_has_no_faults() -> None:
    assert same_model(GOOD, GOOD) == never_less(GOOD, GOOD) == as_planned(GOOD) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "x"}, "model.safetensors differs"), ({"status": "INCOMPLETE"}, "status INCOMPLETE"),
        ({"checkpoints": {"round-0001.safetensors": "a"}}, "checkpoints differ: round-0002"),
        ({"measured": {}}, "measured numbers differ: 1/selection"),
        ({"participation": {**ROUNDS, 3: {"site-001": "contributed", "site-002": "late"}}}, "participation of round 3"),
        ({"participation": {1: ROUNDS[1], 2: ROUNDS[2]}}, "participation of round 3: None"),
    ],
)  # fmt: skip
def test_every_difference_is_named(change: dict[str, object], words: str) -> None:
    (fault,) = same_model(replace(GOOD, **change), GOOD)  # type: ignore[arg-type]
    assert words in fault


def test_a_ledger_may_have_more_where_a_crash_explains_it_and_never_less() -> None:
    more, less = ledger("site-001", ("train", 2), 2), ledger("site-001", ("train", 2), 0)
    assert never_less(more, GOOD, more={"site-001": 1}) == []
    for found, allowed in ((more, {}), (more, {"site-002": 1}), (less, {"site-001": 1}),
                           (ledger("site-001", ("train", 2), 3), {"site-001": 1}),
                           (ledger("site-001", ("train", 1), 2), {"site-001": 1})):  # fmt: skip
        assert len(never_less(found, GOOD, more=allowed)) == 1
    for change in ({"epsilon": {**GOOD.epsilon, "site-002": 1.9}}, {"told": {**GOOD.told, "site-002": 2.1}}):
        (fault,) = never_less(replace(GOOD, **change), GOOD)
        assert fault.startswith("site-002 under-counts")


def test_a_lie_must_be_refused_and_leave_no_trace() -> None:
    absent = replace(GOOD, participation={**ROUNDS, 2: {"site-001": "contributed", LIAR: "failed"}})
    refused = replace(GOOD, participation={**ROUNDS, 2: {"site-001": "contributed", LIAR: "refused"}})
    assert like_absent(refused, absent) == []
    assert len(like_absent(replace(refused, model="x"), absent)) == 1
    assert len(like_absent(GOOD, absent)) == 1  # averaged


def test_a_damaged_file_is_left_out_of_the_comparison_and_nothing_else() -> None:
    found = replace(GOOD, checkpoints={"round-0001.safetensors": "x", "round-0002.safetensors": "b"})
    assert same_participation(found, GOOD) == same_but(found, GOOD, name="checkpoints/round-0001.safetensors") == []
    assert len(same_but(found, GOOD, name="checkpoints/round-0002.safetensors")) == 1


def test_damages_are_all_different_and_cover_both_ends() -> None:
    data = bytes(range(256)) * 8
    found = [content for _, content in regions(data)]
    assert len({*found, data}) == len(found) + 1
    changed = [next(i for i in range(len(data)) if c[i] != data[i]) for c in found if c and len(c) == len(data)]
    assert changed[0] == 0 and changed[-1] == len(data) - 1 and len(changed) >= 12


PARKED = """
import os, signal, sys
from pathlib import Path
from shared_model.errors import ConfigError
from simulations.faults.process import Process

log, mark = Path(sys.argv[1]) / "log", Path(sys.argv[1]) / "went-on"

def body(port):
    port.park("here")
    mark.touch()
    return 7

first = Process("first", body, log=log)
assert first.parked() == "here" and not mark.exists()
assert Path(f"/proc/{first.pid}/stat").read_text().split()[2] == "T"
first.go()
assert first.wait() == 7 and mark.exists() and not first.alive
mark.unlink()
second = Process("second", body, log=log)
second.parked()
second.kill()
assert second.wait() == -signal.SIGKILL and not mark.exists()
third = Process("third", lambda port: 1 // 0, log=log)
note = third.note("failed")
assert "ZeroDivisionError" in note["words"] and third.wait() == 1
assert Process("fourth", lambda port: 0, log=log).parked() is None
import threading
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
try:
    Process("fifth", lambda port: 0, log=log)
    raise AssertionError("forked with a thread")
except ConfigError:
    stop.set()
    thread.join()
orphan = Process("orphan", body, log=log)
orphan.parked()
print(orphan.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_party_is_parked_goes_on_dies_and_does_not_outlive_the_harness(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", PARKED, str(tmp_path)], capture_output=True, text=True, cwd=root,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    orphan = int(done.stdout)
    try:
        handle = os.pidfd_open(orphan)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], 60)[0]  # readable once the process has ended (pidfd_open(2))
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
