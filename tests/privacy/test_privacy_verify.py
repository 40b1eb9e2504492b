"""`verify`: PRV against PLD over a grid, what the ledger's others recorded of it, and what a study would still cost."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.privacy import verify
from client.privacy.accountant import BEYOND, Account
from client.privacy.heads import head_fields
from client.privacy.ledger import Ledger, LedgerEntry
from client.privacy.policy import PrivacyPolicy, decide
from client.privacy.verify import AGREE, pld_epsilon, verify_ledger
from client.privacy.what_if import outlook
from shared_model.audit import AuditLog
from shared_model.errors import PrivacyError, StorageError
from shared_model.protocol import Protocol
from shared_model.signing import SigningKey

DELTA = 1e-5
ENTRY = LedgerEntry(group="train", study="s", protocol_sha256="0" * 64, round=1, attempt=1, noise_multiplier=1.0,
                    sample_rate=0.1, steps=10)  # fmt: skip
OLD, NEW = [f"woman-{i}" for i in range(40)], [f"woman-{i}" for i in range(20, 60)]  # half of them are new


def account(*rows: tuple[float, float, int]) -> Account:
    return Account.from_lists(rows)


GRID = [(sigma, rate, steps) for sigma, rate, steps in itertools.product(
    (0.6, 1.0, 2.0), (0.01, 0.0625, 0.25), (1, 40, 640)) if sigma > 0.6 or steps < 640]  # fmt: skip


@pytest.mark.parametrize(("sigma", "rate", "steps"), GRID)
def test_prv_is_within_one_percent_of_pld(sigma: float, rate: float, steps: int) -> None:
    rows = account((sigma, rate, steps))
    prv, pld = rows.epsilon(delta=DELTA), pld_epsilon(rows, delta=DELTA)
    assert abs(prv - pld) <= max(AGREE * pld, 2e-3), (prv, pld)  # PRV's own error is 0.001


def test_mechanisms_of_several_studies_agree() -> None:
    rows = account((1.0, 0.0625, 100), (1.5, 0.1, 60), (4.0, 1.0, 1))
    assert rows.epsilon(delta=1e-6) == pytest.approx(pld_epsilon(rows, delta=1e-6), rel=AGREE)
    assert pld_epsilon(Account(), delta=DELTA) == 0.0


@pytest.mark.parametrize("row", [(0.5, 1.0, 1000), (0.2, 0.5, 50_000_000), (1e-6, 1.0, 1), (0.01, 0.5, 10_000)])
def test_a_protocol_of_no_use_cannot_make_the_accountant_run_for_ever(row: tuple[float, float, int]) -> None:
    """PRV took minutes, or all memory; the looser bound is one all the same, and says no in milliseconds."""
    assert account(row).epsilon(delta=DELTA) > BEYOND


# --- the file ---


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    found = Ledger(tmp_path / "state" / "ledger.json")
    for number in (1, 2):
        found.settle(found.reserve(replace(ENTRY, round=number), budget=100.0, delta=DELTA, pseudonyms=OLD))
    found.reserve(replace(ENTRY, round=3), budget=100.0, delta=DELTA, pseudonyms=NEW)
    return found


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    found = AuditLog(tmp_path / "audit.jsonl", owner="north", key=SigningKey.generate())
    yield found
    found.close()


def test_what_holds_is_said(ledger: Ledger, log: AuditLog) -> None:
    log.append("round_trained", **head_fields(ledger))
    covered = ledger.head()
    ledger.settle(3)
    found = verify_ledger(ledger, delta=DELTA, audit=log.path)
    found.check()
    assert covered is not None
    assert (found.reservations, found.unsettled, found.anchor) == (3, 0, True)
    assert (found.witnessed, found.covered, found.entries) == (1, covered.sequence, covered.sequence + 1)
    train, metrics = found.comparisons
    assert (train.women, metrics.women, metrics.prv, metrics.pld) == (60, 0, 0.0, 0.0)
    assert train.prv == account((1.0, 0.1, 30)).epsilon(delta=DELTA) and train.agrees


def test_a_copy_that_is_older_than_the_audit_log_is_noticed(ledger: Ledger, log: AuditLog, tmp_path: Path) -> None:
    old, anchor = ledger.path.read_bytes(), ledger.anchor.read_bytes()
    ledger.settle(3)
    log.append("round_trained", **head_fields(ledger))
    ledger.path.write_bytes(old)
    ledger.anchor.write_bytes(anchor)
    verify_ledger(Ledger(ledger.path), delta=DELTA)
    with pytest.raises(StorageError, match=r"older copy.*audit log") as caught:
        verify_ledger(Ledger(ledger.path), delta=DELTA, audit=log.path)
    assert caught.value.exit_code == 70


def test_a_ledger_that_was_not_begun_is_no_verified_one(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing is in it"):
        verify_ledger(Ledger(tmp_path / "ledger.json"), delta=DELTA)


def test_an_accountant_that_says_too_little_is_found(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    real = verify.pld_epsilon
    monkeypatch.setattr(verify, "pld_epsilon", lambda account, *, delta: 1.02 * real(account, delta=delta))
    with pytest.raises(PrivacyError, match="disagree") as caught:
        verify_ledger(ledger, delta=DELTA).check()
    assert caught.value.exit_code == 40


def test_every_line_of_the_ledger_is_in_what_the_audit_log_vouches_for(ledger: Ledger, log: AuditLog) -> None:
    """One noise multiplier written anew, with every hash after it: the chain is whole, and the recorded head is not."""
    from client.privacy.chain import Chain, Head, follow

    log.append("round_trained", **head_fields(ledger))
    entries: list[Any] = []
    for entry in Chain.of(ledger.path.read_bytes()).entries:
        fields = dict(entry.fields)
        if entry.kind == "reserved":
            fields["noise_multiplier"] = 9.0
        entries.append(follow(entries, time=entry.time, salt=entry.salt, kind=entry.kind, fields=fields))
    ledger.path.write_bytes(b"".join(entry.line() for entry in entries))
    Head(log=str(entries[0].fields["log"]), sequence=len(entries), sha256=entries[-1].sha256).write(ledger.anchor)
    forged = Ledger(ledger.path)
    assert forged.spent("train", delta=DELTA) < 0.3, "who may write every file can make the chain say so"
    with pytest.raises(StorageError, match="written anew"):
        verify_ledger(forged, delta=DELTA, audit=log.path)


# --- what a study would cost ---


def test_a_study_on_half_new_women_costs_each_her_own(ledger: Ledger, small_protocol: Callable[..., Protocol]) -> None:
    protocol = small_protocol(privacy__metrics="final")
    decision = decide(PrivacyPolicy(), protocol, 40)
    cost = outlook(ledger, protocol, decision, "train", epsilon_limit=None, pseudonyms=[*NEW, "woman-99"])
    plan = account(*protocol.mechanisms(protocol.rounds))
    spent = {20: account((1.0, 0.1, 30)), 1: Account()}  # in both sets; in none. The rest: in one
    found = {kind.count: (kind.before, kind.after) for kind in cost.kinds if kind.count == 1}
    assert found == {1: (0.0, plan.epsilon(delta=DELTA))}
    twenties = sorted((kind.before, kind.after) for kind in cost.kinds if kind.count == 20)
    assert twenties == [tuple(a.epsilon(delta=DELTA) for a in (rows, rows.merge(plan)))
                        for rows in (account((1.0, 0.1, 10)), spent[20])]  # fmt: skip
    assert cost.after == spent[20].merge(plan).epsilon(delta=DELTA) and cost.rounds == protocol.rounds
    tested = outlook(ledger, protocol, decision, "metrics", epsilon_limit=None, pseudonyms=["woman-77"])
    assert tested.after == account((protocol.privacy.metrics_noise_multiplier, 1.0, 1)).epsilon(delta=DELTA)


def test_more_noise_by_policy_costs_less_and_the_least_limit_counts(
    tmp_path: Path, small_protocol: Callable[..., Protocol]
) -> None:
    protocol, empty = small_protocol(privacy__epsilon=10.0), Ledger(tmp_path / "ledger.json")
    costs = {least: outlook(empty, protocol, decide(PrivacyPolicy(least_noise=least), protocol, 40), "train",
                            epsilon_limit=limit, pseudonyms=OLD)
             for least, limit in ((0.5, None), (2.0, 0.1))}  # fmt: skip
    assert costs[2.0].after < costs[0.5].after
    assert (costs[0.5].limit, costs[0.5].affordable) == (10.0, True)
    assert (costs[2.0].limit, costs[2.0].affordable) == (0.1, False)
    assert not empty.path.exists(), "nothing is written"


def test_shown_as_values(ledger: Ledger) -> None:
    from client.privacy.shown import shown

    found = shown(ledger, PrivacyPolicy(epsilon_limit=8.0), delta=DELTA, study="s")
    assert json.loads(json.dumps(found)) == found and len(found["entries"]) == 3
    assert sorted((g["patients"], g["steps"]) for g in found["groups"]) == [(0, 0), (20, 10), (20, 20), (20, 30)][1:]
    (study,) = found["studies"]
    assert (study["rounds"], study["reservations"], study["unsettled"]) == (3, 3, 1)
    assert all(g["left"] == 8.0 - g["epsilon"] for g in found["groups"])
    assert shown(ledger, PrivacyPolicy(), delta=DELTA, study="another")["entries"] == []
    shutil.rmtree(ledger.path.parent)
