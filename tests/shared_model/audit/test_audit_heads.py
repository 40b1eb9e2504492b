"""Heads exchanged: a log that only grew passes in any steps, a rewritten or cut one is found at once and proved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.audit import AuditLog, SignedHead, Statement, heads, verify
from shared_model.audit import log as writer
from shared_model.errors import AuditError, SignatureError, StorageError
from shared_model.signing import Purpose, SigningKey

SITE, COORDINATOR = SigningKey.generate(), SigningKey.generate()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[AuditLog]:
    with AuditLog(tmp_path / "site.jsonl", owner="north", key=SITE) as log:
        yield log


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[AuditLog]:
    with AuditLog(tmp_path / "coordinator.jsonl", owner="coordinator", key=COORDINATOR) as log:
        yield log


def exchange(sender: AuditLog, receiver: AuditLog) -> None:
    """As over the network: bytes, until the receiver has everything."""
    while receiver.witnessed(sender.owner) < sender.sequence:
        data = sender.statement(receiver.witnessed(sender.owner)).to_json()
        receiver.record(Statement.from_json(data.encode()), owner=sender.owner, key=sender._key.public)


def fill(log: AuditLog, count: int) -> None:
    for number in range(count):
        log.append("tick", n=number)


def rewritten(path: Path, *, count: int, key: SigningKey = SITE, log_id: str | None = None) -> AuditLog:
    """A log as its owner would write it anew, keys and all, under the old log's id."""
    path.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        if log_id:
            patch.setattr(writer.secrets, "token_hex", lambda _: log_id)
        log = AuditLog(path, owner="north", key=key)
    fill(log, count)
    return log


def test_a_log_that_grows_is_recorded_each_round(site: AuditLog, coordinator: AuditLog) -> None:
    assert coordinator.witnessed("north") == 0
    for count in (0, 1, 5):
        fill(site, count)
        exchange(site, coordinator)
        assert coordinator.witnessed("north") == site.sequence
    found = verify(site.path, key=SITE.public, witnesses=[coordinator.path])
    assert (found.heads, found.covered, found.entries) == (3, 7, 7)


def test_nothing_new_adds_nothing(site: AuditLog, coordinator: AuditLog) -> None:
    exchange(site, coordinator)
    before = coordinator.sequence
    coordinator.record(site.statement(1), owner="north", key=SITE.public)
    assert coordinator.sequence == before


def test_a_long_way_takes_several_bounded_statements(
    site: AuditLog, coordinator: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_STEPS", 4)
    fill(site, 9)
    assert [site.statement(since).signed.head.sequence for since in (0, 4, 8, 10)] == [4, 8, 10, 10]
    exchange(site, coordinator)
    assert coordinator.witnessed("north") == 10
    assert verify(site.path, witnesses=[coordinator.path]).heads == 3


def test_the_greatest_statement_fits_its_bound(site: AuditLog) -> None:
    site._contents += b"\1" * 32 * heads.MAX_STEPS
    statement = site.statement(1).model_copy(update={"contents": ("f" * 64,) * heads.MAX_STEPS})
    assert len(statement.to_json()) <= heads.MAX_STATEMENT_BYTES
    assert len(Statement.from_json(statement.to_json()).contents) == heads.MAX_STEPS


def test_both_remember_after_a_restart(site: AuditLog, coordinator: AuditLog, tmp_path: Path) -> None:
    fill(site, 2)
    exchange(site, coordinator)
    site.close()
    coordinator.close()
    with (AuditLog(tmp_path / "site.jsonl", owner="north", key=SITE) as again,
          AuditLog(tmp_path / "coordinator.jsonl", owner="coordinator", key=COORDINATOR) as receiver):  # fmt: skip
        assert receiver.witnessed("north") == 3
        fill(again, 1)
        exchange(again, receiver)
        assert receiver.witnessed("north") == 4


@pytest.mark.parametrize("count", [2, 3, 4, 30])
def test_a_rewritten_log_is_found_at_the_next_exchange_and_proved(
    site: AuditLog, coordinator: AuditLog, tmp_path: Path, count: int
) -> None:
    fill(site, 2)
    exchange(site, coordinator)
    forged = rewritten(tmp_path / "forged.jsonl", count=count, log_id=site.log)
    assert forged.log == site.log
    statement = forged.statement(3)
    for _ in range(2):  # said each time, recorded once
        with pytest.raises(AuditError, match="was rewritten"):
            coordinator.record(statement, owner="north", key=SITE.public)
    refused = [e for e in coordinator.entries() if e.kind == "head_refused"]
    assert len(refused) == 1
    proof, fields = statement.signed.head, refused[0].fields
    assert (fields["sha256"], fields["recorded_sequence"]) == (proof.sha256, 3)
    SITE.public.verify(Purpose.AUDIT_HEAD, proof.canonical(), str(fields["signature"]))
    with pytest.raises(AuditError, match="rewritten"):  # and offline, with the coordinator's log as witness
        verify(forged.path, witnesses=[coordinator.path])
    forged.close()


def test_after_a_refusal_nothing_is_taken_until_a_human_admits_a_new_log(
    site: AuditLog, coordinator: AuditLog, tmp_path: Path
) -> None:
    fill(site, 2)
    exchange(site, coordinator)
    forged = rewritten(tmp_path / "forged.jsonl", count=5, log_id=site.log)
    with pytest.raises(AuditError):
        coordinator.record(forged.statement(3), owner="north", key=SITE.public)
    coordinator.close()
    with AuditLog(tmp_path / "coordinator.jsonl", owner="coordinator", key=COORDINATOR) as receiver:
        with pytest.raises(AuditError):  # not even the true one: somebody must look first
            receiver.record(site.statement(3), owner="north", key=SITE.public)
        with pytest.raises(AuditError, match="not taken back"):
            receiver.admit("north", site.log, reason="never mind")
        fresh = rewritten(tmp_path / "fresh.jsonl", count=1)
        receiver.admit("north", fresh.log, reason="disk lost, ticket 12")
        exchange(fresh, receiver)
        assert receiver.witnessed("north") == 2
        assert [e.kind for e in receiver.entries()][-3:] == ["head_refused", "log_admitted", "head_recorded"]
        verify(fresh.path, witnesses=[receiver.path])
        fresh.close()
    forged.close()


def test_another_log_of_the_same_owner_is_refused(site: AuditLog, coordinator: AuditLog, tmp_path: Path) -> None:
    exchange(site, coordinator)
    other = rewritten(tmp_path / "other.jsonl", count=3)
    with pytest.raises(AuditError, match="another audit log than before"):
        coordinator.record(other.statement(1), owner="north", key=SITE.public)
    with pytest.raises(AuditError, match="recorded another log"):  # though the refusal names it, too
        verify(other.path, witnesses=[coordinator.path])
    other.close()


def test_the_same_chain_under_the_name_of_another_log_is_refused(site: AuditLog, coordinator: AuditLog) -> None:
    exchange(site, coordinator)
    fill(site, 1)
    statement = site.statement(1)
    head = statement.signed.head.model_copy(update={"log": "0" * 32})
    renamed = statement.model_copy(update={"signed": SignedHead.sign(head, SITE)})
    with pytest.raises(AuditError, match="another audit log than before"):
        coordinator.record(renamed, owner="north", key=SITE.public)
    assert coordinator.witnessed("north") == 1


def test_a_log_restored_from_an_old_backup_says_so_itself(site: AuditLog, coordinator: AuditLog) -> None:
    old = site.path.read_bytes()
    fill(site, 3)
    exchange(site, coordinator)
    site.close()
    site.path.write_bytes(old)
    with AuditLog(site.path, owner="north", key=SITE) as restored, pytest.raises(AuditError, match="shorter than"):
        restored.statement(coordinator.witnessed("north"))


def test_statements_from_another_place_party_or_key_leave_no_trace(site: AuditLog, coordinator: AuditLog) -> None:
    fill(site, 3)
    exchange(site, coordinator)
    fill(site, 2)
    before = coordinator.sequence
    for statement, owner, key, error in (
        (site.statement(1), "north", SITE.public, AuditError),
        (site.statement(0), "north", SITE.public, AuditError),
        (site.statement(4), "south", SITE.public, AuditError),
        (site.statement(4), "north", COORDINATOR.public, SignatureError),
        (coordinator.statement(0), "coordinator", COORDINATOR.public, AuditError),
    ):
        with pytest.raises(error):
            coordinator.record(statement, owner=owner, key=key)
        assert coordinator.sequence == before
    exchange(site, coordinator)


@settings(max_examples=60)
@given(data=st.data())
def test_any_changed_byte_of_a_signed_head_or_a_statement_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("heads")
    with AuditLog(folder / "site.jsonl", owner="north", key=SITE) as site:
        fill(site, 2)
        head, statement = site.head().to_json().encode(), site.statement(0).to_json().encode()
    for good, read in ((head, SignedHead), (statement, Statement)):
        at, mask = data.draw(st.integers(0, len(good) - 2)), data.draw(st.integers(1, 255))
        bad = bytearray(good)
        bad[at] ^= mask
        try:
            changed = read.from_json(bytes(bad))
        except AuditError:
            continue
        if isinstance(changed, SignedHead):
            with pytest.raises(SignatureError):
                changed.verify(SITE.public)
        else:
            with (
                pytest.raises((AuditError, SignatureError)),
                AuditLog(folder / f"receiver-{at}-{mask}.jsonl", owner="coordinator", key=COORDINATOR) as receiver,
            ):
                receiver.record(changed, owner="north", key=SITE.public)


@pytest.mark.parametrize("data", [
    b"", b"{}", b"[]", b"null", b"\xff", b"[" * 2000, b'{"head":{},"signature":"00"}', b"x" * 5000,
])  # fmt: skip
def test_what_is_no_head_is_refused_without_repeating_it(data: bytes) -> None:
    with pytest.raises(AuditError):
        SignedHead.from_json(data)
    with pytest.raises(AuditError):
        Statement.from_json(data)


def test_a_head_is_kept_in_a_file(site: AuditLog, tmp_path: Path) -> None:
    (tmp_path / "head.json").write_text(site.head().to_json())
    kept = SignedHead.read(tmp_path / "head.json")
    kept.verify(SITE.public)
    fill(site, 1)
    assert verify(site.path, heads=[kept]).covered == 1
    with pytest.raises(StorageError):
        SignedHead.read(tmp_path / "absent.json")


def test_a_statement_tells_nothing_of_the_content(tmp_path: Path) -> None:
    """The same events at the same times give hashes that have nothing in common: nobody can guess and compare."""
    told: set[str] = set()
    for name in ("a", "b"):
        with AuditLog(tmp_path / name, owner="north", key=SITE, clock=lambda: 1.0) as log:
            log.append("epsilon", spent=1.5)
            told |= {log.statement(0).contents[1]}
    assert len(told) == 2


# --- what is news ---


def test_heads_of_others_and_quiet_kinds_are_no_news_and_are_covered_by_the_next(
    site: AuditLog, tmp_path: Path
) -> None:
    path, quiet = tmp_path / "coordinator.jsonl", frozenset({"door"})
    with AuditLog(path, owner="coordinator", key=COORDINATOR, quiet=quiet) as log:
        assert (log.news, log.sequence) == (1, 1)
        exchange(site, log)
        log.append("door", count=3)
        assert (log.news, log.sequence) == (1, 3)
        log.append("round_closed", round=1)
        assert log.news == log.sequence == 4
        exchange(log, site)
        log.append("door", count=3)
        assert site.witnessed("coordinator") == log.news == 4
    with AuditLog(path, owner="coordinator", key=COORDINATOR, quiet=quiet) as again:
        assert (again.news, again.sequence) == (4, 5), "also in a new process"


def test_a_log_that_caught_another_rewriting_says_so(site: AuditLog, coordinator: AuditLog, tmp_path: Path) -> None:
    exchange(site, coordinator)
    assert not coordinator.refuses("north") and not coordinator.refuses("nobody")
    site.close()
    with rewritten(tmp_path / "site.jsonl", count=3) as again, pytest.raises(AuditError):
        coordinator.record(again.statement(1), owner="north", key=SITE.public)
    assert coordinator.refuses("north")
