"""Whole studies over an in-memory grid: who takes part, what is refused, how a study ends."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from server.rounds.checkpoint import read_checkpoint, read_safetensors
from server.rounds.events import Event
from server.rounds.loop import StudyOutcome, run_study
from shared_model.errors import ProtocolError, StorageError, WeightsError
from shared_model.messages import weights_sha256
from shared_model.tensors import WEIGHTS, pack
from tests import fake_grid as fake


def run(
    grid: fake.FakeGrid, protocol: fake.Protocol, folder: Path, observer: Callable[[Event], None] = lambda _: None
) -> StudyOutcome:
    return run_study(
        grid=grid, protocol=protocol, run_dir=folder, initial=fake.initial_weights(), observer=observer,
        stop=threading.Event(),
    )  # fmt: skip


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{folder / 'journal.sqlite'}?mode=ro", uri=True) as db:
        return db.execute(query).fetchall()


def outcomes(folder: Path, *, round_number: int = 1, attempt: int = 1) -> dict[str, tuple[str, str]]:
    query = f"SELECT site, outcome, reason FROM participation WHERE round = {round_number} AND attempt = {attempt}"
    return {site: (outcome, reason) for site, outcome, reason in rows(folder, query)}


def model(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def undisturbed(tmp_path: Path) -> bytes:
    protocol = fake.make_protocol()
    assert run(fake.make_grid(protocol), protocol, tmp_path / "undisturbed").status == "COMPLETE"
    return model(tmp_path / "undisturbed")


def test_study_completes_and_its_model_learned(tmp_path: Path) -> None:
    protocol, events = fake.make_protocol(), list[Event]()
    outcome = run(fake.make_grid(protocol), protocol, tmp_path, events.append)
    assert (outcome.status, outcome.rounds_completed, outcome.reason) == ("COMPLETE", 4, "")
    weights, document = read_safetensors(tmp_path / "model.safetensors", "model")
    assert document["sha256"] == weights_sha256(weights) and document["protocol_sha256"] == protocol.sha256
    x, y = fake.women(91, 200)
    assert fake.auc(fake.logits(fake.initial_weights(), x), y) < 0.5 < 0.8 < fake.auc(fake.logits(weights, x), y)
    kinds = [event.kind for event in events]
    assert kinds[0] == "study_started" and kinds[-1] == "finished" and kinds.count("round_closed") == 4
    assert events[-1].data == {"status": "COMPLETE", "rounds_completed": 4}
    assert [kind for kind, in rows(tmp_path, "SELECT kind FROM events ORDER BY id")] == kinds


def test_updates_that_krum_did_not_take_are_named(tmp_path: Path) -> None:
    """Their sites contributed, were charged for it, and are not in the model: the journal says so for each round."""
    protocol, events = fake.make_protocol(federation__strategy="krum"), list[Event]()
    assert run(fake.make_grid(protocol), protocol, tmp_path, events.append).status == "COMPLETE"
    left = [(event.round, event.site) for event in events if event.kind == "left_out"]
    sites = {site.name for site in protocol.federation.sites}
    for number in range(1, protocol.rounds + 1):
        assert len({site for at, site in left if at == number} & sites) == len(sites) - 1
    assert len(left) == protocol.rounds * (len(sites) - 1)


def test_average_is_weighted_by_the_protocol_alone(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    run(fake.make_grid(protocol), protocol, tmp_path)
    start = fake.initial_weights()
    total = sum(site.weight for site in protocol.federation.sites)
    for name in start:
        expected = sum(
            site.weight / total * fake.fit(start, protocol, site.name, 1)[name].astype(float)
            for site in protocol.federation.sites
        )
        found = read_checkpoint(tmp_path, 1, protocol_sha256=protocol.sha256).weights[name]
        assert np.allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_order_of_nodes_and_replies_does_not_matter(tmp_path: Path, undisturbed: bytes) -> None:
    protocol = fake.make_protocol()
    parties = [fake.Party(name, "site", protocol) for name in fake.SITES]
    grid = fake.FakeGrid([fake.Party("evaluator", "evaluator", protocol), *parties])
    run(grid, protocol, tmp_path)
    assert model(tmp_path) == undisturbed


def test_every_wait_and_every_request_has_the_deadline(tmp_path: Path) -> None:
    protocol = fake.make_protocol(federation__deadline_s=7.5)
    grid = fake.make_grid(protocol)
    run(grid, protocol, tmp_path)
    assert set(grid.timeouts) == {7.5} and set(grid.ttls) == {7.5}


def test_second_late_and_foreign_replies_are_ignored_by_message_id(tmp_path: Path, undisturbed: bytes) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    grid.twice = True

    def replay(event: Event) -> None:
        if event.kind == "round_opened" and event.round > 1:
            grid.extra = list(grid.kept)  # all that ever came, again: valid updates of earlier rounds among them
            for reply in grid.kept[:1]:
                stranger = Message(reply.content, reply_to=reply)
                stranger.metadata.__dict__["_reply_to_message_id"] = ""
                grid.extra.append(stranger)

    run(grid, protocol, tmp_path, replay)
    assert model(tmp_path) == undisturbed
    assert rows(tmp_path, "SELECT DISTINCT round FROM events WHERE code = 'foreign_reply'") == [(1,), (2,), (3,), (4,)]


FAULTS: dict[str, tuple[Any, str, str]] = {
    "late": (fake.late, "late", "late: no reply within 5 s"),
    "lost": (fake.lost, "failed", "error: code 5: node unavailable"),
    "refuses": (fake.refuses, "failed", "code 30: protocol not ?[31mapproved"),
    "abstains": (fake.fields(outcome="abstained", reason="budget"), "abstained", "budget"),
    "nan": (fake.changed(fake.with_nan), "refused", "non_finite: tensor encoder.weight holds NaN or infinity"),
    "x1000": (fake.changed(fake.times_1000), "refused", "norm: "),
    "broadcastable": (fake.changed(fake.broadcastable), "refused", "shape: tensor encoder.weight has shape (1, 3)"),
    "missing tensor": (fake.changed(lambda w: {"head.weight": w["head.weight"]}), "refused", "tensors: "),
    "no tensors": (fake.changed(lambda w: {}), "refused", "tensors: "),
    "float64": (fake.changed(lambda w: {k: v.astype(float) for k, v in w.items()}), "refused", "malformed: "),
    "other site": (fake.fields(site="birch"), "refused", "identity: the reply is for another site"),
    "other round": (fake.fields(round=2), "refused", "identity: the reply is for another round"),
    "other attempt": (fake.fields(attempt=2), "refused", "identity: the reply is for another attempt"),
    "other weights": (fake.fields(weights_sha256="0" * 64), "refused", "identity: the reply is for another weights"),
    "other study": (fake.fields(study="else"), "refused", "identity: the reply is for another study"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_answer_costs_one_site_one_round_and_nothing_else(tmp_path: Path, name: str) -> None:
    fault, outcome, reason = FAULTS[name]
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    grid.party("ash").faults[1] = fault
    assert run(grid, protocol, tmp_path / "faulty").status == "COMPLETE"
    found = outcomes(tmp_path / "faulty")
    assert found["ash"][0] == outcome and found["ash"][1].startswith(reason)
    assert {found[site] for site in ("birch", "cedar", "dogwood")} == {("contributed", "")}
    assert outcomes(tmp_path / "faulty", round_number=2)["ash"] == ("contributed", "")
    # The model is the one that three sites make when the fourth is not there at all.
    without = fake.make_grid(protocol)
    without.party("ash").faults[1] = fake.late
    run(without, protocol, tmp_path / "without")
    assert model(tmp_path / "faulty") == model(tmp_path / "without")


def test_a_reply_that_lies_about_its_size_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    deliver = grid._deliver
    header = b'{"encoder.weight":{"dtype":"F32","shape":[99999999999999],"data_offsets":[0,399999999999996]}}'
    data = len(header).to_bytes(8, "little") + header + b"\x00" * 60

    def lying(message: Message) -> Message | None:
        reply = deliver(message)
        if message.metadata.message_type == "train" and grid.parties[message.metadata.dst_node_id].name == "ash":
            assert reply is not None
            reply.content["arrays"] = ArrayRecord({WEIGHTS: Array("uint8", (len(data),), "x", data)})
        return reply

    grid._deliver = lying  # type: ignore[method-assign]
    run(grid, protocol, tmp_path)
    assert outcomes(tmp_path)["ash"][0] == "refused" and "damaged" in outcomes(tmp_path)["ash"][1]


def test_below_quorum_is_incomplete_and_never_a_success(tmp_path: Path) -> None:
    protocol, events = fake.make_protocol(), list[Event]()
    grid = fake.make_grid(protocol)
    for name in fake.SITES:
        grid.party(name).faults[2] = fake.lost
    outcome = run(grid, protocol, tmp_path, events.append)
    assert (outcome.status, outcome.rounds_completed) == ("INCOMPLETE", 1) and "no quorum" in outcome.reason
    assert not (tmp_path / "model.safetensors").exists()
    assert [(e.round, e.attempt) for e in events if e.kind == "attempt_failed"] == [(2, 1), (2, 2)]
    assert not any(request.scope == "test" for request in grid.party("evaluator").measured)


def test_a_second_attempt_keeps_what_was_contributed_and_asks_nobody_to_train_twice(
    tmp_path: Path, undisturbed: bytes
) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    for name in ("ash", "cedar"):
        grid.party(name).faults[2] = fake.late

    def come_back(event: Event) -> None:
        if event.kind == "attempt_failed":
            grid.party("ash").faults.clear()
            grid.party("cedar").faults.clear()

    assert run(grid, protocol, tmp_path, come_back).status == "COMPLETE"
    first, second = (outcomes(tmp_path, round_number=2, attempt=attempt) for attempt in (1, 2))
    assert [first[site][0] for site in fake.SITES] == ["late", "contributed", "late", "contributed"]
    assert [second[site][0] for site in fake.SITES] == ["contributed"] * 4
    assert all(grid.party(name).trained == {(r, 1): 1 for r in range(1, 5)} for name in fake.SITES)
    assert model(tmp_path) == undisturbed


def test_incomplete_study_goes_on_when_sites_are_back(tmp_path: Path, undisturbed: bytes) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    grid.party("ash").faults[3] = grid.party("birch").faults[3] = fake.lost
    assert run(grid, protocol, tmp_path).status == "INCOMPLETE"
    grid.party("ash").faults.clear()
    grid.party("birch").faults.clear()
    assert run(grid, protocol, tmp_path).status == "COMPLETE"
    assert model(tmp_path) == undisturbed
    assert all(grid.party(name).trained == {(r, 1): 1 for r in range(1, 5)} for name in fake.SITES)


def test_a_refused_update_is_asked_for_anew_but_no_more_often_than_the_protocol_says(tmp_path: Path) -> None:
    protocol = fake.make_protocol(federation__quorum=4)
    grid = fake.make_grid(protocol)
    grid.party("ash").faults[1] = fake.changed(fake.with_nan)
    assert run(grid, protocol, tmp_path).status == "INCOMPLETE"
    assert run(grid, protocol, tmp_path).status == "INCOMPLETE"
    assert grid.party("ash").trained == {(1, 1): 1, (1, 2): 1}
    asked = rows(tmp_path, "SELECT attempt, asked FROM participation WHERE site = 'ash' ORDER BY attempt")
    assert asked == [(1, 1), (2, 2), (3, 2), (4, 2)]


def test_only_sampled_sites_are_asked_and_a_failed_one_is_replaced(tmp_path: Path) -> None:
    protocol = fake.make_protocol(federation__sites_per_round=2, federation__quorum=2)
    grid = fake.make_grid(protocol)
    run(grid, protocol, tmp_path / "calm")
    drawn = {site for site, (outcome, _) in outcomes(tmp_path / "calm").items() if outcome == "contributed"}
    assert len(drawn) == 2
    assert {name for name in fake.SITES if any(r == 1 for r, _ in grid.party(name).trained)} == drawn
    broken = fake.make_grid(protocol)
    gone = min(drawn)
    broken.party(gone).faults[1] = fake.lost
    assert run(broken, protocol, tmp_path / "broken").status == "COMPLETE"
    second = outcomes(tmp_path / "broken", attempt=2)
    joined = {site for site, (outcome, _) in second.items() if outcome == "contributed"}
    assert len(joined) == 2 and gone not in joined and drawn - {gone} < joined


def test_stop_ends_after_the_running_round_and_resume_gives_the_same_bits(tmp_path: Path, undisturbed: bytes) -> None:
    protocol = fake.make_protocol()
    grid, stop = fake.make_grid(protocol), threading.Event()

    def press(event: Event) -> None:
        if event.kind == "site_started" and event.round == 2:
            stop.set()

    outcome = run_study(grid=grid, protocol=protocol, run_dir=tmp_path, initial=fake.initial_weights(), observer=press,
                        stop=stop)  # fmt: skip
    assert (outcome.status, outcome.rounds_completed) == ("STOPPED", 2)
    assert run(grid, protocol, tmp_path).status == "COMPLETE"
    assert model(tmp_path) == undisturbed


def test_complete_study_is_left_alone(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    run(grid, protocol, tmp_path)
    asked = len(grid.ttls)
    assert run(grid, protocol, tmp_path).status == "COMPLETE"
    assert len(grid.ttls) == asked


def test_the_rule_chooses_among_trained_rounds_and_test_is_opened_once_for_it(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    run(grid, protocol, tmp_path)
    curve = dict(rows(tmp_path, "SELECT round, value FROM metrics WHERE scope = 'selection' AND name = 'auc_fused'"))
    best = max(curve, key=lambda number: (curve[number], -number))
    opened = [request for request in grid.party("evaluator").measured if request.scope == "test"]
    assert [(r.round, r.image_only) for r in opened] == [(0, True), (best, False)]
    assert opened[1].thresholds == {"fused": 0.4, "image": 0.4, "clinical": 0.4} and opened[1].temperature == 1.25
    sites = [request for name in fake.SITES for request in grid.party(name).measured]
    assert [(r.scope, r.round) for r in sites] == [("site", best)] * 4


def test_rule_last_and_evaluation_every_second_round(tmp_path: Path) -> None:
    protocol = fake.make_protocol(evaluation__selection_rule="last", evaluation__every=3)
    grid = fake.make_grid(protocol)
    run(grid, protocol, tmp_path)
    measured = [r.round for r in grid.party("evaluator").measured if r.scope == "selection"]
    assert measured == [0, 3, 4]
    assert read_safetensors(tmp_path / "model.safetensors", "model")[1]["round"] == 4


def test_collapse_of_the_image_branch_is_an_alarm_once(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    grid.party("evaluator").image_auc = {0: 0.5, 1: 0.8, 2: 0.54, 3: 0.5, 4: 0.52}
    run(grid, protocol, tmp_path)
    alarms = rows(tmp_path, "SELECT round, severity, text FROM events WHERE code = 'collapse'")
    assert [(number, severity) for number, severity, _ in alarms] == [(2, "warning")]
    assert "from 0.800 to 0.540" in alarms[0][2]


def test_no_collapse_alarm_while_it_never_was_above(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    grid.party("evaluator").image_auc = {0: 0.5, 1: 0.52, 2: 0.5, 3: 0.54, 4: 0.6}
    run(grid, protocol, tmp_path)
    assert rows(tmp_path, "SELECT round FROM events WHERE code = 'collapse'") == []


def test_evaluator_that_fails_in_a_round_costs_the_measurement_not_the_round(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    grid.party("evaluator").faults[2] = fake.lost
    assert run(grid, protocol, tmp_path).status == "COMPLETE"
    assert rows(tmp_path, "SELECT round FROM events WHERE code = 'evaluator'") == [(2,)]
    assert rows(tmp_path, "SELECT DISTINCT round FROM metrics WHERE scope = 'selection'") == [(1,), (3,), (4,)]


def test_without_evaluator_a_study_is_incomplete_and_can_go_on_later(tmp_path: Path, undisturbed: bytes) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    node = next(node for node, party in grid.parties.items() if party.role == "evaluator")
    evaluator = grid.parties.pop(node)
    outcome = run(grid, protocol, tmp_path)
    assert outcome.status == "INCOMPLETE" and "no node is the evaluator" in outcome.reason
    assert not any(grid.party(name).trained for name in fake.SITES)
    grid.parties[node] = evaluator
    assert run(grid, protocol, tmp_path).status == "COMPLETE"
    assert model(tmp_path) == undisturbed


def test_sites_metrics_are_not_asked_for_when_the_protocol_says_none(tmp_path: Path) -> None:
    protocol = fake.make_protocol(privacy__metrics="none")
    grid = fake.make_grid(protocol)
    assert run(grid, protocol, tmp_path).status == "COMPLETE"
    assert not any(grid.party(name).measured for name in fake.SITES)


def test_under_privacy_no_loss_is_kept_or_shown_whatever_a_site_says(tmp_path: Path) -> None:
    protocol, events = fake.make_protocol(**fake.PRIVATE), list[Event]()
    assert run(fake.make_grid(protocol), protocol, tmp_path, events.append).status == "COMPLETE"
    assert not any("loss" in event.data for event in events)
    assert rows(tmp_path, "SELECT * FROM metrics WHERE scope = 'training' OR name LIKE '%loss%'") == []
    spent = rows(tmp_path, "SELECT round, epsilon, steps FROM privacy WHERE site = 'ash' AND release = 'training'")
    assert [(number, steps) for number, _, steps in spent] == [(1, 4), (2, 8), (3, 12), (4, 16)]
    replied = [event.data for event in events if event.kind == "site_replied" and event.site == "ash"]
    assert [data["epsilon"] for data in replied] == [epsilon for _, epsilon, _ in spent]


def test_under_privacy_an_update_without_accounting_is_refused(tmp_path: Path) -> None:
    protocol = fake.make_protocol(**fake.PRIVATE)
    grid = fake.make_grid(protocol)
    grid.party("ash").faults[1] = fake.fields(privacy=None)
    run(grid, protocol, tmp_path)
    assert outcomes(tmp_path)["ash"] == ("refused", "privacy: the update came without its accounting")


def test_bytes_are_those_of_the_encoded_tensors(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    run(fake.make_grid(protocol), protocol, tmp_path)
    tensors = len(pack(fake.initial_weights()))
    for up, down in rows(tmp_path, "SELECT bytes_up, bytes_down FROM participation"):
        assert tensors < up < tensors + 600 and tensors < down < tensors + 600


def test_run_directory_of_another_protocol_is_refused(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    run(fake.make_grid(protocol), protocol, tmp_path)
    other = fake.make_protocol(seed=4)
    with pytest.raises(ProtocolError, match="belongs to another protocol"):
        run(fake.make_grid(other), other, tmp_path)


def test_other_initial_weights_than_approved_are_refused(tmp_path: Path) -> None:
    protocol = fake.make_protocol(fake.initial_weights(seed=1))
    grid = fake.make_grid(protocol)
    with pytest.raises(WeightsError, match="not those that the protocol names"):
        run(grid, protocol, tmp_path)
    assert grid.timeouts == []


@pytest.mark.parametrize(("strategy", "numbers"), [("fedavg", 34_000_000), ("scaffold", 17_000_000)])
def test_a_model_that_no_message_can_hold_is_refused_before_anything_is_sent(
    tmp_path: Path, strategy: str, numbers: int
) -> None:
    weights = {"encoder.weight": np.zeros(numbers, dtype=np.float32)}
    protocol = fake.make_protocol(weights, **fake.STRATEGIES[strategy])
    grid = fake.make_grid(protocol)
    with pytest.raises(WeightsError, match=r"too large for one message.*at most 133169152 bytes.*smaller model"):
        run_study(grid=grid, protocol=protocol, run_dir=tmp_path, initial=weights, observer=lambda _: None,
                  stop=threading.Event())  # fmt: skip
    assert grid.timeouts == []


def test_two_coordinators_cannot_work_on_one_run_directory(tmp_path: Path) -> None:
    protocol, seen = fake.make_protocol(), list[str]()

    def second(event: Event) -> None:
        if event.kind == "round_opened" and not seen:
            with pytest.raises(StorageError, match="in use by another coordinator"):
                run(fake.make_grid(protocol), protocol, tmp_path)
            seen.append("refused")

    run(fake.make_grid(protocol), protocol, tmp_path, second)
    assert seen == ["refused"]
