"""One site's service on a real (tiny) cohort, model and ledger: what it trains, refuses, and never does twice."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.privacy.accountant import Account
from client.privacy.ledger import Ledger
from client.trainer import train as train_module
from client.trainer.config import SiteConfig
from client.trainer.service import TrainerService, without_identity
from shared_model.errors import (
    CohortError,
    ConfigError,
    MessageError,
    PrivacyError,
    ProtocolError,
    StorageError,
    TrainerError,
    WeightsError,
)
from shared_model.messages import (
    DescribeReply,
    DescribeRequest,
    ErrorReply,
    Frame,
    TrainReply,
    decode,
    encode,
    weights_sha256,
)
from shared_model.protocol import Protocol

Study = Any
Make = Callable[..., Study]


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


def ask(service: TrainerService, message: Any, arrays: Any = None) -> tuple[Any, dict[str, Any]]:
    frame = decode(ask_bytes(service, message, arrays))
    return frame.message, dict(frame.arrays)


def ask_bytes(service: TrainerService, message: Any, arrays: Any = None) -> bytes:
    return service.exchange(encode(Frame(message, arrays or {})), wanted=lambda: True)


def refusal(service: TrainerService, message: Any, arrays: Any = None) -> ErrorReply:
    reply, tensors = ask(service, message, arrays)
    assert isinstance(reply, ErrorReply), reply
    assert not tensors
    return reply


def entries(study: Study, site: str = "site-01") -> list[dict[str, Any]]:
    path = study.config(site).state / "ledger.json"
    return list(Ledger(path).records())


# what it does


def test_describe_names_site_release_and_approved_protocols(small_study: Make, opened: Any) -> None:
    study = small_study()
    reply, _ = ask(opened(study.config("site-01")), DescribeRequest())
    assert reply == DescribeReply(site="site-01", role="site", release="0.1.0", protocols=(study.protocol.sha256,),
                                  device="cpu")  # fmt: skip


def test_a_round_without_privacy_moves_the_weights_and_tells_the_loss(small_study: Make, opened: Any) -> None:
    study = small_study()
    reply, arrays = ask(opened(study.config("site-01")), study.train(), study.arrays)
    assert isinstance(reply, TrainReply)
    assert (reply.outcome, reply.privacy) == ("trained", None)
    assert reply.loss is not None
    assert {n: a.shape for n, a in arrays.items()} == {n: a.shape for n, a in study.arrays.items()}
    assert weights_sha256(arrays) != weights_sha256(study.arrays)
    assert entries(study) == []


def test_a_private_round_is_charged_before_and_keeps_the_loss_at_home(small_study: Make, opened: Any) -> None:
    study = small_study(private=True)
    reply, arrays = ask(opened(study.config("site-01")), study.train(), study.arrays)
    assert (reply.outcome, reply.loss) == ("trained", None)
    assert arrays
    assert reply.privacy.epsilon == pytest.approx(Ledger(study.config("site-01").state / "ledger.json").spent(
        "train", delta=1e-5))  # fmt: skip
    assert [(e["state"], e["steps"], e["group"]) for e in entries(study)] == [("settled", 2, "train")]


def test_without_privacy_a_fresh_service_gives_the_same_weights(small_study: Make, opened: Any, tmp_path: Any) -> None:
    study = small_study()
    config = study.config("site-01")
    first, arrays = ask(opened(config), study.train(), study.arrays)
    again, repeated = ask(opened(config.model_copy(update={"state": tmp_path / "other"})), study.train(), study.arrays)
    assert first.weights_sha256 == again.weights_sha256
    assert weights_sha256(arrays) == weights_sha256(repeated)


# what it never does twice


@pytest.mark.parametrize("private", [False, True])
def test_a_repeated_request_gets_the_same_bytes_also_from_a_new_process(
    small_study: Make, opened: Any, private: bool
) -> None:
    study = small_study(private=private)
    service = opened(study.config("site-01"))
    first = ask_bytes(service, study.train(), study.arrays)
    assert ask_bytes(service, study.train(), study.arrays) == first
    service.close()
    assert ask_bytes(opened(study.config("site-01")), study.train(), study.arrays) == first
    assert len(entries(study)) == (1 if private else 0)


def test_another_attempt_is_another_request_with_new_noise_and_a_new_charge(small_study: Make, opened: Any) -> None:
    study = small_study(private=True)
    service = opened(study.config("site-01"))
    _, first = ask(service, study.train(attempt=1), study.arrays)
    _, second = ask(service, study.train(attempt=2), study.arrays)
    assert weights_sha256(first) != weights_sha256(second)
    assert len(entries(study)) == 2


def test_the_same_round_with_other_weights_is_refused_and_costs_nothing(small_study: Make, opened: Any) -> None:
    study = small_study(private=True)
    service = opened(study.config("site-01"))
    ask(service, study.train(), study.arrays)
    other = {n: a + 0.01 for n, a in study.arrays.items()}
    reply = refusal(service, study.train(arrays=other), other)
    assert reply.code == PrivacyError.exit_code
    assert "other weights" in reply.reason
    assert len(entries(study)) == 1


@pytest.mark.parametrize("where", ["train_round", "arrays_of"])
def test_a_crash_before_the_reply_is_stored_counts_twice_and_never_less(
    small_study: Make, opened: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Killed in training (reserved, not settled) or just after it (settled, not stored): the repetition pays again."""
    study = small_study(private=True)
    service = opened(study.config("site-01"))

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt  # passes through every handler, as the end of a process would

    with monkeypatch.context() as patch:
        patch.setattr(train_module, where, dies)
        with pytest.raises(KeyboardInterrupt):
            ask_bytes(service, study.train(), study.arrays)
    assert [e["state"] for e in entries(study)] == ["reserved" if where == "train_round" else "settled"]
    service.close()
    reply, _ = ask(opened(study.config("site-01")), study.train(), study.arrays)
    assert (reply.outcome, reply.privacy.steps) == ("trained", 4)
    assert len(entries(study)) == 2


def test_a_reply_that_cannot_be_stored_is_not_sent(
    small_study: Make, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(private=True)
    service = opened(study.config("site-01"))

    def full(*_: Any) -> None:
        raise StorageError("the reply could not be stored; nothing was sent")

    with monkeypatch.context() as patch:
        patch.setattr(service._site.replies, "store", full)
        assert refusal(service, study.train(), study.arrays).code == StorageError.exit_code
    assert len(entries(study)) == 1
    assert ask(service, study.train(), study.arrays)[0].outcome == "trained"


def test_a_full_disk_is_noticed_before_anything_is_charged(
    small_study: Make, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(private=True)
    service = opened(study.config("site-01"))

    def full(handle: int, offset: int, size: int) -> None:
        assert size > sum(array.nbytes for array in study.arrays.values())
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("client.trainer.replies.os.posix_fallocate", full)
        refused = refusal(service, study.train(), study.arrays)
    assert refused.code == StorageError.exit_code and "nothing was charged" in refused.reason
    assert entries(study) == []
    assert ask(service, study.train(), study.arrays)[0].outcome == "trained"
    assert len(entries(study)) == 1


def test_who_gave_up_waiting_costs_nothing(small_study: Make, opened: Any) -> None:
    study = small_study(private=True)
    data = opened(study.config("site-01")).exchange(encode(Frame(study.train(), study.arrays)), wanted=lambda: False)
    assert decode(data).message == ErrorReply(
        code=TrainerError.exit_code, reason="the request was given up before its turn came; nothing was done"
    )
    assert entries(study) == []


# the budget


def test_a_site_that_cannot_afford_the_round_abstains(small_study: Make, opened: Any) -> None:
    two_rounds = Account().add(noise_multiplier=1.0, sample_rate=0.25, steps=4).epsilon(delta=1e-5)
    study = small_study(private=True, privacy__epsilon=two_rounds)
    service = opened(study.config("site-01"))
    assert ask(service, study.train(1), study.arrays)[0].outcome == "trained"
    assert ask(service, study.train(2), study.arrays)[0].outcome == "trained"
    reply, arrays = ask(service, study.train(3), study.arrays)
    assert (reply.outcome, arrays) == ("abstained", {})
    assert "epsilon" in reply.reason
    assert reply.privacy.epsilon == reply.privacy.budget == two_rounds
    assert len(entries(study)) == 2
    assert ask_bytes(service, study.train(3), study.arrays) == ask_bytes(service, study.train(3), study.arrays)


def test_the_site_may_allow_less_than_the_protocol_and_never_more(small_study: Make, opened: Any) -> None:
    study = small_study(private=True)
    config = study.config("site-01").model_copy(update={"epsilon_limit": 0.5})
    reply, _ = ask(opened(config), study.train(), study.arrays)
    assert (reply.outcome, reply.privacy.budget, reply.privacy.epsilon) == ("abstained", 0.5, 0.0)
    generous = study.config("site-02").model_copy(update={"epsilon_limit": 99.0})
    reply, _ = ask(opened(generous), study.train(), study.arrays)
    assert reply.privacy.budget == 8.0


# what it refuses


def test_what_does_not_fit_is_refused_in_words_and_costs_nothing(small_study: Make, opened: Any) -> None:
    study = small_study(private=True)
    service = opened(study.config("site-01"))
    arrays = dict(study.arrays)
    name = next(iter(arrays))
    short = {n: a for n, a in arrays.items() if n != name}
    flat = {**arrays, name: arrays[name].reshape(-1)}
    single = {**arrays, name: np.zeros((1,), np.float32)}  # would broadcast
    poisoned = {**arrays, name: np.full_like(arrays[name], np.nan)}
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        (study.train(protocol_sha256="f" * 64), arrays, ProtocolError, "not approved"),
        (study.train(study="../../etc"), arrays, ProtocolError, "another study"),
        (study.train(7), arrays, ProtocolError, "outside the protocol"),
        (study.train(attempt=4), arrays, ProtocolError, "outside the protocol"),
        (study.train(weights_sha256="e" * 64), arrays, WeightsError, "changed on the way"),
        (study.train(arrays=short), short, MessageError, "not those of the model"),
        (study.train(arrays=flat), flat, MessageError, "wrong shape"),
        (study.train(arrays=single), single, MessageError, "wrong shape"),
        (study.train(arrays=poisoned), poisoned, WeightsError, "not finite"),
        (study.evaluate("selection"), arrays, ProtocolError, "not this party's"),
        (study.evaluate("test"), arrays, ProtocolError, "not this party's"),
        (ErrorReply(code=1, reason="x"), {}, MessageError, "requests only"),
    ]
    for message, tensors, kind, words in cases:
        reply = refusal(service, message, tensors)
        assert (reply.code, words in reply.reason) == (kind.exit_code, True), reply  # type: ignore[attr-defined]
    assert entries(study) == []
    assert ask(service, study.train(), arrays)[0].outcome == "trained"


def test_bytes_that_are_no_message_are_refused(small_study: Make, opened: Any) -> None:
    service = opened(small_study().config("site-01"))
    good = encode(Frame(DescribeRequest()))
    for data in (b"", b"\x00" * 7, b"\xff" * 64, good[:-1] if len(good) > 200 else good[:20], b"{}" * 40):
        reply = decode(service.exchange(data, wanted=lambda: True)).message
        assert isinstance(reply, ErrorReply)
        assert reply.code == MessageError.exit_code


def test_the_evaluator_never_trains(small_study: Make, opened: Any) -> None:
    study = small_study()
    reply = refusal(opened(study.config("evaluator")), study.train(), study.arrays)
    assert "never trains" in reply.reason


def approve(study: Study, site: str, **changes: Any) -> Protocol:
    """Put another protocol on the site's disk."""
    values = study.protocol.model_dump(mode="json")
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        place = values
        for part in path:
            place = place[part]
        place[last] = value
    protocol = Protocol.create(values)
    (study.config(site).protocols / f"{protocol.sha256[:8]}.json").write_text(protocol.to_json())
    return protocol


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"release": "9.9.9"}, ProtocolError, "another release"),
        ({"contract__sha256": "a" * 64}, CohortError, "data contract"),
        ({"pipeline__sha256": "a" * 64}, CohortError, "imaging pipeline"),
        ({"pipeline__height": 64}, CohortError, "film size"),
        ({"federation__sites": [{"name": "site-02", "patients": 30, "weight": 1.0}],
          "federation__sites_per_round": 1}, ProtocolError, "not part of the study"),
        ({"federation__sites": [{"name": "site-01", "patients": 5, "weight": 1.0}],
          "federation__sites_per_round": 1}, CohortError, "far more training patients"),
    ],
)  # fmt: skip
def test_a_protocol_that_does_not_fit_the_site_is_refused(
    small_study: Make, opened: Any, changes: dict[str, Any], kind: type[Any], words: str
) -> None:
    study = small_study()
    service = opened(study.config("site-01"))
    protocol = approve(study, "site-01", **changes)
    reply = refusal(service, study.train(protocol_sha256=protocol.sha256), study.arrays)
    assert (reply.code, words in reply.reason) == (kind.exit_code, True), reply


def test_two_protocols_of_one_name_never_share_a_reply(small_study: Make, opened: Any) -> None:
    study = small_study()
    service = opened(study.config("site-01"))
    other = approve(study, "site-01", seed=8)
    _, first = ask(service, study.train(), study.arrays)
    _, second = ask(service, study.train(protocol_sha256=other.sha256), study.arrays)
    assert weights_sha256(first) != weights_sha256(second)


def test_a_damaged_protocol_file_is_passed_over(small_study: Make, opened: Any) -> None:
    study = small_study()
    (study.config("site-01").protocols / "broken.json").write_text("{")
    reply, _ = ask(opened(study.config("site-01")), DescribeRequest())
    assert reply.protocols == (study.protocol.sha256,)


def test_an_unforeseen_failure_is_answered_without_its_words(
    small_study: Make, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback may hold anything, a patient's values among it: it stays in the site's log."""
    study = small_study()
    service = opened(study.config("site-01"))

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("Jane Doe, 1961")

    monkeypatch.setattr(train_module, "train_round", fails)
    reply = refusal(service, study.train(), study.arrays)
    assert "ValueError" in reply.reason
    assert "Jane" not in reply.reason


# opening a site


def test_two_trainers_cannot_spend_one_budget(small_study: Make, opened: Any) -> None:
    study = small_study()
    first = opened(study.config("site-01"))
    with pytest.raises(ConfigError, match="another trainer uses"):
        opened(study.config("site-01"))
    first.close()
    opened(study.config("site-01"))


def test_a_changed_split_is_refused(small_study: Make, opened: Any) -> None:
    study = small_study()
    opened(study.config("site-01")).close()
    with pytest.raises(PrivacyError, match="split of site-01 was changed"):
        opened(study.config("site-01").model_copy(update={"salt": "other"}))


def test_a_cohort_of_another_site_is_refused(small_study: Make, opened: Any) -> None:
    study = small_study()
    wrong = study.config("site-01").model_copy(update={"cohort": study.config("site-02").cohort})
    with pytest.raises(CohortError, match="another site"):
        opened(wrong)


def test_a_gpu_that_is_not_there_is_refused(small_study: Make, opened: Any) -> None:
    with pytest.raises(ConfigError, match="no such GPU"):
        opened(small_study().config("site-01").model_copy(update={"device": "cuda:42"}))


# words that leave the site


def test_words_that_leave_carry_no_path_and_no_pseudonym() -> None:
    words = "cohort /data/jane doe/x.npy of 0123456789abcdef failed; found: ~/secret, ./a/b; see (/etc/x)"
    left = without_identity(words, paths=[Path("/data/jane doe")])
    assert left == "cohort <path> of <patient> failed; found: <path>, <path>; see (<path>)"
    assert without_identity("epsilon 3.2 of 8, 0.5 s/round", paths=[]) == "epsilon 3.2 of 8, 0.5 s/round"
    assert len(without_identity("x" * 2000, paths=[])) == 500


def test_frames_are_checked_for_what_they_claim(small_study: Make, opened: Any) -> None:
    """A stored reply is a frame like any other: it decodes, and its tensors are the model's."""
    study = small_study()
    frame = decode(ask_bytes(opened(study.config("site-01")), study.train(), study.arrays))
    assert replace(frame, arrays={}).message.kind == "trained"
    assert set(frame.arrays) == set(study.arrays)


# side by side


def test_two_askers_of_one_round_get_one_training(small_study: Make, opened: Any) -> None:
    """A courier that lost its connection asks again while the first request still runs."""
    study = small_study(private=True)
    service = opened(study.config("site-01"))
    with ThreadPoolExecutor(3) as askers:
        replies = list(askers.map(lambda _: ask_bytes(service, study.train(), study.arrays), range(3)))
    assert len(set(replies)) == 1
    assert len(entries(study)) == 1


def test_describe_is_answered_while_the_process_computes(small_study: Make) -> None:
    study, busy = small_study(), threading.Lock()
    service = TrainerService(study.config("site-01"), compute=busy)
    with busy:
        assert isinstance(ask(service, DescribeRequest())[0], DescribeReply)
    service.close()


def test_warming_up_leaves_no_trace_and_survives_a_protocol_that_cannot_be_built(
    small_study: Make, opened: Any
) -> None:
    study = small_study(private=True)
    approve(study, "site-01", pipeline__height=16, pipeline__width=16)  # too small for a tiny model
    service = opened(study.config("site-01"))
    service.warm()
    assert entries(study) == []
    assert ask(service, study.train(), study.arrays)[0].outcome == "trained"
