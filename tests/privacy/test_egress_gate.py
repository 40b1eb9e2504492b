"""The egress gate: what may leave, what stays, and that nothing leaves past it or unlisted."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.privacy import egress as egress_module
from client.privacy.egress import CONSTANT, EgressGate, Released, released
from client.privacy.egress_log import LISTED_AN_HOUR, LOG_FILE, EgressLog, read_list
from client.privacy.egress_rules import RULES, Asked, Party
from client.privacy.egress_values import PROTECTIONS, Value
from client.trainer import service as service_module
from client.trainer.config import SiteConfig
from client.trainer.service import TrainerService
from shared_model.audit import file as audit_file
from shared_model.audit import verify
from shared_model.errors import AuditError, EgressError, StorageError, TrainerError
from shared_model.messages import (
    MASKED,
    DescribeReply,
    DescribeRequest,
    ErrorReply,
    EvaluateReply,
    Frame,
    PrivacySpent,
    SecureSumReply,
    SecureSumRequest,
    TrainReply,
    decode,
    encode,
    kinds,
    weights_sha256,
)
from shared_model.phases import PhaseSeconds
from shared_model.protocol import Protocol
from shared_model.update_bound import coordinate_bound, norm_bound

ROOT = Path(__file__).parents[2]
Study = Any
Make = Callable[..., Study]
PARTY = Party(site="site-01", role="site", suppress_below=10)


@pytest.fixture(scope="module")
def private_study(tmp_path_factory: pytest.TempPathFactory, study_maker: Make) -> Study:
    """For tests that change nothing in it."""
    return study_maker(tmp_path_factory.mktemp("study"), private=True)


@pytest.fixture(scope="module")
def joint_study(tmp_path_factory: pytest.TempPathFactory, study_maker: Make) -> Study:
    """Of noised joint counts; for tests that change nothing in it."""
    return study_maker(tmp_path_factory.mktemp("joint"), private=True, sites=3, privacy__metrics="joint",
                       privacy__metrics_bins=4)  # fmt: skip


@pytest.fixture
def gate(tmp_path: Path) -> Any:
    state = tmp_path / "state"
    state.mkdir()
    gate = EgressGate(state, party=PARTY, recipient="consortium", paths=(Path("/data/cohort"),))
    yield gate
    gate.close()


@pytest.fixture
def opened() -> Any:
    services: list[TrainerService] = []

    def open_one(config: SiteConfig) -> TrainerService:
        services.append(TrainerService(config, compute=threading.Lock()))
        return services[-1]

    yield open_one
    for service in services:
        service.close()


def spent(study: Study, **changes: Any) -> PrivacySpent:
    values = {"epsilon": 1.0, "budget": 8.0, "delta": 1e-5, "noise_multiplier": 1.0, "sample_rate": 0.25, "steps": 2}
    return PrivacySpent(**{**values, **changes})


def answer(study: Study, *, arrays: Any = None, **changes: Any) -> Frame:
    """An honest answer to the first round, with `changes`."""
    values = {
        "site": "site-01", "study": "unit", "round": 1, "attempt": 1, "weights_sha256": weights_sha256(study.arrays),
        "outcome": "trained", "seconds": 1.0, "privacy": spent(study) if study.protocol.private else None,
    }  # fmt: skip
    moved = {name: array + np.float32(1e-3) for name, array in study.arrays.items()} if arrays is None else arrays
    return Frame(TrainReply(**{**values, **changes}), moved)


def asked(study: Study, **changes: Any) -> Asked:
    values = {"request": study.train(), "protocol": study.protocol, "weights": study.arrays,
              "trained": frozenset(study.arrays)}  # fmt: skip
    return Asked(**{**values, **changes})


def report(study: Study, document: dict[str, Any] | str, **changes: Any) -> Frame:
    text = document if isinstance(document, str) else json.dumps(document)
    values = {
        "site": "site-01", "study": "unit", "round": 1, "weights_sha256": weights_sha256(study.arrays), "scope": "site",
        "outcome": "evaluated", "seconds": 1.0, "report": text, "privacy": spent(study),
    }  # fmt: skip
    return Frame(EvaluateReply(**{**values, **changes}))


JOINT = {"bins": 4, "noise_std": 4.0, "counts": [0.5] * 32}
METRICS = {"n": 30.5, "positives": 9.25, "auc": 0.75, "auc_low": 0.5, "auc_high": 0.9, "brier": 0.2}

# what may leave


def test_an_honest_private_round_leaves_as_it_is_and_every_value_is_listed(
    private_study: Study, gate: EgressGate, tmp_path: Path
) -> None:
    study = private_study
    frozen = sorted(study.arrays)[:3]
    arrays = {name: array + np.float32(0 if name in frozen else 1e-3) for name, array in study.arrays.items()}
    data = encode(answer(study, arrays=arrays, phases=PhaseSeconds(load=0.25, train=63.0)))
    assert gate.release(data, asked(study, trained=frozenset(study.arrays) - set(frozen))) == data
    ((_, _), (entry, values)) = list(read_list(tmp_path / "state"))
    listed = {value.name: value for value in values}
    assert set(listed) == {"answer", "seconds", "phases", "privacy", *study.arrays}
    assert {listed[name].protection for name in study.arrays if name not in frozen} == {"noised"}
    assert {listed[name].protection for name in (*frozen, "answer", "privacy")} == {"public"}
    assert listed["seconds"].protection == listed["phases"].protection == "unprotected"
    name = sorted(study.arrays)[-1]
    assert (listed[name].shape, listed[name].bytes) == (arrays[name].shape, arrays[name].nbytes)
    assert (entry.fields["recipient"], entry.fields["study"], entry.fields["round"]) == ("consortium", "unit", 1)


POISON: dict[str, tuple[dict[str, Any], str]] = {
    "a loss": ({"loss": 0.7}, "no loss"),
    "no account": ({"privacy": None}, "no account"),
    "another site": ({"site": "site-02"}, "another request"),
    "another round": ({"round": 2}, "another request"),
    "another attempt": ({"attempt": 2}, "another request"),
    "other weights": ({"weights_sha256": "0" * 64}, "another request"),
    "seconds to the millisecond": ({"seconds": 61.234}, "finer than they may be told"),
    "a phase to the millisecond": ({"phases": PhaseSeconds(train=61.234)}, "finer than they may be told"),
    "a path": ({"reason": "see /data/cohort/x"}, "path or a pseudonym"),
    "a pseudonym": ({"reason": "0123456789abcdef"}, "path or a pseudonym"),
    "tensors of nobody": ({"outcome": "abstained"}, "with tensors"),
}  # fmt: skip


@pytest.mark.parametrize("poison", POISON)
def test_a_private_answer_with_anything_else_in_it_stays(private_study: Study, gate: EgressGate, poison: str) -> None:
    study = private_study
    changes, words = POISON[poison]
    with pytest.raises(EgressError, match=words):
        gate.release(encode(answer(study, **changes)), asked(study))


def _changed(change: Callable[[dict[str, Any], str], object]) -> Callable[[Any], dict[str, Any]]:
    def make(arrays: Any) -> dict[str, Any]:
        copy = {name: array.copy() for name, array in arrays.items()}
        change(copy, max(copy, key=lambda name: copy[name].size))
        return copy

    return make


UPDATES: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "NaN": (_changed(lambda a, n: a[n].fill(np.nan)), "not finite"),
    "infinity": (_changed(lambda a, n: a[n].ravel().__setitem__(0, np.inf)), "not finite"),
    "one more": (_changed(lambda a, n: a.__setitem__("notes", np.zeros(3, np.float32))), "unknown"),
    "one less": (_changed(lambda a, n: a.pop(n)), "missing"),
    "another shape": (_changed(lambda a, n: a.__setitem__(n, a[n].ravel()[:1])), "wrong shape"),
    "much too far": (_changed(lambda a, n: a.__setitem__(n, a[n] + np.float32(1000.0))), "larger than"),
}  # fmt: skip


@pytest.mark.parametrize("update", UPDATES)
def test_an_update_that_no_honest_round_makes_stays(private_study: Study, gate: EgressGate, update: str) -> None:
    study = private_study
    make, words = UPDATES[update]
    with pytest.raises(EgressError, match=words):
        gate.release(encode(answer(study, arrays=make(study.arrays))), asked(study))


def test_one_number_may_not_change_by_what_all_together_may(private_study: Study, gate: EgressGate) -> None:
    protocol, arrays = private_study.protocol, private_study.arrays
    limits = [bound(protocol, 1, arrays, site="site-01") for bound in (coordinate_bound, norm_bound)]
    assert 5 * limits[0] < limits[1]
    name = sorted(arrays)[0]
    for change, passes in ((0.9 * limits[0], True), (1.1 * limits[0], False)):
        moved = {n: a.copy() for n, a in arrays.items()}
        moved[name].flat[0] += change
        data = encode(answer(private_study, arrays=moved))
        if passes:
            assert gate.release(data, asked(private_study))
        else:
            with pytest.raises(EgressError, match="one number changed"):
                gate.release(data, asked(private_study))


def test_a_tensor_that_the_phase_does_not_train_may_not_change(private_study: Study, gate: EgressGate) -> None:
    study = private_study
    name = sorted(study.arrays)[0]
    with pytest.raises(EgressError, match="does not train") as caught:
        gate.release(encode(answer(study)), asked(study, trained=frozenset(study.arrays) - {name}))
    assert caught.value.found == name


@pytest.mark.parametrize("scope", ["all", "features", "adapters"])
@pytest.mark.parametrize("multiplier", [0.5, 30.0])
def test_honest_noise_is_never_too_much(small_study: Make, opened: Any, scope: str, multiplier: float) -> None:
    phase = {"name": "all", "rounds": 6, "objective": "fusion", "learning_rate": 1.0, "encoder_rate": 1.0,
             "scope": scope}  # fmt: skip
    study = small_study(private=True, privacy__noise_multiplier=multiplier, privacy__epsilon=1000.0,
                        training__phases=[phase])  # fmt: skip
    service = opened(study.config("site-01"))
    for number in (1, 2):
        frame = decode(service.exchange(encode(Frame(study.train(number), study.arrays)), wanted=lambda: True))
        assert isinstance(frame.message, TrainReply), frame.message


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({**METRICS, "women": [1, 2]}, "women: extra_forbidden"), ({**METRICS, "auc": 1.5}, "auc: less_than_equal"),
        ({k: v for k, v in METRICS.items() if k != "n"}, "n: missing"), ({**METRICS, "auc": "0.5"}, "auc: float_type"),
        ('{"n": 1.0, "n": 2.0}', "not written as it reads"), ("[", "no JSON"),
        (json.dumps({**METRICS, "n": float("nan")}), "holds what may not leave|no JSON"),
    ],
)  # fmt: skip
def test_a_private_report_with_anything_else_in_it_stays(
    private_study: Study, gate: EgressGate, document: Any, words: str
) -> None:
    study = private_study
    request = asked(study, request=study.evaluate("site"))
    with pytest.raises(EgressError, match=words):
        gate.release(encode(report(study, document)), request)
    assert gate.release(encode(report(study, METRICS)), request)


@pytest.mark.parametrize(("change", "words"), [
    ({"women": 3}, "women: extra_forbidden"), ({"bins": 8}, "another size"), ({"counts": [0.5] * 31}, "another size"),
    ({"noise_std": 3.9}, "less noise"), ({"counts": [1.0] * 32}, "no noise"),
    ({"counts": [float("inf")] * 32}, "hold|JSON"),
])  # fmt: skip
def test_joint_counts_of_another_size_or_with_less_noise_than_was_charged_stay(
    joint_study: Study, gate: EgressGate, change: Any, words: str
) -> None:
    request = asked(joint_study, request=joint_study.evaluate("site"))
    with pytest.raises(EgressError, match=words):
        gate.release(encode(report(joint_study, JOINT | change)), request)
    with pytest.raises(EgressError, match="account"):
        gate.release(encode(report(joint_study, JOINT, privacy=None)), request)
    assert gate.release(encode(report(joint_study, JOINT)), request)


def test_scores_of_the_initial_weights_and_counts_for_a_secure_sum_stay(joint_study: Study, gate: EgressGate) -> None:
    first = joint_study.evaluate("site", round_number=0, image_only=True)
    for document in (JOINT, METRICS):
        with pytest.raises(EgressError, match="none may leave"):
            gate.release(encode(report(joint_study, document, round=0)), asked(joint_study, request=first))
    values = joint_study.protocol.model_dump(mode="json")
    values["federation"] |= {"secure_sum": "masked", "quorum": 3}
    summed = asked(joint_study, request=joint_study.evaluate("site"), protocol=Protocol.create(values))
    with pytest.raises(EgressError, match="none may leave"):
        gate.release(encode(report(joint_study, JOINT)), summed)


def test_counts_of_few_women_stay(small_study: Make, gate: EgressGate, opened: Any) -> None:
    study = small_study(patients=150)
    service = opened(study.config("site-01"))
    request = study.evaluate("site", thresholds={"fused": 0.0, "image": 0.0, "clinical": 0.0})
    frame = decode(service.exchange(encode(Frame(request, study.arrays)), wanted=lambda: True))
    document = json.loads(frame.message.report)
    document["subgroups"].append({"name": "vendor", "level": "V9", "n": 9, "positives": 4, "auc": None,
                                  "auc_low": None, "auc_high": None})  # fmt: skip
    with pytest.raises(EgressError, match="few women"):
        gate.release(encode(report(study, document, privacy=None)), asked(study, request=request))
    few = {**document, "n": 20, "positives": 9, "subgroups": []}
    with pytest.raises(EgressError, match="few women"):
        gate.release(encode(report(study, few, privacy=None)), asked(study, request=request))


def test_a_kind_that_answers_no_such_request_stays(private_study: Study, gate: EgressGate) -> None:
    study = private_study
    described = Frame(DescribeReply(site="site-01", role="site", release="0", protocols=(), device="cpu"))
    with pytest.raises(EgressError, match="no such request"):
        gate.release(encode(described), asked(study))
    with pytest.raises(EgressError, match="no such request"):
        gate.release(encode(Frame(study.train(), study.arrays)), asked(study))
    with pytest.raises(EgressError, match="by the gate itself"):
        gate.release(encode(Frame(ErrorReply(code=1, reason="x"))), Asked(request=DescribeRequest()))
    with pytest.raises(EgressError, match="no longer, approved"):
        gate.release(encode(answer(study)), asked(study, protocol=None))


def test_every_kind_of_request_has_a_rule() -> None:
    requests = {name for name in vars(kinds) if name.endswith("Request")} - {"Request"}
    assert {kind.__name__ for kind in RULES} == requests


def test_hidden_bytes_stay(private_study: Study, gate: EgressGate) -> None:
    study = private_study
    data = encode(answer(study))
    length = int.from_bytes(data[:8], "little")
    padded = (length + 8).to_bytes(8, "little") + data[8 : 8 + length] + b" " * 8 + data[8 + length :]
    assert decode(padded).message == decode(data).message
    with pytest.raises(EgressError, match="not written as it reads"):
        gate.release(padded, asked(study))


def summed_answer(study: Study, step: str, **changes: Any) -> tuple[Frame, Asked]:
    same = {"study": "unit", "what": "update", "round": 1, "attempt": 1, "step": step}
    request = SecureSumRequest.carrying(b"{}", protocol_sha256=study.protocol.sha256, asked=1, **same)
    arrays = {MASKED: np.arange(5, dtype=np.uint32)} if step == "mask" else {}
    values = {"site": "site-01", "document": "{}", **same} | {k: v for k, v in changes.items() if k != "arrays"}
    return Frame(SecureSumReply(**values), changes.get("arrays", arrays)), asked(study, request=request)


@pytest.fixture(scope="module")
def summed_study(tmp_path_factory: pytest.TempPathFactory, study_maker: Make) -> Study:
    return study_maker(tmp_path_factory.mktemp("summed"), private=True, sites=3, federation__secure_sum="masked",
                       federation__quorum=3)  # fmt: skip


@pytest.mark.parametrize("step", ["keys", "share", "mask", "confirm", "unmask"])
def test_a_step_of_a_secure_sum_leaves_and_is_listed_as_masked(
    summed_study: Study, gate: EgressGate, tmp_path: Path, step: str
) -> None:
    frame, question = summed_answer(summed_study, step)
    assert gate.release(encode(frame), question)
    *_, (_, values) = read_list(tmp_path / "state")
    assert {value.protection for value in values if value.name != "seconds"} == {"masked"}
    assert [value.name for value in values] == [f"step.{step}", "seconds", *([MASKED] if step == "mask" else [])]


@pytest.mark.parametrize(
    ("step", "changes", "words"),
    [
        ("mask", {"arrays": {}}, "other tensors"), ("keys", {"arrays": {MASKED: np.zeros(2, np.uint32)}}, "other tens"),
        ("mask", {"arrays": {"weights": np.zeros(2, np.float32)}}, "other tensors"),
        ("mask", {"arrays": {MASKED: np.zeros((2, 2), np.uint32)}}, "another form"),
        ("mask", {"seconds": 0.1234}, "finer than they may be told"),
        ("keys", {"what": "scores"}, "another request"), ("keys", {"attempt": 2}, "another request"),
    ],
)  # fmt: skip
def test_a_step_with_anything_else_in_it_stays(
    summed_study: Study, gate: EgressGate, step: str, changes: dict[str, Any], words: str
) -> None:
    frame, question = summed_answer(summed_study, step, **changes)
    with pytest.raises(EgressError, match=words):
        gate.release(encode(frame), question)


def test_with_a_secure_sum_no_update_and_no_loss_leaves_in_clear(
    summed_study: Study, private_study: Study, gate: EgressGate
) -> None:
    with pytest.raises(EgressError, match="with tensors"):
        gate.release(encode(answer(summed_study)), asked(summed_study))
    assert gate.release(encode(answer(summed_study, arrays={})), asked(summed_study))
    with pytest.raises(EgressError, match="no loss"):
        gate.release(encode(answer(summed_study, arrays={}, loss=0.1)), asked(summed_study))
    frame, question = summed_answer(private_study, "keys")  # whose protocol lets nothing be summed
    with pytest.raises(EgressError, match="no such quantity"):
        gate.release(encode(frame), question)


# nothing past it


def test_bytes_are_released_by_the_gate_alone() -> None:
    with pytest.raises(EgressError):
        Released(b"patients", seal=object())
    with pytest.raises(EgressError):
        released(b"patients")
    assert not hasattr(Released, "__reduce_seal__")


def _trees(*folders: str) -> dict[str, ast.Module]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)
            and (getattr(node.func, "id", None) == name or getattr(node.func, "attr", None) == name)]  # fmt: skip


def test_only_the_gate_makes_what_the_socket_takes() -> None:
    """The code of the trainer's side, read: `Released` is made in one module, the seal is named in one, and the one
    handler yields nothing but what `released` let pass, or ends with a constant."""
    trees = _trees("client", "shared_model", "server", "simulations")
    assert [name for name, tree in trees.items() if _calls(tree, "Released")] == ["client/privacy/egress.py"]
    assert [name for name, tree in trees.items() if "_SEAL" in ast.dump(tree)] == ["client/privacy/egress.py"]
    made = [node for node in ast.walk(trees["client/privacy/egress.py"]) if isinstance(node, ast.Name)
            and node.id == "_SEAL" and isinstance(node.ctx, ast.Load)]  # fmt: skip
    assert len(made) == 3  # the comparison, `release` and `refusal`
    handler = next(node for node in ast.walk(trees["client/trainer/server.py"])
                   if isinstance(node, ast.ClassDef) and node.name == "_Handler")  # fmt: skip
    yields = [node for node in ast.walk(handler) if isinstance(node, ast.Yield | ast.YieldFrom)]
    assert [ast.unparse(node) for node in yields] == ["(yield from chunks(reply))"]
    assigned = [ast.unparse(node.value) for node in ast.walk(handler) if isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == "reply"]  # fmt: skip
    assert assigned == ["released(service.exchange(join(requests), wanted=context.is_active))"]
    assert [ast.unparse(call) for call in _calls(handler, "abort")] == ["context.abort(STATUS[fault], fault)"]


def test_nothing_else_on_the_trainer_s_side_knows_a_network() -> None:
    network = {"socket", "grpc", "http", "urllib", "requests", "asyncio", "ssl", "smtplib", "flwr", "subprocess"}
    found = {}
    for name, tree in _trees("client/trainer", "client/training", "client/privacy").items():
        tops = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
                for alias in node.names}  # fmt: skip
        tops |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if tops & network:
            found[name] = tops & network
    # `client` is the courier's end, `server` the one handler.
    assert found == {"client/trainer/client.py": {"grpc", "socket"}, "client/trainer/server.py": {"grpc"}}


def test_what_the_gate_refuses_goes_as_words_and_costs_nothing_a_second_time(
    small_study: Make, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(private=True)
    config = study.config("site-01")
    service = opened(config)
    monkeypatch.setattr(service._site, "trained", lambda protocol, number: frozenset())
    for _ in range(2):
        reply = service.exchange(encode(Frame(study.train(), study.arrays)), wanted=lambda: True)
        frame = decode(reply)
        assert isinstance(reply, Released) and isinstance(frame.message, ErrorReply) and not frame.arrays
        assert frame.message.code == EgressError.exit_code
    assert len(service.site.ledger.records()) == 1


@pytest.mark.parametrize("request_", ["describe", "train", "garbage"])
def test_every_outcome_of_a_service_is_released(
    small_study: Make, opened: Any, request_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(private=True)
    service = opened(study.config("site-01"))
    data = {"describe": encode(Frame(DescribeRequest())), "train": encode(Frame(study.train(), study.arrays)),
            "garbage": b"\0" * 40}[request_]  # fmt: skip
    assert type(service.exchange(data, wanted=lambda: True)) is Released
    monkeypatch.setattr(service_module, "parse_fields", lambda _: 1 / 0)
    failed = service.exchange(data, wanted=lambda: True)
    assert type(failed) is Released and "ZeroDivisionError" in decode(failed).message.reason  # type: ignore[union-attr]


# the list


def test_words_of_an_error_are_scrubbed(gate: EgressGate) -> None:
    reply = decode(gate.refusal(TrainerError("no /data/cohort/7, woman 0123456789abcdef, ../x/y"))).message
    assert reply == ErrorReply(code=50, reason="no <path>, woman <patient>, <path>")


def test_a_repeated_reply_is_listed_as_a_repetition(private_study: Study, gate: EgressGate, tmp_path: Path) -> None:
    study = private_study
    data = encode(answer(study))
    for _ in range(3):
        gate.release(data, asked(study))
    gate.close()
    gate.release(data, asked(study))  # and also after a restart
    kinds = [entry.kind for entry, _ in read_list(tmp_path / "state")]
    assert kinds == ["log_opened", "released", "repeated", "repeated", "repeated"]


def test_who_asks_all_day_cannot_fill_the_disk_and_is_counted(tmp_path: Path) -> None:
    now = [0.0]
    listed = EgressLog(tmp_path, owner="site-01", clock=lambda: now[0])
    value = Value.of_field("reason", "x", purpose="why", protection="scrubbed")
    for number in range(1000):
        listed.often([value], kind="error", sha256=f"{number:064x}", size=10, reply="error", recipient="c")
    entries = [entry for entry, _ in read_list(tmp_path)]
    assert len(entries) == 1 + LISTED_AN_HOUR
    now[0] = 3600.0
    listed.often([value], kind="error", sha256="f" * 64, size=10, reply="error", recipient="c")
    last = [entry for entry, _ in read_list(tmp_path)][-1]
    assert last.fields["unlisted_error"] == 1000 - LISTED_AN_HOUR
    listed.close()


def test_what_cannot_be_listed_does_not_leave(
    private_study: Study, gate: EgressGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = private_study

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit_file, "_write", full)
    with pytest.raises(StorageError, match="No space left"):
        gate.release(encode(answer(study)), asked(study))
    reply = decode(gate.refusal(TrainerError("woman 17"))).message
    assert reply == ErrorReply(code=StorageError.exit_code, reason=CONSTANT)
    monkeypatch.undo()
    assert gate.release(encode(answer(study)), asked(study))


def test_a_long_list_goes_on_in_a_new_file_and_a_changed_one_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.privacy import egress_log

    monkeypatch.setattr(egress_log, "MOST_BYTES", 2000)
    listed = EgressLog(tmp_path, owner="site-01")
    value = Value.of_field("answer", 1, purpose="why", protection="public")
    for number in range(9):
        listed.once([value], sha256=f"{number:064x}", size=10, reply="trained", recipient="c", study="s", round=number)
    listed.close()
    files = egress_log.files_of(tmp_path)
    assert len(files) > 2 and [verify(path).owner for path in files] == ["site-01"] * len(files)
    rounds = [entry.fields["round"] for entry, _ in read_list(tmp_path) if entry.kind == "released"]
    assert rounds == list(range(9))
    files[1].unlink()
    with pytest.raises(AuditError, match="does not go on"):
        list(read_list(tmp_path))


def test_a_list_that_is_gone_or_changed_stops_the_trainer(small_study: Make) -> None:
    study = small_study(private=True)
    config = study.config("site-01")
    TrainerService(config, compute=threading.Lock()).close()
    path = config.state / LOG_FILE
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(StorageError, match="is gone"):
        TrainerService(config, compute=threading.Lock())
    path.write_bytes(data.replace(b"site-01", b"site-02"))
    with pytest.raises(AuditError):
        TrainerService(config, compute=threading.Lock())
    path.write_bytes(data)
    TrainerService(config, compute=threading.Lock()).close()


def test_thresholding_is_never_called_privacy() -> None:
    assert "disclosure control" in PROTECTIONS["thresholded"] and "no epsilon" in PROTECTIONS["thresholded"]
    assert [name for name, words in PROTECTIONS.items() if "differential privacy for" in words] == ["noised"]
    assert egress_module.__doc__ and "differential" not in egress_module.__doc__
