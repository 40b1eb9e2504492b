"""The ledger: reserved before noise, never forgotten, over-counting at worst, closed when damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.privacy.accountant import Account
from client.privacy.ledger import Ledger, LedgerEntry, privacy_spent
from shared_model.errors import BudgetExhaustedError, PrivacyError, StorageError
from shared_model.protocol import Protocol

DELTA = 1e-5
ENTRY = LedgerEntry(group="train", study="s", protocol_sha256="0" * 64, round=1, attempt=1, noise_multiplier=1.0,
                    sample_rate=0.1, steps=10)  # fmt: skip


def cost(times: int) -> float:
    return Account().add(noise_multiplier=1.0, sample_rate=0.1, steps=10 * times).epsilon(delta=DELTA)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "ledger.json")


def test_a_reservation_counts_before_it_is_settled(ledger: Ledger) -> None:
    assert ledger.spent("train", delta=DELTA) == 0.0
    identity = ledger.reserve(ENTRY, budget=8.0, delta=DELTA)
    assert ledger.spent("train", delta=DELTA) == cost(1)
    ledger.settle(identity)
    ledger.settle(identity)
    assert ledger.spent("train", delta=DELTA) == cost(1)
    (record,) = ledger.records()
    assert record["state"] == "settled" and record["round"] == 1 and record["study"] == "s"
    assert [line["kind"] for line in lines(ledger)] == ["ledger_opened", "reserved", "settled"]


def lines(ledger: Ledger) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ledger.path.read_text().splitlines()]


def test_the_record_is_on_the_disk_when_reserve_returns(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line, then the anchor's file, name and folder: each is forced out before the caller may draw noise."""
    ledger.reserve(ENTRY, budget=8.0, delta=DELTA)
    calls: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def watched_fsync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        calls.append("folder" if path.is_dir() else "line" if path == ledger.path else "anchor")
        fsync(fd)

    def watched_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    ledger.reserve(ENTRY, budget=8.0, delta=DELTA)
    assert calls == ["line", "anchor", "rename", "folder"]


CRASH = """
import os, signal, sys
from pathlib import Path
from client.privacy.ledger import Ledger, LedgerEntry
entry = LedgerEntry(group="train", study="s", protocol_sha256="0" * 64, round=1, attempt=1, noise_multiplier=1.0,
                    sample_rate=0.1, steps=10)
Ledger(Path(sys.argv[1])).reserve(entry, budget=8.0, delta=1e-5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_trainer_killed_between_reserve_and_settle_has_spent(ledger: Ledger) -> None:
    done = subprocess.run([sys.executable, "-c", CRASH, str(ledger.path)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert ledger.spent("train", delta=DELTA) == cost(1)
    ledger.reserve(ENTRY, budget=8.0, delta=DELTA)  # the round is repeated with new noise: both count
    assert ledger.spent("train", delta=DELTA) == cost(2)


def test_a_crash_while_writing_leaves_the_old_record(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.reserve(ENTRY, budget=8.0, delta=DELTA)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        ledger.reserve(ENTRY, budget=8.0, delta=DELTA)
    monkeypatch.undo()
    assert ledger.spent("train", delta=DELTA) == cost(1)


def test_a_spent_budget_refuses_and_writes_nothing(ledger: Ledger) -> None:
    budget = 0.5 * (cost(2) + cost(3))
    for number in (1, 2):
        ledger.reserve(replace(ENTRY, round=number), budget=budget, delta=DELTA)
    before = ledger.path.read_bytes()
    with pytest.raises(BudgetExhaustedError, match=r"round 3 .* to epsilon"):
        ledger.reserve(replace(ENTRY, round=3), budget=budget, delta=DELTA)
    assert ledger.path.read_bytes() == before
    ledger.reserve(replace(ENTRY, round=3, steps=1), budget=budget, delta=DELTA)  # what is left may still be used


def test_a_calibrated_study_can_be_paid_to_the_last_round(ledger: Ledger) -> None:
    from client.privacy.calibration import noise_multiplier_for

    sigma = noise_multiplier_for(epsilon=2.0, delta=DELTA, sample_rate=0.1, steps=40)
    for number in range(1, 5):
        ledger.reserve(replace(ENTRY, round=number, noise_multiplier=sigma), budget=2.0, delta=DELTA)
    with pytest.raises(BudgetExhaustedError):
        ledger.reserve(replace(ENTRY, round=5, noise_multiplier=sigma), budget=2.0, delta=DELTA)


def test_disjoint_groups_do_not_add_up(ledger: Ledger) -> None:
    ledger.reserve(ENTRY, budget=8.0, delta=DELTA)
    release = replace(ENTRY, group="metrics", noise_multiplier=5.0, sample_rate=1.0, steps=1)
    ledger.reserve(release, budget=8.0, delta=DELTA)
    assert ledger.spent("train", delta=DELTA) == cost(1)
    metrics = ledger.spent("metrics", delta=DELTA)
    assert 0 < metrics < cost(1) == ledger.site_epsilon(delta=DELTA)


def test_studies_on_the_same_patients_add_up(ledger: Ledger) -> None:
    ledger.reserve(ENTRY, budget=8.0, delta=DELTA)
    ledger.reserve(replace(ENTRY, study="another"), budget=8.0, delta=DELTA)
    assert ledger.spent("train", delta=DELTA) == cost(2)


def test_unknown_reservations_are_refused(ledger: Ledger) -> None:
    for identity in (0, 1, -1):
        with pytest.raises(PrivacyError, match="no such reservation"):
            ledger.settle(identity)


def test_a_site_that_reserves_for_nobody_is_refused(ledger: Ledger) -> None:
    with pytest.raises(PrivacyError, match="for no patient"):
        ledger.reserve(ENTRY, budget=8.0, delta=DELTA, pseudonyms=())


@pytest.mark.parametrize("text", [
    "", "{", "[]", '{"schema_version": 2, "entries": []}', '{"schema_version": 1, "entries": [{"id": 2}]}',
    '{"schema_version": 1, "entries": [{"id": 1, "group": "train", "state": "reserved", "noise_multiplier": 0,'
    ' "sample_rate": 0.1, "steps": 1}]}',
    '{"schema_version": 1, "entries": [{"id": 1, "group": "train", "state": "refunded", "noise_multiplier": 1,'
    ' "sample_rate": 0.1, "steps": 1}]}',
])  # fmt: skip
def test_a_damaged_ledger_is_never_an_empty_one(ledger: Ledger, text: str) -> None:
    ledger.path.parent.mkdir(parents=True)
    ledger.path.write_text(text)
    with pytest.raises(StorageError, match="damaged"):
        ledger.spent("train", delta=DELTA)
    with pytest.raises(StorageError, match="damaged"):
        ledger.reserve(ENTRY, budget=8.0, delta=DELTA)
    assert ledger.path.read_text() == text


def test_no_flipped_bit_under_counts(ledger: Ledger) -> None:
    """A sigma of 1 reads as one of 9 after one flipped bit: the file's own checksum finds every change."""
    identity = ledger.reserve(ENTRY, budget=8.0, delta=DELTA)
    ledger.settle(identity)
    good = ledger.path.read_bytes()
    for spot in range(len(good)):
        ledger.path.write_bytes(good[:spot] + bytes([good[spot] ^ 1 << spot % 8]) + good[spot + 1 :])
        with pytest.raises(StorageError):
            ledger.records()
    for length in range(0, len(good) - 1, 7):  # cut anywhere: the anchor knows that there was more
        ledger.path.write_bytes(good[:length])
        with pytest.raises(StorageError):
            ledger.records()


def test_a_ledger_that_is_gone_is_not_an_empty_one(ledger: Ledger) -> None:
    ledger.reserve(ENTRY, budget=8.0, delta=DELTA)
    good = ledger.path.read_bytes()
    ledger.path.unlink()
    with pytest.raises(StorageError, match="begun and is gone"):
        ledger.reserve(ENTRY, budget=8.0, delta=DELTA)
    ledger.path.write_bytes(good)
    assert ledger.spent("train", delta=DELTA) == cost(1)


def test_threads_lose_no_reservation(ledger: Ledger) -> None:
    cost(1)
    entries = [replace(ENTRY, round=number) for number in range(1, 9)]
    identities: list[int] = []

    def reserve(entry: LedgerEntry) -> None:
        identities.append(ledger.reserve(entry, budget=100.0, delta=DELTA))

    threads = [threading.Thread(target=reserve, args=(entry,)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(identities) == list(range(1, 9)) and ledger.account("train").steps == 80


def test_the_report_names_unit_adjacency_and_budget(ledger: Ledger, small_protocol: Callable[..., Protocol]) -> None:
    ledger.reserve(replace(ENTRY, sample_rate=0.25, steps=4), budget=8.0, delta=DELTA)
    spent = privacy_spent(ledger, small_protocol())
    assert (spent.unit, spent.adjacency, spent.accountant, spent.budget, spent.steps) == (
        "patient", "add_or_remove_one", "prv", 8.0, 4,
    )  # fmt: skip
    assert spent.epsilon == ledger.spent("train", delta=1e-5) > 0
