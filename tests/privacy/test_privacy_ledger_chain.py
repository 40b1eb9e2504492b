"""The ledger as a chain: older files become one, an older copy is noticed, patients are counted set by set."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.privacy.accountant import Account
from client.privacy.ledger import Ledger, LedgerEntry
from shared_model.errors import BudgetExhaustedError, StorageError

DELTA = 1e-5
ENTRY = LedgerEntry(group="train", study="s", protocol_sha256="0" * 64, round=1, attempt=1, noise_multiplier=1.0,
                    sample_rate=0.1, steps=10)  # fmt: skip
OLD, NEW = [f"woman-{i}" for i in range(40)], [f"woman-{i}" for i in range(20, 60)]  # half of them are new


def reserve(ledger: Ledger, women: list[str] | None = None, **changes: Any) -> int:
    return ledger.reserve(replace(ENTRY, **changes), budget=100.0, delta=DELTA, pseudonyms=women)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "ledger.json")


def steps(ledger: Ledger, women: list[str] | None = None, group: Any = "train") -> int:
    return ledger.account(group, pseudonyms=women).steps


def old_file(ledger: Ledger, *, version: int) -> list[dict[str, Any]]:
    """A ledger as the releases before wrote it: one settled round and one that was not."""
    entries = [{"id": i + 1, "state": state, "reserved_at": "2026-10-01T08:00:00+00:00",
                "settled_at": "2026-10-01T08:01:00+00:00" if state == "settled" else None, "group": "train",
                "study": "old", "protocol_sha256": "1" * 64, "round": i + 1, "attempt": 1, "noise_multiplier": 1.0,
                "sample_rate": 0.1, "steps": 10} for i, state in enumerate(("settled", "reserved"))]  # fmt: skip
    document: dict[str, Any] = {"schema_version": version, "entries": entries}
    if version == 2:
        document["sha256"] = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    ledger.path.parent.mkdir()
    ledger.path.write_text(json.dumps(document, indent=1))
    return entries


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_ledger_becomes_a_chain_and_forgets_nothing(ledger: Ledger, version: int) -> None:
    before = old_file(ledger, version=version)
    text = ledger.path.read_bytes()
    assert steps(ledger) == 20 and ledger.path.read_bytes() == text  # to read it changes nothing
    reserve(ledger, OLD)
    assert [{k: v for k, v in r.items() if k != "patients"} for r in ledger.records()[:2]] == before
    assert steps(ledger, OLD) == steps(ledger, ["a woman who was never seen"]) + 10 == 30  # nobody knows whose it was
    assert ledger.path.with_name("ledger.json.schema2").read_bytes() == text
    ledger.path.write_bytes(text)
    with pytest.raises(StorageError, match="older copy"):
        ledger.records()


def test_a_crash_in_the_migration_leaves_the_old_or_the_new(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    old_file(ledger, version=2)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("client.privacy.ledger.Head.write", dies)  # the chain is there, its anchor is not
    with pytest.raises(KeyboardInterrupt):
        reserve(ledger)
    monkeypatch.undo()
    assert steps(ledger) == 20
    reserve(ledger)
    assert steps(ledger) == 30 and ledger.anchor.exists()


def test_an_older_copy_put_back_is_noticed(ledger: Ledger) -> None:
    reserve(ledger)
    copy = ledger.path.read_bytes()
    head = ledger.head()
    assert head is not None
    reserve(ledger)
    ledger.check_reaches(head, witness="the audit log")
    ledger.path.write_bytes(copy)
    with pytest.raises(StorageError, match="older copy was put back"):
        reserve(ledger)
    shutil.rmtree(ledger.path.parent)
    with pytest.raises(StorageError, match="begun and is gone"):
        reserve(ledger)


def test_without_its_anchor_nothing_is_reserved(ledger: Ledger) -> None:
    reserve(ledger)
    ledger.anchor.unlink()
    with pytest.raises(StorageError, match="anchor is gone"):
        reserve(ledger)
    ledger.anchor.write_text("{}")
    with pytest.raises(StorageError, match="anchor is damaged"):
        reserve(ledger)


def test_another_ledger_in_its_place_is_noticed(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "other" / "ledger.json")
    reserve(ledger)
    reserve(other)
    shutil.copy(other.path, ledger.path)
    with pytest.raises(StorageError, match="another ledger"):
        ledger.records()


@pytest.mark.parametrize("place", ["line", "anchor"])
def test_a_crash_while_reserving_never_loses_what_was_told(
    ledger: Ledger, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a line: nobody was told, and it goes. A line before its anchor: nobody was told, and it counts."""
    reserve(ledger)
    good, anchor = ledger.path.read_bytes(), ledger.anchor.read_bytes()
    reserve(ledger)
    whole = ledger.path.read_bytes()
    ledger.anchor.write_bytes(anchor)
    half = len(good) + (len(whole) - len(good)) // 2
    ledger.path.write_bytes(whole[:half] if place == "line" else whole[:-1])
    told = 10 if place == "line" else 20
    assert steps(ledger) == told
    reserve(ledger)
    assert steps(ledger) == told + 10
    assert ('"kind":"tail_removed"' in ledger.path.read_text()) == (place == "line")


def test_an_entry_of_a_later_release_is_not_passed_over(ledger: Ledger) -> None:
    from client.privacy.chain import Chain, follow

    reserve(ledger)
    entries = Chain.of(ledger.path.read_bytes()).entries
    new = follow(entries, time=entries[-1].time, salt="0" * 32, kind="spent_otherwise", fields={})
    ledger.path.write_bytes(ledger.path.read_bytes() + new.line())
    with pytest.raises(StorageError, match="unknown kind"):
        ledger.records()


def test_a_second_study_on_half_new_patients_counts_right(ledger: Ledger) -> None:
    reserve(ledger, OLD)
    reserve(ledger, NEW, study="second")
    assert (steps(ledger, OLD[:20]), steps(ledger, OLD[20:]), steps(ledger, NEW[20:])) == (10, 20, 10)
    assert steps(ledger, OLD) == steps(ledger, NEW) == steps(ledger) == 20
    assert sorted((s.count, s.account.steps) for s in ledger.spenders("train", pseudonyms=NEW)) == [(20, 10), (20, 20)]
    twice = Account().add(noise_multiplier=1.0, sample_rate=0.1, steps=20).epsilon(delta=DELTA)
    with pytest.raises(BudgetExhaustedError):  # the old half cannot pay, and so the set cannot
        ledger.reserve(ENTRY, budget=twice, delta=DELTA, pseudonyms=NEW)
    ledger.reserve(ENTRY, budget=twice, delta=DELTA, pseudonyms=NEW[20:])


def test_a_patient_who_moved_from_training_to_test_takes_her_account_along(ledger: Ledger) -> None:
    reserve(ledger, OLD)
    reserve(ledger, NEW, group="metrics", steps=1)
    assert steps(ledger, OLD[:20]) == 10
    assert (steps(ledger, OLD[20:], "metrics"), steps(ledger, NEW[20:], "metrics")) == (11, 1)


def test_equal_sets_in_any_order_are_one_and_thousands_fit(ledger: Ledger) -> None:
    women = [f"woman-{i}" for i in range(10_000)]
    reserve(ledger, women)
    size = ledger.path.stat().st_size
    reserve(ledger, women[::-1])
    assert ledger.path.stat().st_size - size < 1000 and size < 130_000
    assert steps(ledger, women[:1]) == 20 and steps(ledger, ["somebody else"]) == 0
    assert len({record["patients"] for record in ledger.records()}) == 1
    assert b"woman-" not in ledger.path.read_bytes()  # no base64 of random digests has a hyphen
