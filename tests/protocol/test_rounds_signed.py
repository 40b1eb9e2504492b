"""The coordinator signs each request for its site: who gets an envelope, what it covers, and what stays the same."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from safetensors.numpy import save_file

from server.app import app
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.nodes import Node
from server.deploy.studies import StudyFolder, Wanted, Wish
from server.rounds.loop import run_study
from server.rounds.signer import request_signer
from server.rounds.study import Roster
from shared_model.errors import ConfigError, RoundError, SignatureError
from shared_model.flower_app import HOME
from shared_model.messages import DescribeRequest, parse_message
from shared_model.protocol import Protocol
from shared_model.signed_request import SignedRequest
from tests import fake_grid as fake
from tests.signed import COORDINATOR, KEY, NAME


class Listening(fake.FakeGrid):
    """Keeps what was sent, as it was sent."""

    def __init__(self, parties: Iterable[fake.Party]) -> None:
        super().__init__(parties)
        self.heard: list[tuple[str, RecordDict]] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        sent = list(messages)
        self.heard += [(self.parties[m.metadata.dst_node_id].name, m.content) for m in sent]
        return super().send_and_receive(sent, timeout=timeout)


def run(folder: Path, protocol: fake.Protocol, *, signed: bool) -> Listening:
    grid = Listening(fake.make_grid(protocol).parties.values())
    outcome = run_study(
        grid=grid, protocol=protocol, run_dir=folder, initial=fake.initial_weights(), observer=lambda _: None,
        stop=threading.Event(), signer=request_signer(KEY, name=NAME) if signed else None,
    )  # fmt: skip
    assert outcome.status == "COMPLETE"
    return grid


def fields_of(content: RecordDict) -> dict[str, Any]:
    return dict(content.config_records["message"])


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold"])
def test_each_request_carries_the_signature_over_itself_for_its_own_site(tmp_path: Path, strategy: str) -> None:
    protocol = fake.make_protocol(**fake.STRATEGIES[strategy])
    kinds = set()
    for name, content in run(tmp_path, protocol, signed=True).heard:
        fields = fields_of(content)
        request = parse_message(fields["json"])
        if isinstance(request, DescribeRequest):
            assert "envelope" not in fields
            continue
        signed = SignedRequest.from_json(fields["envelope"], coordinator=COORDINATOR, site=name, release="0.1.0")
        assert signed.request == request
        kinds.add((request.kind, getattr(request, "scope", "")))
    assert kinds == {("train", ""), ("evaluate", "selection"), ("evaluate", "test"), ("evaluate", "site")}


def test_the_signature_changes_nothing_of_the_study_and_copies_no_weights(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    signed, plain = (run(tmp_path / name, protocol, signed=name == "signed") for name in ("signed", "plain"))
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("signed", "plain")]
    assert models[0] == models[1]
    assert sorted(name for name, _ in signed.heard) == sorted(name for name, _ in plain.heard)
    assert not any("envelope" in fields_of(content) for _, content in plain.heard if content.config_records)
    first = [content for _, content in signed.heard if '"train"' in fields_of(content)["json"]][:4]
    assert len({fields_of(content)["envelope"] for content in first}) == 4
    assert len({id(content["arrays"]) for content in first}) == 1


def test_the_same_request_is_signed_with_the_same_bytes_after_a_restart(tmp_path: Path) -> None:
    """So a site that answered before the coordinator died knows the request again, and spends nothing twice."""
    protocol = fake.make_protocol()
    one, other = (run(tmp_path / name, protocol, signed=True) for name in ("one", "other"))
    envelopes = [{fields_of(content).get("envelope") for _, content in grid.heard} for grid in (one, other)]
    assert envelopes[0] == envelopes[1] and len(envelopes[0]) > 20


def test_nobody_is_asked_whom_the_roster_does_not_know() -> None:
    roster = Roster(sites={"ash": 101}, evaluator="evaluator", evaluator_node=102)
    assert (roster.name_of(101), roster.name_of(102)) == ("ash", "evaluator")
    with pytest.raises(RoundError, match="nobody described"):
        roster.name_of(103)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoordinatorHome:
    settings = CoordinatorFile(name=NAME, title="Hub", hosts=("localhost",), port=1, enrol_port=2, link_port=3)
    made = CoordinatorHome.create(tmp_path / "hub", settings)
    monkeypatch.setenv(HOME, str(made.folder))
    return made


def lay_out(home: CoordinatorHome, name: str, wish: Wish) -> Protocol:
    protocol = fake.make_protocol()
    folder = home.study(name)
    folder.mkdir()
    (folder / "protocol.json").write_text(protocol.to_json())
    save_file(fake.initial_weights(), folder / "initial.safetensors")
    StudyFolder(folder).want(Wanted(wish=wish))
    return protocol


def app_context(**values: str) -> Context:
    told = {name.replace("_", "-"): value for name, value in values.items()}
    return Context(1, 0, {}, RecordDict(), {"patience-seconds": 0.0, **told})


def test_at_a_coordinator_the_app_signs_with_the_key_of_its_home(home: CoordinatorHome) -> None:
    protocol = lay_out(home, "breast", Wish.RUNNING)
    grid = Listening(fake.make_grid(protocol).parties.values())
    home.nodes.write({number: Node(site=party.name, role=party.role, key="0" * 64)
                      for number, party in grid.parties.items()})  # fmt: skip
    app(grid, app_context(study="breast"))
    sealed = [(who, f["envelope"]) for who, content in grid.heard if "envelope" in (f := fields_of(content))]
    assert len(sealed) > 20
    for who, envelope in sealed:
        SignedRequest.from_json(envelope, coordinator=home.coordinator, site=who, release="0.1.0")


@pytest.mark.parametrize("wish", [Wish.PROPOSED, Wish.STOPPED, Wish.ENDED])
def test_whoever_submits_a_run_starts_no_study_that_the_operator_does_not_want(
    home: CoordinatorHome, wish: Wish
) -> None:
    protocol = lay_out(home, "breast", wish)
    with pytest.raises(ConfigError, match="is not to run"):
        app(fake.make_grid(protocol), app_context(study="breast"))


@pytest.mark.parametrize("named", ["", "elsewhere", "../signing.key", "/tmp/study", "breast/../breast"])
def test_whoever_submits_a_run_names_no_place_of_his_own(home: CoordinatorHome, tmp_path: Path, named: str) -> None:
    """Flower's Control API has no login: what it was told must not have the coordinator sign for another folder."""
    protocol = lay_out(home, "breast", Wish.RUNNING)
    with pytest.raises(ConfigError, match=r"there is no study|incomplete"):
        app(fake.make_grid(protocol), app_context(study=named, run_dir=str(home.study("breast"))))


def test_a_key_that_others_could_read_signs_nothing(home: CoordinatorHome) -> None:
    protocol = lay_out(home, "breast", Wish.RUNNING)
    (home.folder / "signing.key").chmod(0o644)
    with pytest.raises(SignatureError, match="read by others"):
        app(fake.make_grid(protocol), app_context(study="breast"))
