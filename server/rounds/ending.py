"""What is measured around the rounds: the initial weights before them; after them the chosen model, `test`, the sites.

Each step finds out from the journal what is done already, so that a study that was interrupted here goes on where it
was. Called by the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.rounds.checkpoint import read_checkpoint, write_safetensors
from server.rounds.joint import joint_metrics
from server.rounds.measure import (
    MODELS,
    Measurement,
    Scope,
    auc_of,
    check,
    evaluator_measures,
    record,
    request,
)
from server.rounds.sampling import choose_round
from server.rounds.states import StudyStep
from server.rounds.study import Study
from server.rounds.withheld import LEAST_WOMEN, flat
from shared_model.errors import RoundError
from shared_model.messages import Arrays, weights_sha256


def measure_initial(study: Study) -> None:
    """Measure the initial weights on `selection` before the first round: the first point of the curve, and the
    thresholds for the row "public weights only".

    Raises:
        RoundError: the evaluator does not answer.
    """
    measured = _missing(study, "initial", round_number=0, weights=study.initial)
    if measured is not None:
        with study.journal.entry():
            record(study, "initial", measured)
            note_auc(study, measured, text="initial weights")


def choose_model(study: Study) -> None:
    """Apply the protocol's rule, write `model.safetensors`, and journal the choice.

    Raises:
        RoundError: no round has an AUC on `selection`, or the evaluator does not give the chosen one's thresholds.
    """
    name = f"auc_{study.protocol.evaluation.score}"
    rows = study.journal.rows("SELECT round, value FROM metrics WHERE scope = 'selection' AND name = ?", name)
    number = choose_round(study.protocol, dict(rows))
    if number is None:
        raise RoundError("no model can be chosen", found="no round has an AUC on `selection`",
                         remedy="resume with an evaluator that answers")  # fmt: skip
    weights = read_checkpoint(study.run_dir, number, protocol_sha256=study.protocol.sha256).weights
    measured = _missing(study, "selection", round_number=number, weights=weights)
    if measured is not None:  # the rule `last`, and the evaluator was away when the last round was closed
        with study.journal.entry():
            record(study, "selection", measured)
            note_auc(study, measured)
    rule, sha256 = study.protocol.evaluation.selection_rule, weights_sha256(weights)
    document = {
        "study": study.protocol.study, "protocol_sha256": study.protocol.sha256, "release": study.protocol.release,
        "round": number, "rule": rule, "sha256": sha256,
    }  # fmt: skip
    write_safetensors(study.run_dir / "model.safetensors", weights, "model", document)
    with study.journal.study_step(StudyStep.CHOOSE):
        study.journal.put("chosen", {"round": number, "rule": rule, "sha256": sha256})
        study.note("model_chosen", f"by the rule {rule}", round_number=number, data={"sha256": sha256})


def open_test(study: Study) -> None:
    """Measure the initial and the chosen model on `test`; what is journalled already is not measured again.

    Raises:
        RoundError: the evaluator does not answer.
    """
    number, weights = _chosen(study)
    if study.journal.get("test_opened") is None:
        with study.journal.entry():
            study.journal.put("test_opened", {"round": number, "sha256": weights_sha256(weights)})
    pairs: tuple[tuple[Scope, Scope, int, Arrays], ...] = (
        # The initial weights first: the evaluator keeps their scores, to compare the chosen model on the same women.
        ("test_initial", "initial", 0, study.initial), ("test", "selection", number, weights),
    )  # fmt: skip
    for scope, calibrated_on, of_round, arrays in pairs:
        calibration = study.journal.document(of_round, calibrated_on)
        measured = _missing(study, scope, round_number=of_round, weights=arrays, calibration=calibration)
        if measured is not None:
            with study.journal.entry():
                record(study, scope, measured)
    values = flat(study.journal.document(number, "test") or {})
    data = {f"auc_{model}": values[f"auc_{model}"] for model in MODELS if f"auc_{model}" in values}
    with study.journal.study_step(StudyStep.TEST):
        study.note("tested", "held-out `test` was opened", round_number=number, data=data)


def ask_sites(study: Study) -> None:
    """Ask each present site, once, for the final metrics on its own women, where the protocol wants them.

    A site that does not answer is journalled and misses in the summary; the study's result does not depend on it.
    """
    if study.protocol.privacy.metrics == "none":
        return
    number, weights = _chosen(study)
    if study.protocol.privacy.metrics == "joint":
        joint_metrics(study, number, weights)
        return
    done = {row[0] for row in study.journal.rows("SELECT site FROM reports WHERE scope = 'site'")}
    nodes = {site: node for site, node in sorted(study.roster.sites.items()) if site not in done}
    calibration = study.journal.document(number, "selection")
    frame = request(study, "site", round_number=number, weights=weights, calibration=calibration)
    deadline_s = study.protocol.federation.deadline_s
    answers = study.exchange.ask(dict.fromkeys(nodes.values(), frame), timeout_s=deadline_s)
    with study.journal.entry():
        for site, node in nodes.items():
            found = check(study, answers[node], frame.message, site=site)
            if isinstance(found, str):
                study.note("site_evaluated", found, severity="warning", code="no_site_metrics", round_number=number,
                           site=site)  # fmt: skip
                continue
            kept = record(study, "site", found)
            text = "" if kept else f"fewer than {LEAST_WOMEN} women of a kind: the journal does not keep what it says"
            study.note("site_evaluated", text, code="" if kept else "no_site_metrics", round_number=number, site=site,
                       severity="info" if kept else "warning", data=_cost(found))  # fmt: skip


def note_auc(study: Study, measured: Measurement, *, text: str = "", attempt: int = 0) -> None:
    """Add the event that tells an evaluation on `selection`."""
    data = {f"auc_{model}": value for model, value in auc_of(measured.document).items()}
    reply = measured.reply
    study.note("evaluated", text, round_number=reply.round, attempt=attempt, site=reply.site, data=data)


def _cost(measured: Measurement) -> dict[str, float | str]:
    spent = measured.reply.privacy
    cost: dict[str, float | str] = {
        "seconds": measured.reply.seconds, "bytes_up": measured.bytes_up, "bytes_down": measured.bytes_down,
    }  # fmt: skip
    return cost if spent is None else {**cost, "metrics_epsilon": spent.epsilon}


def _missing(
    study: Study, scope: Scope, *, round_number: int, weights: Arrays, calibration: Mapping[str, Any] | None = None
) -> Measurement | None:
    """The measurement, when the journal does not have it yet."""
    if study.journal.document(round_number, scope) is not None:
        return None
    return evaluator_measures(study, scope, round_number=round_number, weights=weights, calibration=calibration)


def _chosen(study: Study) -> tuple[int, Arrays]:
    number = int(study.journal.get("chosen")["round"])
    return number, read_checkpoint(study.run_dir, number, protocol_sha256=study.protocol.sha256).weights
