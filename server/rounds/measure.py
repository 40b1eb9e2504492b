"""Asks the evaluator and the sites to measure a model, and journals what they say. Called by the loop and at the end.

A measurement that is in the journal is never asked for again: `test` is opened once, whatever happens afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from server.aggregation.flower import Answer
from server.rounds.roll_call import call_roll
from server.rounds.study import Study, plain
from server.rounds.waiting import wait_for_evaluator
from server.rounds.withheld import is_number
from shared_model.errors import RoundError
from shared_model.messages import Arrays, ErrorReply, EvaluateReply, EvaluateRequest, Frame, weights_sha256

MODELS = ("fused", "image", "clinical")
Scope = Literal["initial", "selection", "test", "test_initial", "site", "site_initial"]
SPLIT: Mapping[Scope, Literal["selection", "test", "site"]] = {
    "initial": "selection", "selection": "selection", "test": "test", "test_initial": "test", "site": "site",
    "site_initial": "site",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A checked reply: the evaluation document and what it took. document: see shared_model.evaluation."""

    reply: EvaluateReply
    document: dict[str, Any]
    bytes_up: int
    bytes_down: int


def request(
    study: Study, scope: Scope, *, round_number: int, weights: Arrays, calibration: Mapping[str, Any] | None
) -> Frame:
    """The request for one measurement. calibration: the `selection` document with thresholds and temperature."""
    source = calibration or {}
    message = EvaluateRequest(
        study=study.study_id, protocol_sha256=study.protocol.sha256, round=round_number,
        weights_sha256=weights_sha256(weights),
        scope=SPLIT[scope], image_only=scope in ("initial", "test_initial", "site_initial"),
        thresholds={str(k): float(v) for k, v in dict(source.get("thresholds") or {}).items()},
        temperature=float(source.get("temperature") or 1.0),
    )  # fmt: skip
    return Frame(message, weights)


def evaluator_measures(
    study: Study, scope: Scope, *, round_number: int, weights: Arrays, calibration: Mapping[str, Any] | None = None
) -> Measurement:
    """Have the evaluator measure `weights`; tried as often as a round may be.

    Raises:
        RoundError: the evaluator is absent or failed each time, with the last reason.
        StopRequested: somebody asked for it while the evaluator was waited for.
    """
    fault, late = "", False
    frame = request(study, scope, round_number=round_number, weights=weights, calibration=calibration)
    for attempt in range(study.protocol.federation.attempts):
        if attempt:
            wait_for_evaluator(study, failed=not late, round_number=round_number)
        else:
            call_roll(study)
        node = study.roster.evaluator_node
        if node is None:
            fault, late = "no node is the evaluator", False
            continue
        answer = study.exchange.ask({node: frame}, timeout_s=study.protocol.federation.deadline_s)[node]
        found = check(study, answer, frame.message, site=study.roster.evaluator)
        if isinstance(found, Measurement):
            return found
        fault, late = found, answer.failure == "late"
    raise RoundError(f"the evaluator did not measure `{SPLIT[scope]}` of round {round_number}", found=fault,
                     remedy="bring the evaluator back and resume the study")  # fmt: skip


def check(study: Study, answer: Answer, asked: object, *, site: str) -> Measurement | str:
    """A measurement, or in words why the answer is none."""
    assert isinstance(asked, EvaluateRequest)
    reply = answer.frame.message if answer.frame else None
    if answer.frame is None:
        return f"{answer.failure}: {plain(answer.detail)}"
    if isinstance(reply, ErrorReply):
        return f"code {reply.code}: {plain(reply.reason)}"
    if not isinstance(reply, EvaluateReply):
        return "the reply is no evaluation"
    found = (reply.site, reply.study, reply.round, reply.weights_sha256, reply.scope)
    if found != (site, asked.study, asked.round, asked.weights_sha256, asked.scope):
        return "the reply is for another site, study, round, weights or scope"
    if reply.outcome == "abstained":
        return f"abstained: {plain(reply.reason)}"
    try:
        document = json.loads(reply.report)
    except (ValueError, RecursionError):
        return "the report is not JSON"
    if not isinstance(document, dict):
        return "the report is not a JSON object"
    return Measurement(reply=reply, document=document, bytes_up=answer.bytes_up, bytes_down=answer.bytes_down)


def record(study: Study, scope: Scope, measured: Measurement) -> bool:
    """Journal a measurement, inside an open step. Returns whether anything of it could be kept."""
    reply = measured.reply
    kept = study.journal.report(
        reply.round, scope, reply.site, weights=reply.weights_sha256, document=measured.document, seconds=reply.seconds,
        bytes_up=measured.bytes_up, bytes_down=measured.bytes_down, noised=reply.privacy is not None,
    )  # fmt: skip
    if reply.privacy is not None:
        study.journal.privacy(reply.round, reply.site, "metrics", reply.privacy)
    return kept


def auc_of(document: Mapping[str, Any] | None) -> dict[str, float]:
    """AUC by model (`fused`, `image`, `clinical`) as far as a `selection` document has them."""
    values = (document or {}).get("auc")
    row = values if isinstance(values, Mapping) else {}
    return {model: float(row[model]) for model in MODELS if is_number(row.get(model))}
