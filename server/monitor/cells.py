"""Sites, rounds and events of a view, made of a journal's rows; pure. Called by `reading`."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from server.monitor.outlook import Outlook, words_of
from server.monitor.presence import Presence
from server.monitor.rows import Row, Rows
from server.monitor.view import (
    Auc,
    Cell,
    EventView,
    Outcome,
    PartyView,
    PhasesView,
    RoundView,
    SitePrivacy,
    SiteView,
    Step,
)
from shared_model.alive import SILENT_S
from shared_model.protocol import Protocol
from shared_model.story import ALIVE

MODELS: Final = ("fused", "image", "clinical")
GATE_CODES: Final = frozenset({"tensors", "shape", "non_finite", "norm", "norm_bound"})  # server.aggregation.gate
LOGIT_95: Final = 1.959964
_CODE = re.compile(r"^(?:code )?([a-z0-9_]{1,40}):")


def auc_of(value: float, women: float | None, positives: float | None) -> Auc:
    """An AUC with the 95 % interval of Hanley and McNeil (Radiology 1982;143:29-36), on the logit scale.

    The journal's `selection` documents hold the AUC and how many women it is of, and no scores. The counts are used
    here and not shown.
    """
    if women is None or positives is None or not 0.0 < value < 1.0:
        return Auc(value=value)
    n, m = positives, women - positives
    if n < 1 or m < 1:
        return Auc(value=value)
    q1, q2 = value / (2 - value), 2 * value * value / (1 + value)
    square = value * (1 - value)
    variance = (square + (n - 1) * (q1 - value * value) + (m - 1) * (q2 - value * value)) / (n * m)
    reach = LOGIT_95 * math.sqrt(max(0.0, variance)) / square
    centre = math.log(value / (1 - value))
    return Auc(value=value, low=1 / (1 + math.exp(reach - centre)), high=1 / (1 + math.exp(-centre - reach)))


def outcome_of(outcome: str, reason: str) -> tuple[Outcome, str]:
    """What a monitor calls it, and the stable code of the reason."""
    found = _CODE.match(reason)
    code = found[1] if found else ""
    if outcome == "refused" and code in GATE_CODES:
        return "rejected", code
    if outcome == "failed" and code == "absent":
        return "absent", code
    if outcome == "abstained":
        return ("out_of_budget", code or "budget") if "epsilon" in reason or "budget" in reason else ("abstained", code)
    known: Mapping[str, Outcome] = {
        "contributed": "contributed", "late": "late", "refused": "refused", "not_sampled": "not_sampled",
    }  # fmt: skip
    return known.get(outcome, "failed"), code


def sites_of(
    protocol: Protocol | None, rows: Rows | None, there: Presence, *, now: float, silent_s: float, is_open: bool
) -> tuple[SiteView, ...]:
    """Every hospital of the protocol, by name."""
    if protocol is None:
        return ()
    latest = {row[2]: row for row in rows.latest} if rows else {}
    newest = tuple(rows.newest[:2]) if rows and rows.newest else ()
    counts, traffic = _totals(rows)
    heard, devices = _heard(rows)
    spent = {row[0]: row for row in rows.spent} if rows else {}
    found = []
    for terms in sorted(protocol.federation.sites, key=lambda site: site.name):
        name = terms.name
        row = latest.get(name)
        outcome, reason = _now(row, newest, asked=rows.asked if rows else frozenset(), name=name, is_open=is_open)
        up, down = traffic.get(name, (None, None))  # nothing is counted before a first answer, or its absence
        found.append(SiteView(
            **_party(name, there, heard.get(name), devices.get(name, ""), now=now, silent_s=silent_s),
            patients=terms.patients, now=outcome, reason=reason, rounds=counts.get(name, {}),
            seconds=row[5] if row else None, bytes_up=up, bytes_down=down,
            privacy=privacy_of(protocol, spent.get(name), outcome), gives=gives(protocol),
            phases=_phases(rows.latest_phases.get(name)) if rows else None,
        ))  # fmt: skip
    return tuple(found)


def evaluators_of(rows: Rows | None, there: Presence, *, now: float, silent_s: float) -> tuple[PartyView, ...]:
    """Who measures: the one that the study has heard of, or all that the coordinator has enrolled."""
    heard, devices = _heard(rows)
    called = {site for site, kind, _, _, text in (rows.heard if rows else ())
              if kind == "site_present" and text.startswith("evaluator,")}  # fmt: skip
    return tuple(PartyView(**_party(name, there, heard.get(name), devices.get(name, ""), now=now, silent_s=silent_s))
                 for name in sorted(called or there.evaluators))  # fmt: skip


def _party(
    name: str, there: Presence, heard: float | None, device: str, *, now: float, silent_s: float
) -> dict[str, Any]:
    """Fields of a `PartyView`. heard, device: of the journal. A beat counts as heard once no other follows it, so that
    a party that is well is no news every other second."""
    sign, beat = there.signs.get(name), there.beats.get(name)
    overdue = beat is not None and now - beat > max(silent_s, SILENT_S)
    last = max(filter(None, (heard, sign.time if sign else None, beat if overdue else None)), default=None)
    gone = now - last if last is not None and (there.known or overdue) else None
    present = None if beat is None else not overdue
    return {
        "name": name, "heard": last, "silent_s": gone if gone is not None and gone > silent_s else None,
        "present": present if not there.known else sign is not None and now - sign.time <= silent_s,
        "device": (sign.trainer.device if sign and sign.trainer.up else "") or device,
        "release": sign.release if sign else "", "trainer_up": sign.trainer.up if sign else None,
        "clock_ahead_s": sign.clock_ahead if sign else None, "certificate_expires": there.expires.get(name),
        "words": sign.words if sign else "",
    }  # fmt: skip


def _now(
    row: Row | None, newest: tuple[Any, ...], *, asked: frozenset[str], name: str, is_open: bool
) -> tuple[Outcome, str]:
    """Its part in the newest attempt: what is journalled, or how far the request is."""
    if row is not None and (not is_open or tuple(row[:2]) == newest):
        return outcome_of(row[3], row[4])[0], str(row[4])
    return ("asked" if is_open and name in asked else "waiting"), ""


def missed(rows: Rows | None) -> list[tuple[str, str]]:
    """(site, outcome) of those that were asked in the last collected attempt and are not in it."""
    found = [(str(row[2]), outcome_of(row[3], row[4])[0]) for row in (rows.latest if rows else ())]
    return sorted((site, outcome) for site, outcome in found if outcome not in ("contributed", "not_sampled"))


def _totals(rows: Rows | None) -> tuple[dict[str, dict[str, int]], dict[str, tuple[int, int]]]:
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    traffic: dict[str, tuple[int, int]] = {}
    for site, outcome, closed, number, up, down in rows.totals if rows else ():
        if closed:
            counts[site][outcome] = counts[site].get(outcome, 0) + number
        before = traffic.get(site, (0, 0))
        traffic[site] = before[0] + up, before[1] + down
    return counts, traffic


def _heard(rows: Rows | None) -> tuple[dict[str, float], dict[str, str]]:
    """By site: its last sign of life in the journal, and the device that it named."""
    heard: dict[str, float] = {}
    devices: dict[str, str] = {}
    for site, kind, code, moment, text in rows.heard if rows else ():
        if (kind, code) in ALIVE:
            heard[site] = max(moment, heard.get(site, 0.0))
        if kind == "site_present":
            devices[site] = text.partition(", ")[2]
    return heard, devices


def privacy_of(protocol: Protocol, row: Row | None, outcome: Outcome) -> SitePrivacy | None:
    """What a site has spent and where that leads; None without privacy, and in an exploration, which reports none.

    Args:
        row: of its last report: (site, round, epsilon, budget, delta, steps); None before the first.
        outcome: its part in the newest round.
    """
    if not protocol.private or protocol.exploration is not None:
        return None
    budget, delta = protocol.privacy.epsilon, protocol.privacy.delta
    number, epsilon, steps = 0, 0.0, 0
    if row is not None:
        number, epsilon, budget, delta, steps = int(row[1]), float(row[2]), float(row[3]), float(row[4]), int(row[5])
    outlook = Outlook.of(protocol)
    used, fresh = outlook.spent(number, steps)
    projected, last = outlook.project(epsilon, budget=budget, spent=used, next_round=number + 1, fresh=fresh)
    if outcome == "out_of_budget":
        projected, last = epsilon, number
    return SitePrivacy(
        epsilon=epsilon, budget=budget, delta=delta, share=epsilon / budget if budget else 0.0, projected=projected,
        last_round=last, words=words_of(epsilon, budget, projected, last, planned=protocol.rounds),
    )  # fmt: skip


def gives(protocol: Protocol) -> str:
    """What leaves a site in this study, in words: the same for all, because it is the protocol that they approved."""
    if protocol.exploration is not None:
        return "once, counts of its women, " + ("noised there and " if protocol.private else "") + "masked in the sum"
    update = "a clipped and noised update a round" if protocol.private else "an update and its mean loss a round"
    end = {
        "final": "; at the end, once, metrics of its own test women", "none": "",
        "joint": "; at the end, once, counts of its own test women by two models' scores",
    }[protocol.privacy.metrics]  # fmt: skip
    kept = "" if protocol.federation.personal == "none" else f"; its `{protocol.federation.personal}` copies stay there"
    return update + end + kept


def rounds_of(
    protocol: Protocol | None, rows: Rows | None, sites: tuple[SiteView, ...], *, is_open: bool
) -> tuple[RoundView, ...]:
    """Rounds that are new or changed, by number; round 0 has the initial weights' AUC alone."""
    if rows is None:
        return ()
    last = {int(row[0]): row for row in rows.new_rounds}  # ordered by attempt: the last one stays
    numbers = sorted(last.keys() | rows.new_measured.keys())
    return tuple(_round(protocol, rows, number, last.get(number), sites, is_open=is_open) for number in numbers)


def _round(
    protocol: Protocol | None, rows: Rows, number: int, row: Row | None, sites: tuple[SiteView, ...], *, is_open: bool
) -> RoundView:
    measured = rows.new_measured.get(number, {})
    auc = {model: auc_of(measured[f"auc_{model}"], measured.get("n"), measured.get("positives"))
           for model in MODELS if f"auc_{model}" in measured}  # fmt: skip
    if row is None:
        return RoundView(number=number, auc=auc)
    attempt = int(row[1])
    cells = tuple(_cell(found, rows.new_phases.get((number, attempt, found[1])))
                  for found in rows.new_cells.get(number, ()) if found[0] == attempt)  # fmt: skip
    if is_open and rows.newest is not None and tuple(rows.newest[:2]) == (number, attempt):
        cells = tuple(Cell(site=site.name, outcome=site.now) for site in sites)
    inside = protocol is not None and 1 <= number <= protocol.rounds
    return RoundView(
        number=number, attempt=attempt, state=row[2], opened=row[3], seconds=row[4], weights_before=row[5],
        weights_after=row[6], phase=protocol.training.phase(number).name if protocol and inside else "",
        contributed=sum(cell.outcome == "contributed" for cell in cells), cells=cells, auc=auc,
        steps=tuple(Step(attempt=of, name=name, time=moment) for of, name, moment in rows.new_steps.get(number, ())),
    )  # fmt: skip


def _cell(row: Row, phases: Row | None) -> Cell:
    _, site, raw, reason, seconds, up, down, epsilon, loss, norm, cosine = row
    outcome, code = outcome_of(raw, reason)
    return Cell(site=site, outcome=outcome, reason=reason, code=code, seconds=seconds, bytes_up=up, bytes_down=down,
                loss=loss, epsilon=epsilon, norm=norm, cosine=cosine, phases=_phases(phases))  # fmt: skip


def _phases(row: Row | None) -> PhasesView | None:
    """A row of `rows.PHASES`."""
    if row is None or not any(value is not None for value in row):
        return None
    wait, load, train, mask, send, round_trip = row
    return PhasesView(wait=wait, load=load, train=train, mask=mask, send=send, round_trip=round_trip)


def events_of(rows: Rows | None) -> tuple[EventView, ...]:
    """Events that are new, oldest first."""
    return tuple(
        EventView(id=number, time=moment, kind=kind, severity=severity, code=code, round=of or 0, attempt=attempt or 0,
                  site=site, text=text, data=_data(data))
        for number, moment, kind, severity, code, of, attempt, site, text, data in (rows.new_events if rows else ())
    )  # fmt: skip


def _data(text: str) -> dict[str, float | str]:
    """Numbers and short words of an event; anything else is left out."""
    found = json.loads(text)
    if not isinstance(found, dict):
        return {}
    return {str(key): value if isinstance(value, str) else float(value)
            for key, value in found.items() if isinstance(value, (int, float, str))}  # fmt: skip
