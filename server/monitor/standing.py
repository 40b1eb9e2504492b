"""How a study stands, in one word and one sentence: pure functions of what was read; used by `reading`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from server.monitor.view import Status

STARTING_S = 180.0  # a deployed study's process may need so long to begin again
QUIET_FACTOR, QUIET_S = 6.0, 60.0  # a round on one machine is stalled after so many times its usual length, and so long
MAX_NAMES = 4


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the answer depends on. silent: (site, seconds) of sites that the open round waits for and that are overdue;
    None for seconds: the site is there, and its trainer does not answer.

    planned: rounds of the protocol; 0 where it cannot be read, and then resume refuses. present, sites: parties that
    are there, of all. round_open: an attempt is running. waits: words of the loop itself, while it waits for lost
    parties. missed: (site, outcome) of sites that were asked in the last round with replies and are not in it.
    unmeasured: likewise (evaluator, seconds) of silent ones while the loop waits for a measurement. explores: it is one
    sum of the sites' counts, without rounds, model or test.
    """

    now: float
    state: str
    planned: int
    closed: int
    round: int
    quorum: int
    sites: int
    asked: int
    round_open: bool
    round_opened: float | None
    deadline: float | None
    ends: float | None
    round_s: float | None
    contributed: int
    silent: Sequence[tuple[str, float | None]]
    waits: str
    reason: str
    alive: bool
    preparing: bool
    deployed: bool
    daemon: bool
    wish: str
    stepped: float | None
    activity: str
    missed: Sequence[tuple[str, str]] = ()
    unmeasured: Sequence[tuple[str, float | None]] = ()
    missed_round: int = 0
    explores: bool = False


def standing(facts: Facts) -> tuple[Status, str]:
    """The word and the sentence."""
    match facts.state:
        case "COMPLETE":
            if facts.explores:
                return "complete", "complete: the counts of the sites together are there"
            return "complete", f"complete: {_all(facts)} rounds are closed, the held-out test is opened"
        case "INCOMPLETE":
            return "incomplete", f"incomplete {_so_far(facts)}: {facts.reason or 'no reason was given'}"
        case "STOPPED":
            again = "; resume goes on" if facts.planned else ""
            return "incomplete", f"stopped by request {_so_far(facts)}{again}"
        case "none" | "new":
            return _before(facts)
    if not facts.alive:
        return _lost(facts)
    return _running(facts)


def _before(facts: Facts) -> tuple[Status, str]:
    if facts.deployed and facts.wish == "proposed":
        return "preparing", "proposed: it begins when the coordinator starts it"
    if facts.deployed and facts.wish in ("stopped", "ended"):
        return "incomplete", f"stopped before a round was begun{f': {facts.reason}' if facts.reason else ''}"
    if facts.deployed and facts.wish == "running" and not facts.daemon:
        return "failed", "failed: the coordinator's daemon does not run, so nothing begins; start it"
    if facts.deployed or facts.preparing or facts.alive:
        return "preparing", "preparing: no round was begun yet"
    return "failed", "failed: nobody works on it, and no round was begun; start it anew"


def _lost(facts: Facts) -> tuple[Status, str]:
    """No process has the study, and it has not come to an end."""
    since = facts.now - facts.stepped if facts.stepped is not None else 0.0
    where = f"round {_of(facts, facts.round)}" if facts.round else "the start"
    if facts.deployed and facts.daemon and facts.wish == "running":
        return "stalled", f"stalled: its process was lost in {where}; the coordinator starts it again"
    if facts.wish == "stopped":
        return "incomplete", f"stopped {_so_far(facts)}{f': {facts.reason}' if facts.reason else ''}"
    who = "the coordinator's daemon does not run" if facts.deployed and not facts.daemon else "its process is gone"
    safe = "" if facts.explores else "closed rounds are safe, "
    again = f"; {safe}resume goes on" if facts.planned else ""
    return "failed", f"failed: {who}, {seconds_words(since)} after the last step in {where}{again}"


def _running(facts: Facts) -> tuple[Status, str]:
    deadline = f"deadline in {seconds_words(facts.deadline - facts.now)}" if facts.deadline else ""
    if facts.deadline is not None and facts.deadline <= facts.now:
        deadline = "its deadline is over"
    needs = f"the round needs {facts.quorum} of {facts.asked}"
    if facts.waits:
        return "stalled", _join(f"stalled: {facts.waits}", needs if facts.round_open else "", deadline)
    if facts.round_open and facts.silent:
        return "stalled", _join(f"stalled: {_quiet(facts.silent)}", needs, deadline)
    if facts.unmeasured:
        return "stalled", f"stalled: {_quiet(facts.unmeasured)}, which measures the model"
    if facts.round_open and facts.round_opened is not None and not facts.deployed:
        gone = facts.now - facts.round_opened
        if facts.round_s is not None and gone > max(QUIET_S, QUIET_FACTOR * facts.round_s):
            usual = f"rounds before took {seconds_words(facts.round_s)}"
            return "stalled", _join(f"stalled: round {facts.round} is open for {seconds_words(gone)}", usual, deadline)
    if facts.explores:
        if facts.state == "tested":
            return "running", "the counts of the sites together are there"
        return "running", f"the women of {facts.sites} sites are counted in one sum, which needs {facts.quorum} of them"
    if facts.state == "chosen":
        return "running", f"{_all(facts)} rounds are closed; the held-out test is being opened"
    if facts.state == "tested":
        return "running", "the held-out test is opened; the sites measure the model on their own women"
    ends = f"ends about {clock_words(facts.ends, facts.now)}" if facts.ends else ""
    if facts.round == 0:
        return "running", _join("before the first round", facts.activity, f"{facts.sites} sites")
    said = f"{facts.asked} of {facts.sites} sites asked"
    count = said if facts.round_open else f"{facts.contributed} of {facts.sites} sites"
    return "running", _join(f"round {_of(facts, facts.round)}", count, ends) + _missed(facts)


def _quiet(parties: Sequence[tuple[str, float | None]]) -> str:
    """Who is silent, and for how long; whose trainer is."""
    names = [f"the trainer of {name} does not answer" if gone is None else f"{name} silent for {seconds_words(gone)}"
             for name, gone in parties[:MAX_NAMES]]  # fmt: skip
    more = len(parties) - MAX_NAMES
    return ", ".join(names) + (f" and {more} others" if more > 0 else "")


def _missed(facts: Facts) -> str:
    """Who was not in the last round that is collected, by name."""
    if not facts.missed:
        return ""
    names = [f"{site} {outcome.replace('_', ' ')}" for site, outcome in facts.missed[:MAX_NAMES]]
    more = len(facts.missed) - MAX_NAMES
    return f"; {', '.join(names)}{f' and {more} others' if more > 0 else ''} in round {facts.missed_round}"


def _so_far(facts: Facts) -> str:
    """How far it came."""
    return "before there were counts" if facts.explores else f"after round {_of(facts)}"


def _of(facts: Facts, number: int | None = None) -> str:
    """A round, by itself the last closed one, of all; how many there are is not known without the protocol."""
    number = facts.closed if number is None else number
    return f"{number} of {facts.planned}" if facts.planned else str(number)


def _all(facts: Facts) -> str:
    return f"all {facts.planned}" if facts.planned else str(facts.closed)


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def seconds_words(seconds: float) -> str:
    """A span of time, to two figures.

    >>> [seconds_words(s) for s in (0.4, 40, 540, 9000, 200_000)]
    ['0 s', '40 s', '9 min', '2.5 h', '2.3 days']
    """
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def clock_words(moment: float, now: float) -> str:
    """A time of day of this machine; with the date when it is not today."""
    there, here = time.localtime(moment), time.localtime(now)
    same = there[:3] == here[:3]
    return time.strftime("%H:%M" if same else "%a %d %b %H:%M", there)
