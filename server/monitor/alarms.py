"""Which alarms stand: a pure function of rules, of what a monitor knows of a study, and of the coordinator's machine.

Each rule is one small function; the table `CHECKS` names them. They look at a whole view (`StudyView.whole`), never
say anything of a patient, and repeat no words of a site but its stable codes. Used by page, terminal, metrics, keeper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from server.monitor.cells import outcome_of
from server.monitor.rules import Rules
from server.monitor.standing import seconds_words
from server.monitor.view import AlarmView, Cell, PartyView, RoundView, SiteView, StudyView

DAY_S: Final = 86_400.0
OPEN: Final = ("preparing", "running", "stalled")  # a study that goes on, or should
NO_ANSWER: Final = ("absent", "late", "failed")
REJECTED: Final = ("rejected", "refused")
TOGETHER: Final = 5  # alarms of one rule that stand each for itself; more are one line, or one message
MAX_NAMES: Final = 8


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The coordinator's. free_bytes: of the disk that the study is on; None: not known."""

    free_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """An alarm before its rule's severity is known. calm: as planned, so that it is `info` whatever the rule says."""

    text: str
    site: str | None = None
    round: int = 0
    since: float | None = None
    calm: bool = False


Check = Callable[[Rules, StudyView, Machine], Iterator[Found]]


def evaluate(rules: Rules, view: StudyView, machine: Machine | None = None) -> tuple[AlarmView, ...]:
    """The alarms that stand, the worst first."""
    machine = machine or Machine()
    found = []
    for name, check in CHECKS.items():
        rule = getattr(rules, name)
        if rule.enabled:
            found += [AlarmView(rule=name, severity="info" if f.calm else rule.severity, text=f.text, site=f.site,
                                round=f.round, since=f.since) for f in check(rules, view, machine)]  # fmt: skip
    order = ("error", "warning", "info")
    return tuple(sorted(found, key=lambda alarm: order.index(alarm.severity)))


def with_alarms(rules: Rules, view: StudyView, machine: Machine | None = None) -> StudyView:
    """The view with its alarms in it."""
    return replace(view, alarms=evaluate(rules, view, machine))


def gathered(alarms: Sequence[AlarmView]) -> tuple[AlarmView, ...]:
    """For people: where a rule fires for many sites at once (a network, a budget's end), one line instead of fifty."""
    groups: dict[tuple[str, str], list[AlarmView]] = {}
    for alarm in alarms:
        groups.setdefault((alarm.rule, alarm.severity), []).append(alarm)
    found: list[AlarmView] = []
    for group in groups.values():
        if len(group) <= TOGETHER:
            found += group
            continue
        since = min((alarm.since for alarm in group if alarm.since is not None), default=None)
        text = many_words([alarm.site or "?" for alarm in group], group[0].text)
        found.append(replace(group[0], site=None, text=text, since=since))
    return tuple(found)


def for_people(view: StudyView) -> tuple[AlarmView, ...]:
    """The alarms of a view as they stand beside its sentence, :func:`gathered`: none that says that sentence again."""
    return gathered([alarm for alarm in view.alarms if alarm.text != view.sentence])


def many_words(sites: Sequence[str], first: str) -> str:
    """Many sites' alarms of one rule in one line. first: what is said of the first."""
    more = f" and {len(sites) - MAX_NAMES} others" if len(sites) > MAX_NAMES else ""
    return f"{len(sites)} sites: {', '.join(sites[:MAX_NAMES])}{more}; of the first: {first}"


def _stalled(rules: Rules, view: StudyView, machine: Machine) -> Iterator[Found]:
    since = view.last_step
    if view.status == "stalled" and (since is None or view.now - since >= rules.stalled_round.after_s):
        yield Found(text=view.sentence, round=view.round, since=since)


def _failed(rules: Rules, view: StudyView, machine: Machine) -> Iterator[Found]:
    if view.status == "failed" or view.state == "INCOMPLETE" or (view.status == "unknown" and view.member is None):
        yield Found(text=view.sentence, round=view.round, since=view.last_step)


def _silent(rules: Rules, view: StudyView, machine: Machine) -> Iterator[Found]:
    if view.status not in OPEN:
        return
    terms, decided = rules.silent_site, _decided(view)[-rules.silent_site.rounds :]
    for party in (*view.sites, *view.evaluators):
        who = _who(party)
        beats = party.present is True and view.deployed  # on one machine that says that its process is alive, no more
        if party.silent_s is not None and party.silent_s >= terms.after_s:
            yield Found(text=f"{who} is silent for {seconds_words(party.silent_s)}", site=party.name,
                        since=party.heard)  # fmt: skip
        elif party.present is False and party.heard is None:
            yield Found(text=f"{who} was not heard of since the coordinator's daemon began", site=party.name)
        elif party.silent_s is None and party.trainer_up is False and (
            party.name in view.due or not isinstance(party, SiteView)
        ):  # fmt: skip
            yield Found(text=f"{who} is there, and its trainer does not answer", site=party.name)
        elif isinstance(party, SiteView) and not beats and len(decided) == terms.rounds:
            outcomes = [_outcome(round_, party.name) for round_ in decided]
            if all(outcome in NO_ANSWER for outcome in outcomes):
                words = f"{who} gave no answer in {len(outcomes)} rounds on end ({outcomes[-1]})"
                yield Found(text=words, site=party.name, round=decided[-1].number)


def _collapsed(rules: Rules, view: StudyView, machine: Machine) -> Iterator[Found]:
    level = rules.image_collapsed.below if rules.image_collapsed.below is not None else view.collapse_auc
    curve = _curve(view, "image")
    if view.status not in OPEN or level is None or len(curve) < 2:
        return
    (number, last), before = curve[-1], max(value for _, value in curve[:-1])
    if last < level <= before:
        yield Found(text=f"the image branch's AUC is {last:.3f}, below {level:g}; it was {before:.3f}", round=number)


def _falling(rules: Rules, view: StudyView, machine: Machine) -> Iterator[Found]:
    terms, curve = rules.auc_falling, _curve(view, view.score)
    if view.status not in OPEN or len(curve) <= terms.rounds:
        return
    best = max(value for _, value in curve[: -terms.rounds])
    last = [value for _, value in curve[-terms.rounds :]]
    if all(value <= best - terms.drop for value in last):
        words = f"the {view.score} AUC was {best:.3f} and is at most {max(last):.3f} in the last {len(last)} rounds"
        yield Found(text=words, round=curve[-1][0])


def _not_finite(rules: Rules, view: StudyView, machine: Machine) -> Iterator[Found]:
    for round_, cell in _cells(view, rules.loss_not_finite.rounds):
        wrong = cell.loss is not None and not math.isfinite(cell.loss)
        if wrong or cell.code == "non_finite":
            what = "loss" if wrong else "update"
            yield Found(text=f"{cell.site}'s {what} in round {round_.number} holds NaN or infinity", site=cell.site,
                        round=round_.number)  # fmt: skip


def _rejected(rules: Rules, view: StudyView, machine: Machine) -> Iterator[Found]:
    """By events, which hold all attempts of a round; of a round itself the newest one is kept."""
    terms = rules.update_rejected
    found: dict[str, list[tuple[int, str]]] = {}
    for event in view.events if view.status in OPEN else ():
        if event.kind == "site_replied" and event.site and event.round > view.round - terms.rounds:
            outcome, code = outcome_of(str(event.data.get("outcome", "")), event.text)
            if outcome in REJECTED:
                found.setdefault(event.site, []).append((event.round, code))
    for site, times in found.items():
        if len(times) >= terms.times:
            number, code = times[-1]
            words = f"{site}'s update was not taken {len(times)} times, last in round {number}"
            yield Found(text=f"{words} ({code})" if code else words, site=site, round=number)


def _loop(rules: Rules, view: StudyView, machine: Machine) -> Iterator[Found]:
    """The round loop's own alarms, by code: their words may be another party's. A collapse has a rule of its own."""
    found: dict[str, int] = {}
    for event in view.events if view.status in OPEN else ():
        if event.kind == "alarm" and event.code != "collapse" and event.round > view.round - rules.loop_alarm.rounds:
            found[event.code or "alarm"] = event.round
    if found:
        words = ", ".join(f"{code} in round {number}" for code, number in found.items())
        yield Found(text=f"the round loop raised {words}: see the events", round=max(found.values()))


def _epsilon(rules: Rules, view: StudyView, machine: Machine) -> Iterator[Found]:
    if view.status not in OPEN:
        return
    for site in view.sites:
        if site.privacy is not None and site.privacy.share >= rules.epsilon_near_budget.share:
            # A study is calibrated to spend its epsilon: who reaches the end with it has nothing to do.
            yield Found(text=f"{site.name}: {site.privacy.words or f'{site.privacy.share:.0%} is spent'}",
                        site=site.name, calm=site.privacy.last_round is None)  # fmt: skip


def _certificate(rules: Rules, view: StudyView, machine: Machine) -> Iterator[Found]:
    for party in (*view.sites, *view.evaluators) if view.status in OPEN else ():
        if party.certificate_expires is None:
            continue
        left = party.certificate_expires - view.now
        if left <= 0:
            yield Found(text=f"{_who(party)}'s certificate ran out: it needs a new invitation", site=party.name,
                        since=party.certificate_expires)  # fmt: skip
        elif left < rules.certificate_expiring.days * DAY_S:
            yield Found(text=f"{_who(party)}'s certificate runs out in {seconds_words(left)} and was not renewed",
                        site=party.name)  # fmt: skip


def _disk(rules: Rules, view: StudyView, machine: Machine) -> Iterator[Found]:
    free = machine.free_bytes
    if view.status in OPEN and free is not None and free < rules.disk_low.free_gb * 1e9:
        yield Found(text=f"the disk has {free / 1e9:.2f} GB left; a study that cannot write its journal ends")


def _clock(rules: Rules, view: StudyView, machine: Machine) -> Iterator[Found]:
    terms = rules.clock_skew
    for party in (*view.sites, *view.evaluators) if view.status in OPEN else ():
        ahead = party.clock_ahead_s
        if ahead is not None and not -terms.behind_s <= ahead <= terms.ahead_s:
            words = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
            yield Found(text=f"{_who(party)}'s clock is {words}: NTP", site=party.name)


CHECKS: Final[Mapping[str, Check]] = {
    "stalled_round": _stalled, "study_failed": _failed, "silent_site": _silent, "image_collapsed": _collapsed,
    "auc_falling": _falling, "loss_not_finite": _not_finite, "update_rejected": _rejected,
    "loop_alarm": _loop, "epsilon_near_budget": _epsilon, "certificate_expiring": _certificate, "disk_low": _disk,
    "clock_skew": _clock,
}  # fmt: skip


# --- what the rules look at ---


def _who(party: PartyView) -> str:
    return party.name if isinstance(party, SiteView) else f"the evaluator ({party.name})"


def _decided(view: StudyView) -> list[RoundView]:
    """Rounds of whose newest attempt it is known who took part, oldest first."""
    return [round_ for round_ in view.rounds if any(cell.outcome not in ("asked", "waiting") for cell in round_.cells)]


def _cells(view: StudyView, rounds: int) -> Iterator[tuple[RoundView, Cell]]:
    for round_ in _decided(view)[-rounds:] if view.status in OPEN else ():
        for cell in round_.cells:
            yield round_, cell


def _outcome(round_: RoundView, site: str) -> str:
    return next((cell.outcome for cell in round_.cells if cell.site == site), "")


def _curve(view: StudyView, model: str) -> list[tuple[int, float]]:
    return [(round_.number, round_.auc[model].value) for round_ in view.rounds if model in round_.auc]
