"""What may leave a site in answer to what, value by value; pure, asked by :class:`client.privacy.egress.EgressGate`.

A table of kinds: a reply that is not in it stays. Each rule compares the reply with the request and with the protocol
that the site approved, and names every value with its protection. It changes nothing: what is not exactly what may
leave is refused, in words that do not repeat it.

What the rules do not do: tell an honest update from one of the same size in which a compromised trainer hid something.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from client.privacy.disclosure import disclosed
from client.privacy.egress_reports import check_report
from client.privacy.egress_values import Protection, Value, tensor_values
from client.privacy.scrub import without_identity
from shared_model.clamp import raised
from shared_model.errors import EgressError, MessageError
from shared_model.messages import (
    MASKED,
    Arrays,
    AuditReply,
    AuditRequest,
    DescribeReply,
    DescribeRequest,
    ErrorReply,
    EvaluateReply,
    EvaluateRequest,
    Fields,
    Frame,
    Request,
    SecureSumReply,
    SecureSumRequest,
    TrainReply,
    TrainRequest,
    check_shapes,
    split_correction,
)
from shared_model.phases import told
from shared_model.protocol import Protocol
from shared_model.secagg.terms import quantities
from shared_model.update_bound import coordinate_bound, norm_bound, norm_of_difference


@dataclass(frozen=True, kw_only=True)
class Party:
    """Whose gate it is. suppress_below: least number of women that a count may have."""

    site: str
    role: Literal["site", "evaluator"]
    suppress_below: int


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a reply answers.

    protocol: the approved one that the request names; None for requests about no study. weights: the tensors that came
    along. trained: names of those that the round's phase trains; the others must come back as they came.
    """

    request: Request
    protocol: Protocol | None = None
    weights: Arrays = field(default_factory=dict)
    trained: Collection[str] = ()


def values_of(frame: Frame, asked: Asked, party: Party) -> list[Value]:
    """The values in a reply.

    Raises:
        EgressError: of a kind, a form or a size that may not leave.
    """
    message = frame.message
    if frame.envelope is not None:
        raise EgressError("a reply with an envelope: replies have none", found=message.kind)
    if isinstance(message, ErrorReply):
        raise EgressError("an error goes as words, by the gate itself")
    rule = RULES.get(type(asked.request))
    if rule is None or not isinstance(message, rule.reply):
        raise EgressError("a reply of a kind that answers no such request", found=message.kind,
                          expected="what the request asks for")  # fmt: skip
    return rule.check(frame, asked, party)


def _described(frame: Frame, asked: Asked, party: Party) -> list[Value]:
    message = frame.message
    assert isinstance(message, DescribeReply)
    _no_tensors(frame)
    _same(message, {"site": party.site, "role": party.role})
    return [Value.of_field("description", message.model_dump(mode="json"), protection="public",
                           purpose="who this is: name, role, release, device, approved protocols")]  # fmt: skip


def _audited(frame: Frame, asked: Asked, party: Party) -> list[Value]:
    message = frame.message
    assert isinstance(message, AuditReply)
    _no_tensors(frame)
    _same(message, {"owner": party.site})
    return [Value.of_field("statement", message.model_dump(mode="json"), protection="public",
                           purpose="how far the audit log reaches: salted hashes and a signature")]  # fmt: skip


def _trained(frame: Frame, asked: Asked, party: Party) -> list[Value]:
    message, request, protocol = frame.message, asked.request, _protocol(asked)
    assert isinstance(message, TrainReply) and isinstance(request, TrainRequest)
    _same(message, {
        "site": party.site, "study": request.study, "round": request.round, "attempt": request.attempt,
        "weights_sha256": request.weights_sha256, "correction_sha256": request.correction_sha256,
    })  # fmt: skip
    if protocol.summed and message.loss is not None:
        raise EgressError("an answer of a study with a secure sum has no loss: nothing of a single site's leaves")
    if protocol.private and (message.loss is not None or message.privacy is None):
        raise EgressError("a private round's answer has an account of its privacy and no loss", found=(
            "a loss" if message.loss is not None else "no account"))  # fmt: skip
    coarse = protocol.coarse_times
    rows = _answer(message.reason, message.seconds, message.privacy, message, coarse=coarse)
    if message.phases is not None:
        phases = message.phases.model_dump()
        for seconds in phases.values():
            _told(seconds, coarse=coarse)
        rows.append(Value.of_field("phases", phases, purpose="where the time went: wait, load, train, mask",
                                   protection="unprotected"))  # fmt: skip
    if message.loss is not None:
        rows.append(Value.of_field("loss", message.loss, purpose="mean training loss", protection="unprotected"))
    if message.outcome == "abstained" or protocol.summed:  # then the update stays until it is masked
        _no_tensors(frame)
        return rows
    weights, correction = split_correction(asked.weights)
    frozen = check_update(
        protocol, request.round, site=party.site, update=frame.arrays, base=weights, correction=correction,
        trained=asked.trained,
        told=message.privacy.noise_multiplier if message.privacy is not None else None,
    )  # fmt: skip
    learnt: Protection = "noised" if protocol.private else "unprotected"
    moved = {name: array for name, array in frame.arrays.items() if name not in frozen}
    still = {name: frame.arrays[name] for name in frozen}
    rows += tensor_values(moved, purpose="model update", protection=learnt)
    return rows + tensor_values(still, purpose="unchanged, as it came", protection="public")


def check_update(
    protocol: Protocol, round_number: int, *, site: str, update: Arrays, base: Arrays, correction: Arrays,
    trained: Collection[str], told: float | None,
) -> frozenset[str]:  # fmt: skip
    """Refuse an update that no honest round makes; the bound is the one of `shared_model.update_bound`.

    Args:
        told: the noise multiplier that the answer names, more than the protocol's where the site's own policy says so.

    Returns:
        names of the tensors that the phase does not train, which are as they came.

    Raises:
        EgressError: other tensors or shapes, numbers that are not finite, a change where nothing is trained, or one
            larger than the protocol's own noise and clipping can make.
    """
    try:
        check_shapes(update, {name: array.shape for name, array in base.items()})
    except MessageError as error:
        raise EgressError(f"the update's {error.problem}", found=error.found) from None
    for name, array in update.items():
        if not np.isfinite(array).all():
            raise EgressError("the update holds numbers that are not finite", found=name)
    frozen = frozenset(base) - frozenset(trained)
    for name in sorted(frozen):
        if not np.array_equal(update[name], base[name]):
            raise EgressError("a tensor was changed that this phase does not train", found=name)
    reckoned = raised(protocol, round_number, told)
    still = {name: np.zeros_like(array) for name, array in correction.items()}
    reach = norm_bound(reckoned, round_number, base, site=site, correction=norm_of_difference(correction, still))
    distance = norm_of_difference(update, base)
    if not distance <= reach:
        raise EgressError("the update is larger than the protocol's clipping and noise can make it",
                          found=f"norm {distance:.4g}", expected=f"at most {reach:.4g}")  # fmt: skip
    greatest = max((float(np.abs(array).max()) for array in correction.values()), default=0.0)
    limit = coordinate_bound(reckoned, round_number, base, site=site, correction=greatest)
    for name in sorted(update):
        change = float(np.abs(update[name].astype(np.float64) - base[name]).max()) if update[name].size else 0.0
        if not change <= limit:
            raise EgressError("one number changed by more than the protocol's clipping and noise can make it",
                              found=f"{name}: {change:.4g}", expected=f"at most {limit:.4g}")  # fmt: skip
    return frozen


def _summed(frame: Frame, asked: Asked, party: Party) -> list[Value]:
    """A step of a secure sum. What is in masked words cannot be checked: `check_update` saw it before it was masked."""
    message, request, protocol = frame.message, asked.request, _protocol(asked)
    assert isinstance(message, SecureSumReply) and isinstance(request, SecureSumRequest)
    names = ("study", "what", "round", "attempt", "step")
    _same(message, {"site": party.site, **{name: getattr(request, name) for name in names}})
    if request.what not in quantities(protocol):
        raise EgressError("the protocol lets no such quantity be summed", found=request.what)
    words = frame.arrays.get(MASKED)
    if set(frame.arrays) != ({MASKED} if request.step == "mask" else set()):
        raise EgressError("a step of a secure sum with other tensors than its masked words", found=request.step)
    _told(message.seconds, coarse=protocol.coarse_times)
    rows = [Value.of_field(f"step.{request.step}", message.document, purpose=f"secure sum of {request.what}",
                           protection="masked"),
            Value.of_field("seconds", message.seconds, protection="unprotected",
                           purpose="how long the step took, which the model's size says")]  # fmt: skip
    if words is not None:
        if words.dtype != np.dtype("<u4") or words.ndim != 1:
            raise EgressError("masked words of another form", found=f"{words.dtype} [{words.ndim}]",
                              expected="uint32 [1]")  # fmt: skip
        rows.append(Value(name=MASKED, purpose=f"secure sum of {request.what}", shape=words.shape, bytes=words.nbytes,
                          sha256=hashlib.sha256(words.tobytes()).hexdigest(), protection="masked"))  # fmt: skip
    return rows


def _evaluated(frame: Frame, asked: Asked, party: Party) -> list[Value]:
    message, request, protocol = frame.message, asked.request, _protocol(asked)
    assert isinstance(message, EvaluateReply) and isinstance(request, EvaluateRequest)
    _no_tensors(frame)
    _same(message, {
        "site": party.site, "study": request.study, "round": request.round, "scope": request.scope,
        "weights_sha256": request.weights_sha256,
    })  # fmt: skip
    owner = "site" if request.scope == "site" else "evaluator"
    if owner != party.role:
        raise EgressError("an evaluation of a split that is another party's", found=request.scope, expected=party.role)
    joint = request.scope == "site" and protocol.privacy.metrics == "joint"
    noised = request.scope == "site" and protocol.private
    # Joint counts leave masked, in answer to another request; scores of the initial weights never do.
    stays = joint and (protocol.summed or request.image_only)
    rows = _answer(message.reason, message.seconds, message.privacy, message,
                   coarse=request.scope == "site" and protocol.coarse_times)  # fmt: skip
    if message.outcome == "abstained" or stays:
        if message.report != "{}":
            raise EgressError("a report where none may leave", found=message.outcome)
        return rows
    if noised:
        if message.privacy is None:
            raise EgressError("a private report's answer has an account of its privacy", found="no account")
        document = check_report(message.report, "joint" if joint else "noised")
        if joint:
            _check_counts(document, protocol)
        return rows + _parts(document, {"bins": "public", "noise_std": "public"}, otherwise="noised")
    document = check_report(message.report, "selection" if request.scope == "selection" else "test")
    if disclosed(document, below=party.suppress_below, totals=party.role == "site") != document:
        raise EgressError("a report with counts of few women", expected=f"none of fewer than {party.suppress_below}")
    counted: dict[str, Protection] = {"n": "thresholded", "positives": "thresholded", "subgroups": "thresholded"}
    return rows + _parts(document, counted, otherwise="unprotected")


def _check_counts(document: Mapping[str, object], protocol: Protocol) -> None:
    """Joint counts of another size, or with less noise than the protocol asks for, are not what was charged."""
    terms, counts = protocol.privacy, document["counts"]
    assert isinstance(counts, list) and isinstance(document["noise_std"], float)  # the shape says so
    if (document["bins"], len(counts)) != (terms.metrics_bins, 2 * terms.metrics_bins**2):
        raise EgressError("joint counts of another size", found=f"{len(counts)} of {document['bins']} bins",
                          expected=f"2 x {terms.metrics_bins} x {terms.metrics_bins}")  # fmt: skip
    if document["noise_std"] < terms.metrics_noise_multiplier:
        raise EgressError("joint counts with less noise than the protocol asks for", found=document["noise_std"],
                          expected=f"at least {terms.metrics_noise_multiplier:g}")  # fmt: skip
    if all(float(count).is_integer() for count in counts):  # noise of whole numbers alone is none
        raise EgressError("joint counts that have no noise on them", expected="counts with noise")


def _parts(document: Mapping[str, object], known: Mapping[str, Protection], *, otherwise: Protection) -> list[Value]:
    return [Value.of_field(f"report.{name}", value, purpose="metrics of the model",
                           protection=known.get(name, otherwise)) for name, value in document.items()]  # fmt: skip


def _answer(
    reason: str, seconds: float, privacy: Fields | None, message: TrainReply | EvaluateReply, *, coarse: bool
) -> list[Value]:
    """What every answer to a study's request has: what it answers, words, time, the account."""
    _told(seconds, coarse=coarse)
    if without_identity(reason, paths=()) != reason:
        raise EgressError("words with a path or a pseudonym in them")
    names = ("site", "study", "round", "weights_sha256", "outcome")
    rows = [
        Value.of_field("answer", {name: getattr(message, name) for name in names}, purpose="which request it answers",
                       protection="public"),
        Value.of_field("seconds", seconds, purpose="how long it took; it hints at how many patients were drawn",
                       protection="unprotected"),
    ]  # fmt: skip
    if reason:
        rows.append(Value.of_field("reason", reason, purpose="why the site did less", protection="scrubbed"))
    if privacy is not None:
        rows.append(Value.of_field("privacy", privacy.model_dump(mode="json"), protection="public",
                                   purpose="epsilon spent and left, from parameters alone"))  # fmt: skip
    return rows


def _told(seconds: float, *, coarse: bool) -> None:
    """Refuse a time that is finer than times may be told; it could tell how many women there are, or carry anything."""
    if told(seconds, coarse=coarse) != seconds:
        raise EgressError("seconds that are finer than they may be told", found="more digits",
                          expected="a step of the ladder" if coarse else "whole milliseconds")  # fmt: skip


def _protocol(asked: Asked) -> Protocol:
    if asked.protocol is None:
        raise EgressError("an answer for a study that is not, or no longer, approved here")
    return asked.protocol


def _no_tensors(frame: Frame) -> None:
    if frame.arrays:
        raise EgressError(f"a `{frame.message.kind}` with tensors", found=len(frame.arrays), expected="none")


def _same(message: Fields, expected: Mapping[str, object]) -> None:
    wrong = [name for name, value in expected.items() if getattr(message, name) != value]
    if wrong:
        raise EgressError("a reply that answers another request", found=", ".join(wrong))


@dataclass(frozen=True)
class _Rule:
    reply: type[Fields]
    check: Callable[[Frame, Asked, Party], list[Value]]


RULES: Final[Mapping[type[Fields], _Rule]] = {
    DescribeRequest: _Rule(DescribeReply, _described),
    AuditRequest: _Rule(AuditReply, _audited),
    TrainRequest: _Rule(TrainReply, _trained),
    EvaluateRequest: _Rule(EvaluateReply, _evaluated),
    SecureSumRequest: _Rule(SecureSumReply, _summed),
}
"""Everything that may leave, by what asks for it; besides these only words of an error (`EgressGate.refusal`)."""
