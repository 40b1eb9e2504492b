"""Evaluations on real (tiny) cohorts: whose split it is, what is opened once, and what a private site lets go."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.privacy.accountant import Account
from client.privacy.ledger import Ledger
from client.trainer import evaluate as evaluate_module
from client.trainer.config import SiteConfig
from client.trainer.evaluate import ImageOnly
from client.trainer.reference import keep_reference, read_reference
from client.trainer.service import TrainerService
from shared_model.cohort import Cohort, split_indices
from shared_model.errors import PrivacyError, StorageError
from shared_model.evaluation.auc import roc_auc
from shared_model.evaluation.kept import kept_path, read_kept
from shared_model.messages import ErrorReply, EvaluateReply, Frame, decode, encode, weights_sha256

Study = Any
Make = Callable[..., Study]
THRESHOLDS = {"fused": 0.0, "image": 0.0, "clinical": 0.0}


@pytest.fixture
def opened() -> Iterator[Callable[[SiteConfig], TrainerService]]:
    services: list[TrainerService] = []

    def open_one(config: SiteConfig) -> TrainerService:
        services.append(TrainerService(config, compute=threading.Lock()))
        return services[-1]

    yield open_one
    for service in services:
        service.close()


def ask_bytes(service: TrainerService, study: Study, scope: str, **changes: Any) -> bytes:
    request = study.evaluate(scope, **changes)
    return service.exchange(encode(Frame(request, study.arrays)), wanted=lambda: True)


def ask(service: TrainerService, study: Study, scope: str, **changes: Any) -> Any:
    return decode(ask_bytes(service, study, scope, **changes)).message


def test_selection_gives_thresholds_and_leaves_test_closed(small_study: Make, opened: Any) -> None:
    study = small_study()
    reply = ask(opened(study.config("evaluator")), study, "selection")
    assert isinstance(reply, EvaluateReply), reply
    document = json.loads(reply.report)
    assert set(document["auc"]) == {"fused", "image", "clinical"} == set(document["thresholds"]) - {"rule_out"}
    config = study.config("evaluator")
    parts = split_indices(Cohort.open(config.cohort), salt=config.salt, fractions=config.fractions)
    assert document["n"] == len(parts["selection"])
    assert len(parts["selection"]) + len(parts["test"]) == 60
    assert not (config.state / "replies").exists()


def test_test_is_opened_once_for_the_model_and_once_for_public_weights(small_study: Make, opened: Any) -> None:
    study = small_study()
    service = opened(study.config("evaluator"))
    first = ask_bytes(service, study, "test", thresholds=THRESHOLDS, temperature=1.5)
    assert ask_bytes(service, study, "test", thresholds=THRESHOLDS, temperature=1.5) == first
    assert decode(ask_bytes(service, study, "test", image_only=True)).message.outcome == "evaluated"  # type: ignore[union-attr]
    service.close()
    again = opened(study.config("evaluator"))
    assert ask_bytes(again, study, "test", thresholds=THRESHOLDS, temperature=1.5) == first
    reply = ask(again, study, "test", thresholds={**THRESHOLDS, "fused": 0.5}, temperature=1.5)
    assert isinstance(reply, ErrorReply)
    assert reply.code == PrivacyError.exit_code
    document = json.loads(decode(first).message.report)  # type: ignore[union-attr]
    assert document["models"]["fused"]["threshold"] == 0.0
    assert {row["name"] for row in document["subgroups"]} >= {"vendor"}


def test_the_model_is_compared_with_public_weights_on_the_same_women(small_study: Make, opened: Any) -> None:
    study = small_study()
    service = opened(study.config("evaluator"))
    public = json.loads(ask(service, study, "test", image_only=True).report)
    document = json.loads(ask(service, study, "test", thresholds=THRESHOLDS, temperature=1.5).report)
    gap = document["comparisons"]["fused_vs_public"]
    expected = document["models"]["fused"]["auc"] - public["models"]["image"]["auc"]
    assert gap["difference"] == pytest.approx(expected)
    assert gap["low"] <= gap["difference"] <= gap["high"]


@pytest.mark.parametrize("place", [0, 200, -1])
def test_reference_scores_of_which_a_byte_changed_are_refused(small_study: Make, opened: Any, place: int) -> None:
    study = small_study()
    config = study.config("evaluator")
    service = opened(config)
    ask_bytes(service, study, "test", image_only=True)
    (path,) = (config.state / "reference").glob("*.npy")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    reply = ask(service, study, "test", thresholds=THRESHOLDS, temperature=1.5)
    assert isinstance(reply, ErrorReply) and reply.code == StorageError.exit_code and "are damaged" in reply.reason
    data[place] ^= 1
    path.write_bytes(data)
    again = ask(service, study, "test", thresholds=THRESHOLDS, temperature=1.5)
    assert "fused_vs_public" in json.loads(again.report)["comparisons"]


def test_reference_scores_of_another_number_of_women_are_refused(tmp_path: Path) -> None:
    keep_reference(tmp_path / "new" / "a.npy", np.arange(5.0))
    assert read_reference(tmp_path / "new" / "a.npy", women=5).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    with pytest.raises(StorageError, match="another cohort"):
        read_reference(tmp_path / "new" / "a.npy", women=6)


def test_the_evaluator_keeps_the_chosen_models_scores_on_its_own_disk(small_study: Make, opened: Any) -> None:
    study = small_study()
    config = study.config("evaluator")
    service = opened(config)
    ask_bytes(service, study, "test", image_only=True)
    path = kept_path(config.state, study.protocol)
    assert path.parent.is_dir() and not path.exists()  # of public weights only the image scores are kept, as before
    answer = ask_bytes(service, study, "test", thresholds=THRESHOLDS, temperature=1.5)
    document, kept = json.loads(decode(answer).message.report), read_kept(path)  # type: ignore[union-attr]
    cohort = Cohort.open(config.cohort)
    test = split_indices(cohort, salt=config.salt, fractions=config.fractions)["test"]
    assert kept.label.tolist() == cohort.labels[test].tolist()
    assert kept.women == hashlib.sha256("\n".join(cohort.pseudonyms[i] for i in test).encode()).hexdigest()
    for name in ("fused", "image", "clinical"):
        assert roc_auc(kept.label, getattr(kept, name)) == pytest.approx(document["models"][name]["auc"])
    for row in (r for r in document["subgroups"] if r["name"] == "vendor" and "n" in r):
        members = kept.of_vendors([row["level"]])
        assert int(members.sum()) == row["n"] and roc_auc(kept.label[members], kept.fused[members]) == row["auc"]


def test_no_site_keeps_scores(small_study: Make, opened: Any) -> None:
    study = small_study()
    ask_bytes(opened(study.config("site-01")), study, "site", thresholds=THRESHOLDS)
    assert not (study.config("site-01").state / "reference").exists()


def test_image_only_sees_no_table(small_study: Make) -> None:
    cohort = Cohort.open(small_study().config("evaluator").cohort)
    full, seen = cohort.batch([0, 1, 2, 3]), ImageOnly(cohort).batch([0, 1, 2, 3])
    assert full.clinical_mask_B.any()
    assert not seen.clinical_mask_B.any()
    assert not seen.clinical_BF.any()
    assert torch.equal(seen.pixels_BVCHW, full.pixels_BVCHW)
    assert torch.equal(seen.labels_B, full.labels_B)


def test_a_report_on_few_women_is_withheld(small_study: Make, opened: Any) -> None:
    reply = ask(opened(small_study().config("site-01")), small_study("again"), "site", thresholds=THRESHOLDS)
    assert (reply.outcome, reply.report) == ("abstained", "{}")
    assert "fewer than 5 women of a kind" in reply.reason


def test_without_privacy_a_site_reports_its_own_women_exactly(small_study: Make, opened: Any) -> None:
    study = small_study(patients=150)
    reply = ask(opened(study.config("site-01")), study, "site", thresholds=THRESHOLDS)
    document = json.loads(reply.report)
    config = study.config("site-01")
    parts = split_indices(Cohort.open(config.cohort), salt=config.salt, fractions=config.fractions)
    assert document["n"] == len(parts["test"])
    assert reply.privacy is None


def test_a_private_site_releases_one_noised_histogram_and_is_charged(small_study: Make, opened: Any) -> None:
    study = small_study(private=True)
    service = opened(study.config("site-01"))
    first = ask_bytes(service, study, "site")
    reply = decode(first).message
    assert isinstance(reply, EvaluateReply)
    document = json.loads(reply.report)
    assert document["n"] != round(document["n"])  # the counts are noised, so their sum is no count
    expected = Account().add(noise_multiplier=4.0, sample_rate=1.0, steps=1).epsilon(delta=1e-5)
    assert reply.privacy is not None
    assert reply.privacy.epsilon == expected
    entries = Ledger(study.config("site-01").state / "ledger.json").records()
    assert [(e["group"], e["state"]) for e in entries] == [("metrics", "settled")]
    assert ask_bytes(service, study, "site") == first
    other = ask(service, study, "site", round_number=2)
    assert isinstance(other, ErrorReply)
    assert other.code == PrivacyError.exit_code
    assert len(Ledger(study.config("site-01").state / "ledger.json").records()) == 1


def test_weights_that_overflow_tell_of_no_woman_and_of_no_number_of_them(small_study: Make, opened: Any) -> None:
    """Whoever chooses the weights could make the scores of chosen women overflow."""
    for private in (True, False):
        study = small_study(root_name=f"private-{private}", private=private)
        large = {name: np.full_like(array, 1e38) for name, array in study.arrays.items()}
        request = study.evaluate("site", weights_sha256=weights_sha256(large))
        service = opened(study.config("site-01"))
        reply = decode(service.exchange(encode(Frame(request, large)), wanted=lambda: True)).message
        if private:
            assert isinstance(reply, EvaluateReply) and reply.outcome == "evaluated"
        else:
            assert isinstance(reply, ErrorReply) and "some patients" in reply.reason


def test_the_noise_on_the_counts_is_the_protocols(
    small_study: Make, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sum over sites and bins of (noised - true)^2 against sigma^2: within 6 standard errors of a chi-square, which
    goes wrong once in 100 million runs."""
    study = small_study(private=True, sites=4, privacy__metrics_bins=256)
    seen: list[Any] = []
    monkeypatch.setattr(evaluate_module, "metrics_from_histogram", lambda h, **_: seen.append(h) or {})
    true: list[Any] = []
    real = evaluate_module.score_histogram
    monkeypatch.setattr(evaluate_module, "score_histogram", lambda *a: true.append(real(*a)) or true[-1])
    for site in ("site-01", "site-02", "site-03", "site-04"):
        ask(opened(study.config(site)), study, "site")
    squares = sum(float(((a - b) ** 2).sum()) for a, b in zip(seen, true, strict=True))
    count = sum(a.size for a in seen)
    assert count == 4 * 2 * 256
    assert abs(squares / 16.0 - count) < 6 * (2 * count) ** 0.5


def test_a_site_abstains_where_its_metrics_have_no_budget(small_study: Make, opened: Any) -> None:
    study = small_study(private=True, privacy__metrics="none")
    reply = ask(opened(study.config("site-01")), study, "site")
    assert (reply.outcome, reply.report) == ("abstained", "{}")
    assert "no share" in reply.reason
    assert not (study.config("site-01").state / "ledger.json").exists()
    study_with = small_study(root_name="with", private=True)
    poor = study_with.config("site-02").model_copy(update={"epsilon_limit": 0.01})
    assert ask(opened(poor), study_with, "site").outcome == "abstained"


@pytest.mark.parametrize("private", [True, False])
def test_a_policy_without_metrics_lets_none_leave_whatever_is_asked(
    small_study: Make, opened: Any, private: bool
) -> None:
    study = small_study(private=private)
    strict = study.config("site-01").model_copy(update={"metrics": "none"})
    reply = ask(opened(strict), study, "site")
    assert (reply.outcome, reply.report) == ("abstained", "{}") and "policy" in reply.reason
    assert not (strict.state / "ledger.json").exists()


def test_a_histogram_gets_no_less_noise_than_the_policy_says(small_study: Make, opened: Any) -> None:
    study = small_study(private=True, privacy__metrics_noise_multiplier=0.9)
    noisy = study.config("site-01").model_copy(update={"least_noise": 2.5})
    reply = ask(opened(noisy), study, "site")
    assert reply.outcome == "evaluated" and reply.privacy.noise_multiplier == 2.5
    (record,) = Ledger(noisy.state / "ledger.json").records()
    assert (record["group"], record["noise_multiplier"]) == ("metrics", 2.5)
