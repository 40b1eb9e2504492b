"""The policy in the trainer: what it changes is trained, charged and told; what it refuses costs nothing; and the
ledger's head in the audit log tells an older copy."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.privacy.ledger import Ledger
from client.trainer.config import SiteConfig
from client.trainer.service import TrainerService
from server.aggregation.gate import inspect, norm_bounds
from shared_model.errors import PrivacyError, StorageError
from shared_model.messages import ErrorReply, Frame, TrainReply, decode, encode
from tests.signed import enrol, seal

Make = Callable[..., Any]
Open = Callable[[SiteConfig], TrainerService]


@pytest.fixture
def opened() -> Iterator[Open]:
    services: list[TrainerService] = []

    def open_one(config: SiteConfig) -> TrainerService:
        services.append(TrainerService(config, compute=threading.Lock()))
        return services[-1]

    yield open_one
    for service in services:
        service.close()


def ask(service: TrainerService, message: Any, arrays: Any, envelope: bytes | None = None) -> Frame:
    return decode(service.exchange(encode(Frame(message, arrays, envelope)), wanted=lambda: True))


def with_policy(study: Any, **policy: Any) -> SiteConfig:
    config: SiteConfig = study.config("site-01").model_copy(update=policy)
    return config


def test_more_noise_and_a_lower_clip_are_trained_charged_and_told(small_study: Make, opened: Open) -> None:
    study = small_study(private=True)
    frame = ask(opened(with_policy(study, least_noise=3.0, greatest_clip=0.5)), study.train(), study.arrays)
    reply = frame.message
    assert isinstance(reply, TrainReply) and reply.outcome == "trained" and reply.privacy is not None
    assert reply.reason == "this site's policy: least_noise: 3 instead of 1; greatest_clip: 0.5 instead of 1"
    assert reply.privacy.noise_multiplier == 3.0
    (record,) = Ledger(study.config("site-01").state / "ledger.json").records()
    assert record["noise_multiplier"] == 3.0 and record["state"] == "settled"
    bounds = norm_bounds(study.protocol, 1, study.arrays, noise={"site-01": reply.privacy.noise_multiplier})
    assert inspect(frame.arrays, study.arrays, norm_bound=bounds["site-01"]) is None


def test_the_noise_that_is_promised_is_the_noise_in_the_update(small_study: Make, opened: Open) -> None:
    """One step, so that the update is lr (sum + sigma C z) / B: the standard deviation shows sigma times C."""
    study = small_study(private=True, training__steps_per_round=1, training__sample_rate=1e-6)  # nobody is drawn
    protocol = study.protocol
    scale = protocol.learning_rate(1) / protocol.expected_batch("site-01", 1)
    frame = ask(opened(with_policy(study, least_noise=2.0, greatest_clip=0.25)), study.train(), study.arrays)
    moved = np.concatenate([(frame.arrays[n] - study.arrays[n]).ravel() for n in sorted(study.arrays)]) / scale
    moved = moved[moved != 0]  # what this phase does not train; to leave out small numbers would raise the deviation
    assert len(moved) > 1000
    # 6 standard errors of a standard deviation: one false alarm in 500 million; 1.0 and 2.0 are far away
    assert abs(moved.std() - 2.0 * 0.25) < 6 * 0.5 / np.sqrt(2 * len(moved))


@pytest.mark.parametrize(("policy", "words"), [
    ({"greatest_sample_rate": 0.01}, "greatest_sample_rate"), ({"most_rounds": 1}, "most_rounds"),
    ({"least_cohort": 1000}, "least_cohort"), ({"secure_sum": "required"}, "secure_sum"),
    ({"least_noise": 4.1}, "least_noise"), ({"delta_limit": 1e-9}, "delta_limit"),
])  # fmt: skip
def test_what_the_policy_refuses_costs_nothing(
    small_study: Make, opened: Open, policy: dict[str, Any], words: str
) -> None:
    study = small_study(private=True)
    config = with_policy(study, **policy)
    reply = ask(opened(config), study.train(), study.arrays).message
    assert isinstance(reply, ErrorReply) and reply.code == PrivacyError.exit_code and words in reply.reason
    assert Ledger(config.state / "ledger.json").records() == []


# --- the ledger's head in the audit log ---


def round_of(service: TrainerService, study: Any, number: int) -> None:
    reply = ask(service, study.train(number), study.arrays, seal(study.train(number))).message
    assert isinstance(reply, TrainReply) and reply.outcome == "trained"


def test_every_answer_writes_down_how_far_the_ledger_reaches(small_study: Make, opened: Open) -> None:
    study = enrol(small_study(private=True))
    service, state = opened(study.config("site-01")), study.config("site-01").state
    ledger = Ledger(state / "ledger.json")
    for number in (1, 2):
        round_of(service, study, number)
        head = ledger.head()
        assert head is not None
        last = json.loads((state / "audit.jsonl").read_text().splitlines()[-1])
        assert last["kind"] == "round_trained"
        assert [last["fields"][name] for name in ("ledger", "ledger_sequence", "ledger_sha256")] == [
            head.log, head.sequence, head.sha256,
        ]  # fmt: skip


def test_an_older_copy_put_back_with_its_anchor_is_noticed_when_the_trainer_starts(
    small_study: Make, opened: Open, tmp_path: Path
) -> None:
    study = enrol(small_study(private=True))
    config = study.config("site-01")
    service, ledger = opened(config), Ledger(config.state / "ledger.json")
    round_of(service, study, 1)
    for path in (ledger.path, ledger.anchor):
        shutil.copy(path, tmp_path / path.name)
    round_of(service, study, 2)
    service.close()
    newest = [(path, path.read_bytes()) for path in (ledger.path, ledger.anchor)]
    for path in (ledger.path, ledger.anchor):
        shutil.copy(tmp_path / path.name, path)
    assert len(Ledger(ledger.path).records()) == 1, "the chain and its anchor alone do not tell"
    with pytest.raises(StorageError, match=r"older copy was put back.*audit log") as caught:
        opened(config)
    assert caught.value.exit_code == 70
    for path, data in newest:
        path.write_bytes(data)
    round_of(opened(config), study, 3)


def test_an_older_copy_put_back_under_a_running_trainer_is_noticed(small_study: Make, opened: Open) -> None:
    study = enrol(small_study(private=True))
    config = study.config("site-01")
    service, ledger = opened(config), Ledger(config.state / "ledger.json")
    round_of(service, study, 1)
    old = [(path, path.read_bytes()) for path in (ledger.path, ledger.anchor)]
    round_of(service, study, 2)
    for path, data in old:
        path.write_bytes(data)
    reply = ask(service, study.train(3), study.arrays, seal(study.train(3))).message
    assert isinstance(reply, ErrorReply) and reply.code == StorageError.exit_code and "older copy" in reply.reason
