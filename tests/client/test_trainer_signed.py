"""A trainer with a coordinator: what it takes, what it refuses, what it writes down, and that nothing is done twice."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.privacy.ledger import Ledger
from client.trainer import train as train_module
from client.trainer.config import SiteConfig
from client.trainer.record import LISTED_REFUSALS, SiteRecord
from client.trainer.service import TrainerService
from shared_model.audit import AuditLog, Statement, verify
from shared_model.audit import file as audit_file
from shared_model.errors import (
    AuditError,
    ConfigError,
    MessageError,
    PrivacyError,
    ProtocolError,
    SignatureError,
    StorageError,
    WeightsError,
)
from shared_model.messages import (
    AuditReply,
    AuditRequest,
    DescribeReply,
    DescribeRequest,
    ErrorReply,
    Frame,
    TrainReply,
    decode,
    encode,
    weights_sha256,
)
from shared_model.signed_protocol import Coordinator, SignedProtocol
from shared_model.signing import SigningKey, VerifyKey
from tests.signed import COORDINATOR, KEY, NAME, enrol, seal

Study = Any
Make = Callable[..., Study]
OTHER = SigningKey.generate()


@pytest.fixture
def opened() -> Any:
    """Opens services and closes them, so that a test can play a restart."""
    services: list[TrainerService] = []

    def open_one(config: SiteConfig) -> TrainerService:
        services.append(TrainerService(config, compute=threading.Lock()))
        return services[-1]

    yield open_one
    for service in services:
        service.close()


@pytest.fixture
def study(small_study: Make) -> Study:
    return enrol(small_study(private=True))


def ask(service: TrainerService, message: Any, arrays: Any = None, envelope: bytes | None = None) -> Any:
    """The decoded reply to one frame."""
    return decode(raw(service, message, arrays, envelope))


def raw(service: TrainerService, message: Any, arrays: Any = None, envelope: bytes | None = None) -> bytes:
    return service.exchange(encode(Frame(message, arrays or {}, envelope)), wanted=lambda: True)


def refusal(service: TrainerService, message: Any, arrays: Any = None, envelope: bytes | None = None) -> ErrorReply:
    frame = ask(service, message, arrays, envelope)
    assert isinstance(frame.message, ErrorReply) and not frame.arrays, frame.message
    return frame.message


def lines(study: Study, site: str = "site-01") -> list[dict[str, Any]]:
    path = study.config(site).state / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def kinds(study: Study, site: str = "site-01") -> list[str]:
    return [line["kind"] for line in lines(study, site)]


def spent(study: Study, site: str = "site-01") -> list[Any]:
    path = study.config(site).state / "ledger.json"
    return list(Ledger(path).records())


# what is taken


def test_a_signed_round_is_trained_written_down_and_repeated_with_the_same_bytes(study: Study, opened: Any) -> None:
    service = opened(study.config("site-01"))
    request, envelope = study.train(), seal(study.train())
    first = raw(service, request, study.arrays, envelope)
    assert isinstance(decode(first).message, TrainReply)
    assert raw(service, request, study.arrays, envelope) == first
    service.close()
    assert raw(opened(study.config("site-01")), request, study.arrays, envelope) == first
    assert kinds(study) == ["log_opened", "request_admitted", "round_trained"]
    assert len(spent(study)) == 1
    entry = lines(study)[-1]["fields"]
    assert (entry["round"], entry["attempt"], entry["study"]) == (1, 1, "unit")
    assert 0 < entry["epsilon"] < entry["budget"]


def test_without_privacy_the_signature_changes_no_bit(small_study: Make, opened: Any) -> None:
    plain, signed = small_study("plain"), enrol(small_study("signed"), private_only=False)
    one = ask(opened(plain.config("site-01")), plain.train(), plain.arrays)
    other = ask(opened(signed.config("site-01")), signed.train(), signed.arrays, seal(signed.train()))
    assert weights_sha256(one.arrays) == weights_sha256(other.arrays)


def test_an_evaluator_answers_signed_requests_and_test_once(study: Study, opened: Any) -> None:
    service = opened(study.config("evaluator"))
    for scope in ("selection", "test"):
        asked = study.evaluate(scope)
        for _ in range(2):
            reply = ask(service, asked, study.arrays, seal(asked, "evaluator")).message
            assert (reply.kind, reply.outcome) == ("evaluated", "evaluated")
    again = study.evaluate("test", temperature=2.0)
    assert refusal(service, again, study.arrays, seal(again, "evaluator")).code == MessageError.exit_code
    assert kinds(study, "evaluator") == ["log_opened", "model_evaluated", "request_admitted", "model_evaluated",
                                         "request_refused", "message_refused"]  # fmt: skip


def test_a_site_that_abstains_writes_that_down(study: Study, opened: Any) -> None:
    service = opened(study.config("site-01").model_copy(update={"epsilon_limit": 1e-3}))
    assert ask(service, study.train(), study.arrays, seal(study.train())).message.outcome == "abstained"
    assert kinds(study)[-1] == "request_abstained"


def test_what_is_answered_is_what_was_signed_whatever_order_a_courier_gave_it(study: Study, opened: Any) -> None:
    """Or it could take the one opening of `test` with a request that the coordinator's own repetition does not fit."""
    service = opened(study.config("evaluator"))
    asked = study.evaluate("test", thresholds={"b": 0.5, "a": 0.25})
    turned = study.evaluate("test", thresholds={"a": 0.25, "b": 0.5})
    first = raw(service, turned, study.arrays, seal(asked, "evaluator"))
    assert decode(first).message.kind == "evaluated"
    assert raw(service, asked, study.arrays, seal(asked, "evaluator")) == first


# what is refused, before anything is computed


def cases(study: Study) -> dict[str, tuple[Any, bytes | None, type[Exception]]]:
    """Name -> request, envelope, error."""
    ask_1, ask_2, south = study.train(), study.train(2), seal(study.train(), "site-02")
    damaged = seal(ask_1).replace(b'"round":1', b'"round":2')
    return {
        "unsigned": (ask_1, None, SignatureError),
        "empty": (ask_1, b"", MessageError),
        "another round": (ask_2, seal(ask_1), SignatureError),
        "another attempt": (study.train(attempt=2), seal(ask_1), SignatureError),
        "other weights": (study.train(weights_sha256="0" * 64), seal(ask_1), SignatureError),
        "another kind": (study.evaluate("site"), seal(ask_1), SignatureError),
        "another site's": (ask_1, south, MessageError),
        "another key": (ask_1, seal(ask_1, key=OTHER), SignatureError),
        "changed under the signature": (ask_2, damaged, SignatureError),
    }


@pytest.mark.parametrize("case", ["unsigned", "empty", "another round", "another attempt", "other weights",
                                  "another kind", "another site's", "another key", "changed under the signature"])
def test_only_a_request_under_this_coordinators_signature_is_taken(study: Study, opened: Any, case: str) -> None:
    message, envelope, error = cases(study)[case]
    service = opened(study.config("site-01"))
    assert refusal(service, message, study.arrays, envelope).code == error.exit_code  # type: ignore[attr-defined]
    assert spent(study) == []
    assert not (study.config("site-01").state / "replies").exists()
    assert kinds(study) == ["log_opened", "message_refused"]
    good = ask(service, study.train(), study.arrays, seal(study.train()))
    assert isinstance(good.message, TrainReply)


def test_a_slot_that_was_signed_twice_is_taken_once_and_both_signatures_are_kept(study: Study, opened: Any) -> None:
    service = opened(study.config("site-01"))
    assert ask(service, study.train(), study.arrays, seal(study.train())).message.kind == "trained"
    other = {name: array + np.float32(1) for name, array in study.arrays.items()}
    twice = study.train(arrays=other, weights_sha256=weights_sha256(other))
    assert "asked before with another body" in refusal(service, twice, other, seal(twice)).reason
    assert len(spent(study)) == 1
    assert kinds(study)[-2:] == ["request_refused", "message_refused"]


def test_tensors_that_a_courier_changed_spend_nothing_and_the_slot_stays_good(study: Study, opened: Any) -> None:
    service = opened(study.config("site-01"))
    forged = {name: array + np.float32(1) for name, array in study.arrays.items()}
    assert refusal(service, study.train(), forged, seal(study.train())).code == WeightsError.exit_code
    assert spent(study) == []
    assert ask(service, study.train(), study.arrays, seal(study.train())).message.outcome == "trained"


def test_a_trainer_without_a_coordinator_takes_no_signature_on_trust(small_study: Make, opened: Any) -> None:
    study = small_study()
    service = opened(study.config("site-01"))
    assert refusal(service, study.train(), study.arrays, seal(study.train())).code == ConfigError.exit_code
    assert refusal(service, AuditRequest(since=0)).code == ConfigError.exit_code
    assert not (study.config("site-01").state / "audit.key").exists()


# protocols


def described(service: TrainerService) -> DescribeReply:
    reply = ask(service, DescribeRequest()).message
    assert isinstance(reply, DescribeReply)
    return reply


def test_only_a_protocol_under_the_coordinators_signature_is_served(study: Study, opened: Any) -> None:
    config = study.config("site-01")
    service, path = opened(config), config.protocols / "approved.json"
    assert described(service).protocols == (study.protocol.sha256,)
    genuine = path.read_bytes()
    forged = json.loads(genuine)
    forged["protocol"]["privacy"]["epsilon"] = 800.0
    for text in (study.protocol.to_json(), json.dumps(forged), genuine.decode().replace('"seed": 7', '"seed": 8'),
                 genuine.decode() + " ", SignedProtocol.sign(study.protocol, name=NAME, key=OTHER).to_json(),
                 SignedProtocol.sign(study.protocol, name="another", key=KEY).to_json()):  # fmt: skip
        path.write_text(text)
        assert described(service).protocols == ()
        assert refusal(service, study.train(), study.arrays, seal(study.train())).code == ProtocolError.exit_code
    path.write_bytes(genuine)
    assert described(service).protocols == (study.protocol.sha256,)


def test_what_was_approved_is_what_runs(study: Study, opened: Any) -> None:
    """The coordinator signs requests for a protocol of its own that nobody here approved."""
    request = study.train(protocol_sha256="f" * 64)
    assert "not approved" in refusal(opened(study.config("site-01")), request, study.arrays, seal(request)).reason


def test_the_sites_policy_is_above_every_approval(small_study: Make, opened: Any) -> None:
    plain = enrol(small_study("plain"), private_only=True)
    service = opened(plain.config("site-01"))
    answer = refusal(service, plain.train(), plain.arrays, seal(plain.train()))
    assert (answer.code, "without differential privacy" in answer.reason) == (PrivacyError.exit_code, True)
    private = enrol(small_study("private", private=True), delta_limit=1e-6)
    service = opened(private.config("site-01"))
    answer = refusal(service, private.train(), private.arrays, seal(private.train()))
    assert (answer.code, "delta" in answer.reason) == (PrivacyError.exit_code, True)
    assert spent(private) == []
    same = opened(private.config("site-02").model_copy(update={"delta_limit": 1e-5}))
    assert ask(same, private.train(), private.arrays, seal(private.train(), "site-02")).message.outcome == "trained"
    judge = opened(plain.config("evaluator"))
    assert ask(judge, plain.evaluate("selection"), plain.arrays,
               seal(plain.evaluate("selection"), "evaluator")).message.kind == "evaluated"  # fmt: skip


# the audit log


def exchange(service: TrainerService, since: int, statement: Statement | None = None) -> AuditReply:
    text = None if statement is None else statement.to_json()
    reply = ask(service, AuditRequest(since=since, statement=text)).message
    assert isinstance(reply, AuditReply), reply
    return reply


def test_heads_are_exchanged_and_each_side_sees_that_the_other_only_grew(
    study: Study, opened: Any, tmp_path: Path
) -> None:
    service = opened(study.config("site-01"))
    with AuditLog(tmp_path / "audit.jsonl", owner=NAME, key=KEY) as ours:
        first = exchange(service, 0, ours.statement(0))
        assert (first.owner, first.recorded) == ("site-01", 1)
        key = VerifyKey.from_hex(first.key)
        ours.record(Statement.from_json(first.statement), owner=first.owner, key=key)
        ask(service, study.train(), study.arrays, seal(study.train()))
        second = exchange(service, ours.witnessed("site-01"), ours.statement(first.recorded))
        ours.record(Statement.from_json(second.statement), owner=first.owner, key=key)
        assert (second.log, second.recorded) == (first.log, 2)
        assert ours.witnessed("site-01") == len(lines(study))
    path = study.config("site-01").state / "audit.jsonl"
    good = verify(path, key=key, witnesses=[tmp_path / "audit.jsonl"])
    assert good.covered == good.entries
    changed = path.read_bytes().replace(b'"round":1', b'"round":2')
    path.write_bytes(changed)
    with pytest.raises(AuditError):
        verify(path, key=key, witnesses=[tmp_path / "audit.jsonl"])


def test_a_rewritten_log_of_the_coordinator_is_found_and_proven(study: Study, opened: Any, tmp_path: Path) -> None:
    service = opened(study.config("site-01"))
    with AuditLog(tmp_path / "one.jsonl", owner=NAME, key=KEY) as ours:
        exchange(service, 0, ours.statement(0))
    with AuditLog(tmp_path / "other.jsonl", owner=NAME, key=KEY) as other:
        request = AuditRequest(since=0, statement=other.statement(0).to_json())
        assert refusal(service, request).code == AuditError.exit_code
    assert kinds(study)[-2:] == ["head_refused", "message_refused"]
    with AuditLog(tmp_path / "x.jsonl", owner=NAME, key=OTHER) as forged:
        request = AuditRequest(since=0, statement=forged.statement(0).to_json())
        assert refusal(service, request).code == SignatureError.exit_code


def test_an_audit_is_answered_while_a_round_is_computed(study: Study, tmp_path: Path) -> None:
    lock = threading.Lock()
    service = TrainerService(study.config("site-01"), compute=lock)
    with lock:
        assert exchange(service, 0).owner == "site-01"
    service.close()


def test_a_log_that_was_changed_or_whose_key_is_gone_stops_the_trainer(study: Study, opened: Any) -> None:
    config = study.config("site-01")
    opened(config).close()
    path, key = config.state / "audit.jsonl", config.state / "audit.key"
    assert key.stat().st_mode & 0o077 == 0
    kept = key.read_bytes()
    key.unlink()
    with pytest.raises(StorageError, match="restore the key"):
        opened(config)
    assert not key.exists()
    key.touch(mode=0o600)
    key.write_bytes(kept)
    text = path.read_bytes()
    path.write_bytes(text.replace(b"site-01", b"site-02"))
    with pytest.raises(AuditError):
        opened(config)
    path.write_bytes(text)
    opened(config)


def test_a_disk_that_refuses_the_log_computes_nothing_and_is_tried_again(
    study: Study, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = opened(study.config("site-01"))
    with monkeypatch.context() as full:
        full.setattr(audit_file, "_write", no_space)
        assert refusal(service, study.train(), study.arrays, seal(study.train())).code == StorageError.exit_code
        assert spent(study) == []
    assert ask(service, study.train(), study.arrays, seal(study.train())).message.outcome == "trained"


def no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_reply_that_could_not_be_noted_is_not_sent_and_later_is_the_same(
    study: Study, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = opened(study.config("site-01"))
    trained: list[Any] = []
    whole, write = train_module.train_round, audit_file._write

    def only_for_the_log(handle: int, data: bytes) -> None:  # the ledger's lines go the same way
        log = Path(f"/proc/self/fd/{handle}").readlink().name == "audit.jsonl"
        (no_space if log else write)(handle, data)

    def then_the_disk_is_full(**given: Any) -> Any:
        trained.append(1)
        monkeypatch.setattr(audit_file, "_write", only_for_the_log)
        return whole(**given)

    monkeypatch.setattr(train_module, "train_round", then_the_disk_is_full)
    assert refusal(service, study.train(), study.arrays, seal(study.train())).code == StorageError.exit_code
    monkeypatch.setattr(audit_file, "_write", write)
    assert ask(service, study.train(), study.arrays, seal(study.train())).message.outcome == "trained"
    assert (len(trained), len(spent(study))) == (1, 1)
    assert kinds(study) == ["log_opened", "request_admitted", "round_trained"]


def test_nonsense_from_a_courier_does_not_fill_the_disk(study: Study, tmp_path: Path) -> None:
    now = [0.0]
    state = tmp_path / "state"
    state.mkdir()
    record = SiteRecord(state, site="north", coordinator=COORDINATOR, release="0.1.0", clock=lambda: now[0])
    for _ in range(3 * LISTED_REFUSALS):
        record.refused(MessageError("nonsense"), words="nonsense")
    now[0] = 3600.0
    record.refused(MessageError("nonsense"), words="more")
    record.close()
    written = [json.loads(line) for line in (state / "audit.jsonl").read_text().splitlines()][1:]
    assert len(written) == LISTED_REFUSALS + 1
    assert [written[0]["fields"]["unlisted_before"], written[-1]["fields"]["unlisted_before"]] == [
        0, 2 * LISTED_REFUSALS]  # fmt: skip


def test_the_log_holds_no_path_and_no_patient(study: Study, opened: Any) -> None:
    config = study.config("site-02")
    service = opened(config)
    ask(service, study.train(), study.arrays, seal(study.train(), "site-02"))
    refusal(service, study.train(7), study.arrays, seal(study.train(7), "site-02"))
    text = (config.state / "audit.jsonl").read_text()
    assert str(config.cohort.parent) not in text
    pseudonyms = set(re.findall(r"\b[0-9a-f]{16}\b", (config.cohort / "patients.json").read_text()))
    assert len(pseudonyms) == 30 and not any(pseudonym in text for pseudonym in pseudonyms)


def test_a_coordinator_by_another_name_is_another(study: Study, opened: Any) -> None:
    config = study.config("site-01").model_copy(update={"coordinator": Coordinator.of("another", KEY.public)})
    service = opened(config)
    assert refusal(service, study.train(), study.arrays, seal(study.train())).code == SignatureError.exit_code
