"""kill -9 in the midst of reserving and settling: the ledger never says less than the noise that was released cost."""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.privacy.accountant import Account
from client.privacy.ledger import Ledger, LedgerEntry

DELTA, WOMEN = 1e-5, [f"w{i}" for i in range(20)]
MANY = 200  # more than the system calls of two rounds


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process has written is there all the same; the order of flushes has its own test. Nor is the budget
    asked, whose sums would be most of what is killed."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr("client.privacy.ledger._check_budget", lambda *args, **named: None)


def cost(rounds: int) -> float:
    """Epsilon of what was released, from a list of its own and not from the ledger."""
    return Account.from_lists([[1.0, 0.1, 10]] * rounds).epsilon(delta=DELTA)


def play(folder: Path, rounds: int, tell: Callable[[], object]) -> None:
    """Rounds as the trainer does them: reserve, release the noise, settle. `tell`: somebody outside has seen one."""
    ledger = Ledger(folder / "state" / "ledger.json")
    for number in range(1, rounds + 1):
        entry = LedgerEntry(group="train", study="s", protocol_sha256="0" * 64, round=number, attempt=1,
                            noise_multiplier=1.0, sample_rate=0.1, steps=10)  # fmt: skip
        identity = ledger.reserve(entry, budget=100.0, delta=DELTA, pseudonyms=WOMEN)
        tell()
        ledger.settle(identity)


def in_a_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Run `work(pipe)` in a process of its own. Returns its status and how many rounds it told of."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work(writing)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = len(stream.read())
    return os.waitpid(child, 0)[1], told


def dies_at(point: int, before: bool) -> None:
    """Let this process kill itself at its `point`-th system call that changes a disk; half of a write arrives."""
    count = itertools.count(1)

    def fatal(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            if next(count) != point:
                return real(*args, **named)
            try:
                if name == "write" and before:
                    real(args[0], args[1][: len(args[1]) // 2])
                elif not before:
                    real(*args, **named)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in ("write", "fsync", "ftruncate", "open", "mkdir"):
        setattr(os, name, fatal(name, getattr(os, name)))
    for name in ("replace", "mkdir"):
        setattr(Path, name, fatal(name, getattr(Path, name)))


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_killed_at_every_call_that_changes_the_disk(tmp_path: Path, before: bool) -> None:
    known = [cost(rounds) for rounds in range(4)]  # and the accountant is loaded before anybody forks
    for point in range(1, MANY):
        folder, write = tmp_path / str(point), os.write

        def work(pipe: int, folder: Path = folder, point: int = point) -> None:
            tell = functools.partial(os.write, pipe, b".")
            dies_at(point, before)
            play(folder, 2, tell)

        status, told = in_a_child(work)
        assert os.write is write
        ledger = Ledger(folder / "state" / "ledger.json")
        assert ledger.spent("train", delta=DELTA, pseudonyms=WOMEN) >= known[told], point
        play(folder, 1, lambda: None)  # whatever was left behind, it goes on
        assert ledger.spent("train", delta=DELTA, pseudonyms=WOMEN) >= known[told + 1], point
        if not os.WIFSIGNALED(status):
            break
    assert 30 < point < MANY - 1 and told == 2, "the points cover both rounds and end behind them"


def test_killed_from_outside_at_any_time(tmp_path: Path) -> None:
    """The parent kills as soon as it hears of a random round: the child is then somewhere in what follows."""
    chance, folder = random.Random(6), tmp_path
    ledger, released = Ledger(folder / "state" / "ledger.json"), 0
    for _ in range(12):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            play(folder, 1000, functools.partial(os.write, writing, b"."))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb", buffering=0) as stream:
            heard = sum(len(stream.read(1)) for _ in range(chance.randint(1, 4)))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            released += heard + len(stream.read())
        assert ledger.account("train").steps >= 10 * released
    assert ledger.spent("train", delta=DELTA) >= cost(released) > cost(12)
