"""Waits for parties: at the start of a session, and for lost ones between the attempts of a round or a measurement.

Flower answers for a node that is away within a minute, so that all attempts of a round would be used up in an outage of
a few minutes. Here the next attempt waits until enough parties are connected again and say who they are, at most as
long as a round waits for replies. Called by `loop`, `one_round` and `measure`; no wait is without an end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence

from server.rounds.roll_call import call_roll, missing_sites
from server.rounds.study import Study, names_in_words

POLL_S = 1.0
ASK_AGAIN_S = 30.0  # between questions to a connected node that is silent: each one starts a process at its courier


class StopRequested(Exception):
    """Somebody asked to stop while the study waited; what was not closed yet is asked again on resume."""


def gather(study: Study, *, patience_s: float) -> None:
    """Call the roll until every party is there, at most `patience_s` seconds; journal which sites are not."""
    call_roll(study)

    def lacking() -> str:
        return names_in_words(missing_sites(study)) or ("" if study.roster.evaluator else "the evaluator")

    with contextlib.suppress(StopRequested):  # the loop looks at `stop` next
        _wait(study, lacking, limit_s=patience_s)
    with study.journal.entry():
        for name in missing_sites(study):
            study.note("site_absent", "no node answered for this site", severity="warning", code="absent", site=name)


def wait_for_sites(study: Study, sites: Sequence[str], *, held: Collection[str], round_number: int) -> None:
    """Wait until the sites of the next attempt that are there can reach the quorum.

    Args:
        sites: of the next attempt. held: those whose update is kept from an earlier attempt.

    Raises:
        StopRequested: somebody asked for it meanwhile.
    """

    def lacking() -> str:
        away = [site for site in sites if site not in held and site not in study.roster.sites]
        needed = study.protocol.federation.quorum - (len(sites) - len(away))
        return "" if needed <= 0 else f"{names_in_words(away)} not there, {needed} needed for the quorum"

    rows = study.journal.rows(
        "SELECT site FROM participation WHERE round = ? AND outcome = 'failed' AND attempt = "
        "(SELECT max(attempt) FROM participation WHERE round = ?)", round_number, round_number,
    )  # fmt: skip
    _wait_for_lost(study, [str(site) for (site,) in rows], lacking, round_number=round_number)


def wait_for_evaluator(study: Study, *, failed: bool, round_number: int) -> None:
    """Wait until the evaluator is there. failed: it just was not; otherwise it was only late.

    Raises:
        StopRequested: somebody asked for it meanwhile.
    """

    def lacking() -> str:
        return "" if study.roster.evaluator else "the evaluator is not there"

    _wait_for_lost(study, [study.roster.evaluator] if failed else [], lacking, round_number=round_number)


def _wait_for_lost(study: Study, failed: Collection[str], lacking: Callable[[], str], *, round_number: int) -> None:
    """Wait until `lacking()` says nothing, at most `outage_s`; journalled once.

    failed: parties whose connection may be good and whose trainer is not; they count again when they say who they are.
    """
    if study.outage_s > 0:
        for name in failed:
            study.roster.forget(name)
    call_roll(study)
    words = lacking()
    if not words or study.outage_s <= 0:
        return
    with study.journal.entry():
        study.note("waiting", f"{words}; waiting at most {study.outage_s:g} s", severity="warning", code="outage",
                   round_number=round_number)  # fmt: skip
    _wait(study, lacking, limit_s=study.outage_s)


def _wait(study: Study, lacking: Callable[[], str], *, limit_s: float) -> None:
    """Look once a second who is connected; call the roll when that changes, and now and then while nothing does."""
    began = asked = study.clock()
    connected = study.exchange.nodes()
    while lacking() and study.clock() < began + limit_s:
        if study.stop.wait(POLL_S) or study.stop.is_set():
            raise StopRequested
        now = study.exchange.nodes()
        if now != connected or study.clock() >= asked + ASK_AGAIN_S:
            call_roll(study)
            connected, asked = now, study.clock()
