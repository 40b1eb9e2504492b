"""The sites' own metrics as one secure sum: exact counts of all their test women together; called at a study's end.

Each site scores its women and keeps its counts; the sum of all of them is opened, and no site's. No epsilon covers the
sum, and the journal has it under a name that no site has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from server.aggregation.secure import SumOutcome, SumPlan, kept_terms, run_secure_sum
from server.rounds.measure import Measurement, check, request
from server.rounds.study import Study, names_in_words, plain
from server.rounds.sums import place_of
from shared_model.evaluation import metrics_from_histogram
from shared_model.messages import Arrays, weights_sha256
from shared_model.secagg.session import LEAST_SITES, Session
from shared_model.secagg.terms import SCORES, terms_of

ALL_SITES: Final = "all-sites"
ROOM: Final = 2  # a site has at most so many times its rounded, public number of patients (client/trainer/site)


def joint_metrics(study: Study, number: int, weights: Arrays, *, calibration: Mapping[str, Any] | None) -> None:
    """Have each present site score its own women with the chosen model, and journal what their sum tells.

    What fails is journalled and misses in the summary; the study's result does not depend on it. A sum that is in the
    journal is not made again: no site would take part.
    """
    if study.journal.rows("SELECT 1 FROM reports WHERE scope = 'site' AND site = ?", ALL_SITES):
        return
    ready = _score(study, number, weights, calibration)
    fault = f"{len(ready)} sites have scored their women, {_least(study)} are needed"
    for attempt in range(1, study.protocol.federation.attempts + 1):
        outcome = _sum(study, number, attempt, ready)
        if outcome is None:
            continue
        if outcome.found is not None:
            _record(study, number, weights, outcome)
            return
        fault = outcome.fault
        if outcome.spent:
            break
    with study.journal.entry():
        study.note("site_evaluated", plain(fault), severity="warning", code="no_site_metrics", round_number=number)


def _score(study: Study, number: int, weights: Arrays, calibration: Mapping[str, Any] | None) -> list[str]:
    frame = request(study, "site", round_number=number, weights=weights, calibration=calibration)
    nodes = dict(sorted(study.roster.sites.items()))
    answers = study.exchange.ask(dict.fromkeys(nodes.values(), frame), timeout_s=study.protocol.federation.deadline_s)
    ready = []
    with study.journal.entry():
        for site, node in nodes.items():
            found = check(study, answers[node], frame.message, site=site)
            if isinstance(found, Measurement):
                ready.append(site)
            else:
                study.note("site_evaluated", found, severity="warning", code="no_site_metrics", round_number=number,
                           site=site)  # fmt: skip
    return ready


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
    most = ROOM * max(site.patients for site in study.protocol.federation.sites)
    return terms_of(
        study.protocol, what=SCORES, round_number=number, attempt=attempt, keys=keys, bound=float(most),
        coordinator=study.signing.public, length=2 * study.protocol.privacy.metrics_bins,
    )  # fmt: skip


def _record(study: Study, number: int, weights: Arrays, outcome: SumOutcome) -> None:
    assert outcome.found is not None
    counts = outcome.found.total.round().reshape(2, -1)  # whole numbers are summed without any error
    document = metrics_from_histogram(counts, confidence=study.protocol.evaluation.confidence)
    with study.journal.entry():
        study.journal.report(
            number, "site", ALL_SITES, weights=weights_sha256(weights), document=document, seconds=0.0,
            bytes_up=sum(up for up, _ in outcome.traffic.values()),
            bytes_down=sum(down for _, down in outcome.traffic.values()),
        )  # fmt: skip
        study.note("site_evaluated", f"the women of {names_in_words(outcome.found.survivors)} together, exactly; no "
                   "site's own counts were seen", round_number=number, data={"sites": len(outcome.found.survivors)})
