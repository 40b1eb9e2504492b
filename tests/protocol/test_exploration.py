"""An exploration: real trainers count their women, the coordinator sees the sum, and what it costs is charged."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from client.privacy.accountant import Account
from client.privacy.ledger import Ledger
from client.trainer.service import TrainerService
from server.cli import server as server_group
from server.deploy.explore import exploration_of
from server.monitor.reading import read
from server.reporting.report import write_report
from server.rounds.explore import read_exploration
from shared_model.cohort import Cohort, split_indices
from shared_model.contract import load_contract
from shared_model.contract.exploration import FILMS, LABEL, count, documents, layout, length, sensitivity
from shared_model.errors import ConfigError, ProtocolError
from shared_model.messages import ErrorReply, Frame, SecureSumRequest, TrainReply, decode, encode
from shared_model.proposal import protocol_yaml, read_protocol
from shared_model.protocol import Protocol
from tests.signed import enrol, seal
from tests.summed import confirm_all, lose, run, with_true_weights

Make = Callable[..., Any]
FIELDS = ("age", load_contract().fields[1].name)


def explored(make: Make, name: str = "study", *, noise: float = 0.0, sites: int = 4, **policy: Any) -> Any:
    """A study's sites, enrolled for its exploration."""
    study = with_true_weights(make(name, sites=sites, federation__deadline_s=600.0, federation__quorum=3))
    protocol = exploration_of(study.protocol, fields=FIELDS, noise=noise)
    for path in study.files.values():
        (path.parent / "protocols" / "approved.json").write_text(protocol.to_json())
    study = dataclasses.replace(study, protocol=protocol)
    return confirm_all(enrol(study, **{"private_only": False, **policy}))


def women(study: Any, site: str) -> tuple[Cohort, Any]:
    config = study.config(site)
    cohort = Cohort.open(config.cohort)
    parts = split_indices(cohort, salt=config.salt, fractions=config.fractions)
    return cohort, np.asarray(parts["train"])


def counts(study: Any, *sites: str) -> np.ndarray:
    terms, contract = study.protocol.exploration, load_contract()
    histograms = layout(contract, fields=terms.fields, bins=terms.bins)
    return sum((count(*women(study, site), contract, histograms) for site in sites), np.zeros(length(histograms)))


def flat(document: dict[str, Any]) -> list[float | None]:
    return [value for histogram in document["histograms"] for value in histogram["counts"]]


ALL = ("site-01", "site-02", "site-03", "site-04")

# the counts


def test_every_woman_is_in_one_cell_of_each_histogram(small_study: Make) -> None:
    study = small_study(patients=60)
    cohort, indices = women(study, "site-01")
    contract = load_contract()
    histograms = layout(contract, fields=(), bins=7)
    assert [h.name for h in histograms[:2]] == [LABEL, FILMS]
    assert [h.name for h in histograms[2:]] == [field.name for field in contract.fields]
    vector = count(cohort, indices, contract, histograms)
    start = 0
    for histogram in histograms:
        part = vector[start : start + len(histogram.cells)]
        assert part.sum() == len(indices), histogram.name
        start += len(histogram.cells)
    assert start == len(vector) == length(histograms)
    without = count(cohort, indices[1:], contract, histograms)
    assert np.linalg.norm(vector - without) == pytest.approx(sensitivity(histograms))
    assert np.abs(vector - without).max() == 1


def test_values_come_back_out_of_the_encoded_table(small_study: Make) -> None:
    contract = load_contract()
    field = contract.field("age")
    assert field.winsor is not None
    low, high = field.winsor
    edges = np.linspace(low, high, 6)
    ages = [low, edges[1], edges[1] - 1, edges[3] + 1, high, None]
    table = contract.encode(pd.DataFrame({"age": ages}, dtype=object), source="test")

    class Five:
        labels, view_index = np.zeros(6, np.uint8), np.full((6, 4), -1, np.int32)
        clinical, clinical_mask = table.values, np.array([True] * 5 + [False])

    (_, _, age) = histograms = layout(contract, fields=("age",), bins=5)
    vector = count(Five(), np.arange(6), contract, histograms)[7:]  # type: ignore[arg-type]
    whole = [int(value == int(value)) for value in ages[:-1]]
    assert all(whole), "the contract's ages are whole years"
    found = dict(zip(age.cells, vector, strict=True))
    assert found["missing"] == 1 and sum(vector) == 6
    assert vector[:5].tolist() == [2, 1, 0, 1, 1]


def test_small_counts_are_not_shown() -> None:
    histograms = layout(load_contract(), fields=("age",), bins=2)
    values = np.array([3.0, 40.0, *[0.0] * 4, 9.0, 5.0, 4.0, 0.0])
    values = np.concatenate([values, np.zeros(length(histograms) - len(values))])
    shown = documents(histograms, values, below=5)
    assert shown[0]["counts"] == [None, 40.0] and shown[1]["counts"] == [None] * 4 + [9.0]
    assert documents(histograms, values, below=-math.inf)[0]["counts"] == [3.0, 40.0]


# the sum


def test_without_noise_the_sum_is_exact_and_nothing_is_charged(small_study: Make, tmp_path: Path) -> None:
    study = explored(small_study)
    outcome, wire = run(study, tmp_path / "run")
    assert (outcome.status, outcome.rounds_completed) == ("COMPLETE", 0), outcome
    document = read_exploration(tmp_path / "run")
    exact = counts(study, *ALL)
    assert flat(document) == [value if value >= 5 else None for value in exact.tolist()]
    assert document["exact"] and document["sites"] == list(ALL) and document["lost"] == {}
    assert {type(request.message) for _, request, _ in wire.told} >= {SecureSumRequest}
    for site in ALL:
        sent = [reply for name, request, reply in wire.told if name == site and reply.arrays]
        assert len(sent) == 1 and set(sent[0].arrays) == {"masked_words"}
        assert not (study.config(site).state / "ledger.json").exists()
    again, later = run(study, tmp_path / "run")
    assert again.status == "COMPLETE" and not later.told, "what is done is not asked again"
    view, page = read(tmp_path / "run"), write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert view.sentence == "complete: the counts of the sites together are there", "nothing was opened or closed"
    assert "no epsilon covers the sum" in view.privacy_words and "no epsilon covers the sum" in page
    assert {site.gives for site in view.sites} == {"once, counts of its women, masked in the sum"}
    first = document["histograms"][0]["counts"]
    assert "held-out" not in page and all(f"<td>{value:,.0f}</td>" in page for value in first if value is not None)
    shown = CliRunner().invoke(server_group, ["explore", "show", str(tmp_path / "run")], env={"COLUMNS": "120"})
    assert shown.exit_code == 0 and "no epsilon covers the sum" in shown.output and "age" in shown.output


def test_with_noise_each_site_adds_all_of_it_and_is_charged_once(small_study: Make, tmp_path: Path) -> None:
    study = explored(small_study, noise=4.0)
    outcome, _ = run(study, tmp_path / "run", before=lose(("site-02", "mask"), times=1))
    assert outcome.status == "COMPLETE", outcome
    document = read_exploration(tmp_path / "run")
    sites = document["sites"]
    std = 4.0 * math.sqrt(4) * math.sqrt(len(sites))  # four histograms
    assert not document["exact"] and document["noise_std"] == pytest.approx(std)
    off = np.array(flat(document)) - counts(study, *sites)
    assert np.abs(off).max() < 6 * std and not np.allclose(off, off.round())
    assert 0.4 * std < off.std() < 2 * std
    view, page = read(tmp_path / "run"), write_report(tmp_path / "run").read_text(encoding="utf-8")
    for words in (view.privacy_words, page):
        assert "charges its own ledger" in words and "No privacy was spent" not in words
    assert {site.privacy for site in view.sites} == {None}, "no epsilon is told, so none is shown as 0"
    assert {site.gives for site in view.sites} == {"once, counts of its women, noised there and masked in the sum"}
    expected = Account().add(noise_multiplier=4.0, sample_rate=1.0, steps=1).epsilon(delta=1e-5)
    for site in sites:
        ledger = Ledger(study.config(site).state / "ledger.json")
        assert [row["state"] for row in ledger.records()] == ["settled"]
        assert ledger.spent("train", delta=1e-5) == pytest.approx(expected)


def test_a_site_that_falls_out_is_not_in_it_and_too_few_reveal_nothing(small_study: Make, tmp_path: Path) -> None:
    study = explored(small_study)
    outcome, _ = run(study, tmp_path / "run", before=lose(("site-04", "mask")))
    document = read_exploration(tmp_path / "run")
    assert outcome.status == "COMPLETE" and document["sites"] == list(ALL[:3]) and "site-04" in document["lost"]
    assert flat(document) == [value if value >= 5 else None for value in counts(study, *ALL[:3]).tolist()]
    few = explored(small_study, "few")
    outcome, _ = run(few, tmp_path / "few", before=lose(("site-04", "mask"), ("site-03", "mask")))
    assert outcome.status == "INCOMPLETE" and "no sum" in outcome.reason
    assert read(tmp_path / "few").sentence.startswith("incomplete before there were counts: the exploration has no sum")
    assert "there are no counts" in write_report(tmp_path / "few").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="no exploration"):
        read_exploration(tmp_path / "few")


def test_a_private_only_site_takes_no_part_in_an_exact_one(small_study: Make, tmp_path: Path) -> None:
    study = explored(small_study, private_only=True)
    outcome, _ = run(study, tmp_path / "run")
    assert outcome.status == "INCOMPLETE"
    noised = explored(small_study, "noised", noise=4.0, private_only=True, greatest_sample_rate=0.5)
    assert run(noised, tmp_path / "noised")[0].status == "COMPLETE"


def test_women_who_cannot_afford_it_are_not_counted(small_study: Make, tmp_path: Path) -> None:
    study = explored(small_study, noise=4.0, epsilon_limit=0.1)
    outcome, wire = run(study, tmp_path / "run")
    words = {reply.message.reason for _, request, reply in wire.told
             if isinstance(request.message, SecureSumRequest) and isinstance(reply.message, ErrorReply)}  # fmt: skip
    assert outcome.status == "INCOMPLETE" and any("to epsilon" in text for text in words), words


def test_an_exploration_trains_nobody(small_study: Make) -> None:
    study = explored(small_study)
    service = TrainerService(study.config("site-01"), compute=threading.Lock())
    try:
        for request in (study.train(), study.evaluate("site")):
            reply = decode(service.exchange(encode(Frame(request, study.arrays, seal(request))), wanted=lambda: True))
            assert isinstance(reply.message, ErrorReply) and "is an exploration" in reply.message.reason
            assert not isinstance(reply.message, TrainReply)
    finally:
        service.close()


# the protocol


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("federation.secure_sum", "none", "secure sum only"), ("training.sample_rate", 0.5, "counted once"),
        ("training.steps_per_round", 2, "counted once"), ("privacy.metrics", "final", "no model"),
    ],
)  # fmt: skip
def test_what_is_no_exploration_is_refused(small_study: Make, path: str, value: object, words: str) -> None:
    values = exploration_of(small_study(sites=3, federation__quorum=3).protocol).model_dump(mode="json")
    part, name = path.split(".")
    values[part][name] = value
    with pytest.raises(ProtocolError, match=words):
        Protocol.create(values)


def test_it_is_written_from_a_study_s_protocol(small_study: Make, tmp_path: Path) -> None:
    study = small_study(sites=3, private=True)
    source, target = tmp_path / "protocol.yaml", tmp_path / "explore.yaml"
    source.write_text(protocol_yaml(study.protocol))
    done = CliRunner().invoke(server_group, ["explore", "make", str(source), "--to", str(target), "--field", "age",
                                             "--noise", "4"])  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    found = read_protocol(target)
    assert found.study == "unit-explore" and found.exploration is not None and found.exploration.fields == ("age",)
    assert found.mechanisms(1) == ((4.0, 1.0, 1),) and found.private
    with pytest.raises(ProtocolError, match=r"not in the data contract.*shoe_size.*expected: age, menarche_age"):
        exploration_of(study.protocol, fields=("shoe_size",))
    with pytest.raises(ProtocolError, match="fewer than 3 sites"):
        exploration_of(small_study("two", sites=2).protocol)
    assert isinstance(json.loads(found.to_json())["protocol"]["exploration"], dict)
