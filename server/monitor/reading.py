"""Makes a `StudyView` of a run directory: reads what is there, puts rows into words; called by every monitor."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from statistics import median
from typing import Any

from server.monitor import cells
from server.monitor.kept import Kept, read_kept
from server.monitor.outlook import meaning
from server.monitor.presence import Presence, look
from server.monitor.rows import Rows, read_rows
from server.monitor.standing import Facts, standing
from server.monitor.view import Auc, Best, SiteView, Status, StudyView
from server.rounds.states import RoundState
from shared_model.protocol import Protocol

SILENT_S = 8.0  # a site beats every 5 s; a member that is silent is named within ten
OPEN_STATES = (RoundState.OPENED.value,)
MEASURED_STATES = ("", RoundState.AGGREGATED.value)  # the evaluator is asked: before the first round, and in each
LATEST = "latest"  # a cursor after which nothing is new: for what is told whole


def read(run_dir: Path, since: str | None = None, *, now: float | None = None, silent_s: float = SILENT_S) -> StudyView:
    """One study as it stands.

    Args:
        run_dir: of the study; it need not be there yet.
        since: cursor of an earlier view: `rounds` and `events` hold only what is new. None, or of another study: all;
            `LATEST`: none.
        now: seconds since 1970.
        silent_s: seconds after which a site that sends no sign of life counts as silent.

    What cannot be read is told in `missing` and as status `failed`, or `unknown` where the journal alone is left;
    nothing is raised for a run directory that is damaged, because a monitor must show that, too.
    """
    now = time.time() if now is None else now
    event, step = (None, None) if since == LATEST else parse_cursor(since)
    kept, fault = read_kept(run_dir), ""
    protocol = kept.protocol
    rows: Rows | None = None
    try:
        rows = read_rows(run_dir / "journal.sqlite", event=event, step=step,
                         score=protocol.evaluation.score if protocol else "fused",
                         rule=protocol.evaluation.selection_rule if protocol else "last")  # fmt: skip
    except (sqlite3.Error, OSError, ValueError, UnicodeDecodeError) as error:
        fault = f"the journal cannot be read: {error}"
    return _view(run_dir, kept.beside(rows), rows, look(run_dir), fault=fault, now=now, silent_s=silent_s)


def parse_cursor(cursor: str | None) -> tuple[int, int]:
    """(event, step) of a cursor; (0, 0), which is everything, of one that is none."""
    first, dot, second = (cursor or "").partition(".")
    if dot and first.isdecimal() and second.isdecimal() and len(first) < 16 and len(second) < 16:
        return int(first), int(second)
    return 0, 0


def _view(
    run_dir: Path, kept: Kept, rows: Rows | None, there: Presence, *, fault: str, now: float, silent_s: float,
) -> StudyView:  # fmt: skip
    protocol = kept.protocol
    name = protocol.study if protocol else run_dir.name
    state = str(rows.meta.get("state", "new")) if rows else "none"
    number, attempt, round_state, opened = (rows.newest[:4] if rows and rows.newest else (0, 0, "", None))
    is_open = round_state in OPEN_STATES and state == "rounds"
    measuring = state == "chosen" or (state == "rounds" and round_state in MEASURED_STATES)
    measuring = measuring and not (protocol and protocol.exploration)
    deadline_s = protocol.federation.deadline_s if protocol else None
    deadline = _deadline(rows, is_open=is_open, deadline_s=deadline_s)
    sites = cells.sites_of(protocol, rows, there, now=now, silent_s=silent_s, is_open=is_open)
    evaluators = cells.evaluators_of(rows, there, now=now, silent_s=silent_s)
    due = tuple(site.name for site in sites if is_open and site.now == "asked")
    round_s = median(rows.durations) if rows and rows.durations else None
    closed = rows.closed if rows else 0
    planned = protocol.rounds if protocol else 0
    reason = (rows.last_finished[0] if rows and rows.last_finished else "") or there.wish_reason
    ends = ends_of(now, opened, is_open=is_open, round_s=round_s, left=planned - closed, state=state)
    contributed = sum(site.now == "contributed" for site in sites)
    facts = Facts(
        now=now, state=state, planned=planned, closed=closed, round=number, sites=len(sites), round_open=is_open,
        quorum=protocol.federation.quorum if protocol else 0, asked=_asked(rows, sites, is_open=is_open),
        round_opened=opened, deadline=deadline, ends=ends, round_s=round_s, contributed=contributed,
        silent=[(s.name, s.silent_s) for s in sites if s.name in due and s.hangs],
        unmeasured=[(e.name, e.silent_s) for e in evaluators if e.hangs] if measuring else [],
        waits=rows.waits if rows else "", reason=reason, alive=there.alive, preparing=there.preparing,
        deployed=there.home is not None, daemon=there.daemon, wish=there.wish, stepped=rows.stepped if rows else None,
        missed=cells.missed(rows), missed_round=int(rows.latest[0][0]) if rows and rows.latest else 0,
        activity="the initial weights are being measured" if rows and not rows.newest else "",
        explores=bool(protocol and protocol.exploration),
    )  # fmt: skip
    status: Status
    status, sentence = standing(facts)
    if fault:
        status, sentence = "failed", f"failed: {fault}"
    elif kept.fault and rows is None:
        status, sentence = "failed", f"failed: {kept.fault}"
    elif kept.fault:
        status, sentence = "unknown", f"unknown: {kept.fault}; the journal alone says: {sentence}"
    elif kept.elsewhere and status in ("failed", "incomplete"):
        sentence += "; its protocol was frozen by another version of MammoFed, and that one alone resumes it"
    totals = rows.totals if rows else ()
    up, down = rows.reports_bytes if rows else (0, 0)
    return StudyView(
        run=run_dir.name, name=name, now=now, status=status, sentence=sentence, state=state, reason=reason,
        round=number, attempt=attempt, planned=planned, closed=closed,
        phase=protocol.training.phase(number).name if protocol and 1 <= number <= planned else "",
        started=rows.started if rows else None, last_step=rows.stepped if rows else None, deadline=deadline,
        deadline_s=deadline_s, ends=ends if status == "running" else None, round_s=round_s,
        quorum=facts.quorum,
        asked_per_round=protocol.federation.sites_per_round if protocol else 0, contributed=contributed, due=due,
        deployed=facts.deployed, alive=there.alive or there.preparing,
        strategy=protocol.federation.strategy if protocol else "",
        score=protocol.evaluation.score if protocol else "fused",
        collapse_auc=protocol.evaluation.collapse_auc if protocol else None,
        private=bool(protocol and protocol.private), coarse_times=bool(protocol and protocol.coarse_times),
        privacy_words=privacy_words(protocol), explores=facts.explores,
        release=protocol.release if protocol else "", protocol_sha256=kept.sha256,
        best=_best(protocol, rows), test=_test(rows), bytes_up=up + sum(row[4] for row in totals),
        bytes_down=down + sum(row[5] for row in totals), sites=sites, evaluators=evaluators,
        rounds=cells.rounds_of(protocol, rows, sites, is_open=is_open), events=cells.events_of(rows),
        whole=rows.whole if rows else True, cursor=f"{rows.last_event}.{rows.last_step}" if rows else "0.0",
        missing=tuple(filter(None, (kept.fault, fault))),
    )  # fmt: skip


def _deadline(rows: Rows | None, *, is_open: bool, deadline_s: float | None) -> float | None:
    """When the open attempt ends at the latest: it was opened, or taken up by a new process, at its last step."""
    if rows is None or not is_open or deadline_s is None or rows.stepped is None:
        return None
    return rows.stepped + deadline_s


def ends_of(
    now: float, opened: float | None, *, is_open: bool, round_s: float | None, left: int, state: str
) -> float | None:
    """When the study will end, seconds since 1970, as far as that can be told.

    Args:
        opened: when the newest attempt was; round_s: what a round takes; left: rounds that are not closed.
    """
    if state != "rounds" or round_s is None or left < 1:
        return None
    gone = min(now - opened, round_s) if is_open and opened is not None else 0.0
    return now + left * round_s - gone


def _asked(rows: Rows | None, sites: tuple[SiteView, ...], *, is_open: bool) -> int:
    if rows is None:
        return 0
    if is_open:
        return len(rows.asked)
    return sum(site.now not in ("not_sampled", "waiting") for site in sites)


def _best(protocol: Protocol | None, rows: Rows | None) -> Best | None:
    if protocol is None or rows is None:
        return None
    terms, chosen = protocol.evaluation, rows.meta.get("chosen")
    if rows.best is None:
        return None
    number, value, women, positives = rows.best
    sha256 = str(chosen["sha256"]) if isinstance(chosen, dict) else ""
    return Best(round=int(number), auc=cells.auc_of(value, women, positives), model=terms.score,
                rule=terms.selection_rule, chosen=bool(sha256), sha256=sha256)  # fmt: skip


def _test(rows: Rows | None) -> dict[str, Auc]:
    found: dict[str, Any] = dict(rows.test) if rows else {}
    return {name: Auc(value=value, low=low, high=high) for name, (value, low, high) in found.items()
            if isinstance(value, (int, float))}  # fmt: skip


def privacy_words(protocol: Protocol | None) -> str:
    """What the study's epsilon means, or that there is none."""
    if protocol is None:
        return "The study's protocol cannot be read here, so that it is not known what privacy it asks for."
    if protocol.exploration is not None:
        if protocol.private:
            return (
                "Each site noises its counts itself and charges its own ledger for them, beside what studies cost "
                "there: `mammofed site ledger show` at the site. The coordinator is told the noise, and no epsilon."
            )
        return "Exact in the masked sum: nobody but a site saw its own counts, and no epsilon covers the sum."
    if not protocol.private:
        return "Without privacy: updates are not noised, and nothing bounds what they tell of one patient."
    return meaning(protocol.privacy.epsilon, protocol.privacy.delta)
