"""The sites' own women, all together, by two models' scores at once; called at a study's end where metrics are `joint`.

Each site first scores its women with the initial weights, which it keeps, then with the chosen model, and counts them
by both. With a secure sum the counts of all sites are opened as one exact sum, and no site's: no epsilon covers it.
Without one each site's counts come by themselves with noise, which its ledger was charged for. Either gives the pooled
AUCs of both models, their calibration and the paired test (`shared_model.evaluation.joint_report`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from server.aggregation.secure import SumOutcome, SumPlan, kept_terms, run_secure_sum
from server.rounds.measure import Measurement, Scope, check, record, request
from server.rounds.study import Study, names_in_words, plain
from server.rounds.sums import place_of
from server.rounds.withheld import is_number
from shared_model.clamp import MOST_RAISE
from shared_model.evaluation.evidence import three
from shared_model.evaluation.joint import joint_result, rivals_of
from shared_model.evaluation.joint_report import How, joint_document
from shared_model.messages import Arrays, weights_sha256
from shared_model.secagg.session import LEAST_SITES, Session
from shared_model.secagg.terms import SCORES, least_bound, terms_of

JOINT: Final = "joint"
ALL_SITES: Final = "all-sites"
FAR: Final = 8.0  # standard deviations of noise that no honest count is away from what can be


def joint_metrics(study: Study, number: int, weights: Arrays) -> None:
    """Have each present site count its own women by the chosen model and by the initial weights, and journal what all
    of them together tell.

    What fails is journalled and misses in the summary; the study's result does not depend on it. What is in the journal
    is not made again.
    """
    if study.journal.rows("SELECT 1 FROM reports WHERE scope = ?", JOINT):
        return
    if study.protocol.summed:
        _masked(study, number, weights)
    else:
        _noised(study, number, weights)


def _asked(study: Study, number: int, weights: Arrays, *, done: set[str]) -> dict[str, Measurement]:
    """Both requests to each present site that is not done yet; who answered both."""
    initial = _ask(study, "site_initial", 0, study.initial, "initial", set(study.roster.sites) - done)
    return _ask(study, "site", number, weights, "selection", set(initial))


def _ask(
    study: Study, scope: Scope, number: int, weights: Arrays, calibrated_on: str, sites: set[str]
) -> dict[str, Measurement]:
    calibration = study.journal.document(number, calibrated_on)
    frame = request(study, scope, round_number=number, weights=weights, calibration=calibration)
    nodes = {site: node for site, node in sorted(study.roster.sites.items()) if site in sites}
    answers = study.exchange.ask(dict.fromkeys(nodes.values(), frame), timeout_s=study.protocol.federation.deadline_s)
    found = {}
    with study.journal.entry():
        for site, node in nodes.items():
            answer = check(study, answers[node], frame.message, site=site)
            if isinstance(answer, Measurement):
                found[site] = answer
            else:
                _missed(study, number, answer, site=site)
    return found


def _missed(study: Study, number: int, fault: str, *, site: str | None = None) -> None:
    """Note, inside an open step, that figures are missing."""
    study.note("site_evaluated", plain(fault), severity="warning", code="no_site_metrics", round_number=number,
               site=site)  # fmt: skip


# --- exact counts, out of a secure sum ---


def _masked(study: Study, number: int, weights: Arrays) -> None:
    ready = sorted(_asked(study, number, weights, done=set()))
    fault = f"{len(ready)} sites have scored their women, {_least(study)} are needed"
    for attempt in range(1, study.protocol.federation.attempts + 1):
        outcome = _sum(study, number, attempt, ready)
        if outcome is None:
            continue
        if outcome.found is not None:
            fault = _opened(study, number, weights, outcome)
            break
        fault = outcome.fault
        if outcome.spent:
            break
    if fault:
        with study.journal.entry():
            _missed(study, number, fault)


def _least(study: Study) -> int:
    return max(LEAST_SITES, study.protocol.federation.quorum)


def _sum(study: Study, number: int, attempt: int, ready: list[str]) -> SumOutcome | None:
    """One attempt; None when there are too few sites for one."""
    assert study.signing is not None
    keep = place_of(study, SCORES, number, attempt)
    terms = kept_terms(keep, signing=study.signing) or _terms(study, number, attempt, ready)
    if terms is None:
        return None
    federation = study.protocol.federation
    plan = SumPlan(terms=terms, least=federation.quorum, tries=federation.attempts, deadline_s=federation.deadline_s)
    return run_secure_sum(study.exchange, plan, signing=study.signing, nodes=study.roster.sites, keep=keep)


def _terms(study: Study, number: int, attempt: int, ready: list[str]) -> Session | None:
    assert study.signing is not None
    keys = {site: study.roster.keys[site] for site in ready if site in study.roster.keys}
    if len(keys) < _least(study):
        return None
    length = len(rivals_of(study.protocol)) * 2 * study.protocol.privacy.metrics_bins**2
    return terms_of(
        study.protocol, what=SCORES, round_number=number, attempt=attempt, keys=keys, bound=_most(study),
        coordinator=study.signing.public, length=length,
    )  # fmt: skip


def _most(study: Study) -> float:
    """Women that one site can have in one count."""
    return least_bound(study.protocol, SCORES)


def _opened(study: Study, number: int, weights: Arrays, outcome: SumOutcome) -> str:
    """Journal what the sum tells; why it tells nothing, empty when it does."""
    assert outcome.found is not None
    bins, rivals = study.protocol.privacy.metrics_bins, rivals_of(study.protocol)
    counts = outcome.found.total.round().reshape(len(rivals), 2, bins, bins)  # whole numbers are summed without error
    traffic = [sum(column) for column in zip(*outcome.traffic.values(), strict=True)] or [0, 0]
    tables = dict(zip(rivals, counts, strict=True))
    return _together(study, number, weights, tables, how="masked", sites=outcome.found.survivors, traffic=traffic)


# --- noised counts, site by site ---


def _noised(study: Study, number: int, weights: Arrays) -> None:
    rows = study.journal.rows("SELECT site, document FROM reports WHERE scope = 'site'")
    documents = {site: json.loads(text) for site, text in rows}
    for site, measured in _asked(study, number, weights, done=set(documents)).items():
        fault = _fault(study, measured.document)
        with study.journal.entry():
            if fault:
                _missed(study, number, fault, site=site)
                continue
            documents[site] = _alone(study, measured.document)
            record(study, "site", replace(measured, document=documents[site]))
            study.note("site_evaluated", round_number=number, site=site,
                       data={"seconds": measured.reply.seconds, "bytes_up": measured.bytes_up})  # fmt: skip
    if not documents:
        return
    stds = [float(row["noise_std"]) for row in documents.values()]
    (rival,) = rivals_of(study.protocol)
    total: NDArray[np.float64] = np.sum([_table(study, row) for row in documents.values()], axis=0)
    fault = _together(study, number, weights, {rival: total}, how="noised", sites=sorted(documents), stds=stds)
    if fault:
        with study.journal.entry():
            _missed(study, number, fault)


def _table(study: Study, document: Mapping[str, Any]) -> NDArray[np.float64]:
    bins = study.protocol.privacy.metrics_bins
    return np.asarray(document["counts"], dtype=np.float64).reshape(2, bins, bins)


def _fault(study: Study, document: Mapping[str, Any]) -> str:
    """Why noised counts are not what an honest site sends; empty when they may be."""
    terms, std, counts = study.protocol.privacy, document.get("noise_std"), document.get("counts")
    if not isinstance(counts, list) or len(counts) != 2 * terms.metrics_bins**2 or not all(map(is_number, counts)):
        return f"counts: not 2 x {terms.metrics_bins} x {terms.metrics_bins} finite numbers"
    if not isinstance(std, float) or not is_number(std) or std < terms.metrics_noise_multiplier:
        return "counts: less noise than the protocol asks for"
    if std > _most_noise(study):
        return "counts: more noise than any site of this study may add, so that any counts would pass"
    if min(counts) < -FAR * std or max(counts) > _most(study) + FAR * std:
        return "counts: beyond what women and noise together can make"
    return ""


def _most_noise(study: Study) -> float:
    """The most that a site's policy can ask for on its counts; a trainer that wants more refuses the study."""
    protocol = study.protocol
    training = max(protocol.noise_multiplier(number) for number in range(1, protocol.rounds + 1))
    return max(protocol.privacy.metrics_noise_multiplier, MOST_RAISE * training)


def _alone(study: Study, document: Mapping[str, Any]) -> dict[str, Any]:
    """One site's counts with what they say by themselves, as other sites' documents have it."""
    std, table = float(document["noise_std"]), _table(study, document)
    found = joint_result([table], confidence=study.protocol.evaluation.confidence, noise_std=std)
    n, positives = max(found.n, 0.0), max(found.positives, 0.0)  # sums of noised counts
    return {"n": n, "positives": positives, **three("auc", found.first), "noise_std": std,
            "counts": document["counts"]}  # fmt: skip


# --- what all of them say ---


def _together(
    study: Study, number: int, weights: Arrays, tables: Mapping[str, NDArray[np.float64]], *, how: How,
    sites: tuple[str, ...] | list[str], stds: list[float] | None = None, traffic: list[int] | None = None,
) -> str:  # fmt: skip
    """Journal the document of the sum; why there is none, empty when there is."""
    most = len(sites) * _most(study) + FAR * math.sqrt(sum(std**2 for std in stds or []))
    if any(table.max() > most for table in tables.values()):
        return "counts: more women than these sites have"
    try:
        document = joint_document(tables, how=how, sites=len(sites), noise_stds=stds or [],
                                  confidence=study.protocol.evaluation.confidence)  # fmt: skip
    except ValueError as error:
        return f"counts: {error}"
    up, down = traffic or [0, 0]
    with study.journal.entry():
        study.journal.report(number, JOINT, ALL_SITES, weights=weights_sha256(weights), document=document, seconds=0.0,
                             bytes_up=up, bytes_down=down)  # fmt: skip
        exactly = "exactly; no site's own counts were seen" if how == "masked" else "from counts with each site's noise"
        study.note("site_evaluated", f"the women of {names_in_words(list(sites))} together, {exactly}",
                   round_number=number, data={"sites": len(sites)})  # fmt: skip
    return ""
