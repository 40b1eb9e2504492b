"""Each rule of the alarms: a study at which it fires, and the nearest one at which it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from server.monitor.alarms import CHECKS, Machine, evaluate, gathered, with_alarms
from server.monitor.rules import MonitorFile, Rules
from server.monitor.view import Cell, EventView, PartyView, StudyView
from tests.server.monitor.views import NOW, privacy, refused, round_, site, study

DAY = 86_400.0


def fired(view: StudyView, *, machine: Machine | None = None, **rules: Any) -> list[str]:
    return [alarm.rule for alarm in evaluate(changed(rules), view, machine)]


def changed(rules: Mapping[str, Mapping[str, Any]]) -> Rules:
    base = MonitorFile.read().rules
    return base.model_copy(update={name: getattr(base, name).model_copy(update=dict(values))
                                   for name, values in rules.items()})  # fmt: skip


def curve(*values: float, model: str = "fused") -> StudyView:
    others = {"fused": 0.8, "image": 0.75}
    rounds = (round_(n, auc=others | {model: value}, north="contributed") for n, value in enumerate(values, 1))
    return study(rounds=tuple(rounds))


def outcomes(*names: Any) -> StudyView:
    """A study on one machine whose site `north` had these outcomes, one a round."""
    rounds = tuple(round_(n, north=name, south="contributed") for n, name in enumerate(names, 1))
    return study(sites=(site(present=None), site("south", present=None)), rounds=rounds)


def north(**changes: Any) -> StudyView:
    return study(sites=(site(**changes), site("south")))


def measured(**changes: Any) -> StudyView:
    """A study whose evaluator is as told; it was not heard of unless that is said."""
    return study(evaluators=(PartyView(name="held-out", **changes),))


def loud(number: int, **changes: Any) -> EventView:
    return EventView(**({"id": number, "time": NOW, "kind": "alarm", "severity": "error", "code": "evaluator",
                         "round": number, "text": "words of <b>another party</b>"} | changes))  # fmt: skip


def bad(**changes: Any) -> Cell:
    return Cell(**({"site": "north", "outcome": "contributed"} | changes))


CASES: dict[str, tuple[list[tuple[StudyView, Machine | None]], list[tuple[StudyView, Machine | None]]]] = {
    "stalled_round": (
        [(study(status="stalled", last_step=NOW - 60), None), (study(status="stalled", last_step=None), None)],
        [(study(status="stalled", last_step=NOW - 59), None), (study(last_step=NOW - 600), None)],
    ),
    "study_failed": (
        [(study(status="failed"), None), (study(status="incomplete", state="INCOMPLETE"), None)],
        [(study(status="incomplete", state="STOPPED"), None), (study(status="complete", state="COMPLETE"), None)],
    ),
    "silent_site": (
        [(measured(silent_s=60.0), None), (measured(present=False), None), (north(silent_s=60.0), None),
         (north(present=False, heard=None), None), (outcomes("late", "absent"), None),
         (outcomes("contributed", "failed", "failed"), None), (measured(present=True, trainer_up=False), None),
         (replace(north(trainer_up=False), due=("north",)), None)],
        [(measured(silent_s=59.0, heard=NOW - 59), None), (replace(measured(silent_s=600.0), status="failed"), None),
         (north(silent_s=59.0), None), (outcomes("late", "contributed", "late"), None), (outcomes("late"), None),
         (north(trainer_up=False), None), (replace(north(trainer_up=False, silent_s=59.0), due=("north",)), None),
         (replace(north(silent_s=600.0), status="complete"), None),
         (outcomes("abstained", "abstained"), None)],
    ),
    "image_collapsed": (
        [(curve(0.7, 0.54, model="image"), None), (curve(0.7, 0.6, 0.5, 0.5, model="image"), None)],
        [(curve(0.7, 0.55, model="image"), None), (curve(0.5, 0.52, model="image"), None),
         (curve(0.7, 0.5, 0.6, model="image"), None), (curve(0.4, model="image"), None)],
    ),
    "auc_falling": (
        [(curve(0.8, 0.77, 0.76, 0.77), None), (curve(0.6, 0.8, 0.7, 0.7, 0.7), None)],
        [(curve(0.8, 0.77, 0.78, 0.77), None), (curve(0.7, 0.7, 0.7), None), (curve(0.6, 0.7, 0.8, 0.81), None)],
    ),
    "loss_not_finite": (
        [(study(rounds=(round_(9, north=bad(loss=float("nan"))),)), None),
         (study(rounds=(round_(9, north=bad(outcome="rejected", code="non_finite")),)), None)],
        [(study(rounds=(round_(9, north=bad(loss=0.5)),)), None),
         (study(rounds=(round_(1, north=bad(loss=float("inf"))), *(round_(n, north="contributed")
                                                                  for n in range(2, 7)))), None)],
    ),
    "update_rejected": (
        [(study(events=(refused(8), refused(9, id_=2))), None),
         (study(events=(refused(9), refused(9, id_=2, attempt=2, text="identity: another"))), None)],
        [(study(events=(refused(8),)), None), (study(events=(refused(8), refused(9, "south", id_=2))), None),
         (study(round=40, events=(refused(8), refused(9, id_=2))), None),
         (study(events=(refused(8), refused(9, id_=2, code="late", data={"outcome": "late"}))), None)],
    ),
    "loop_alarm": (
        [(study(events=(loud(8),)), None), (study(events=(loud(10, code=""),)), None)],
        [(study(events=(loud(7),)), None), (study(events=(loud(9, code="collapse"),)), None),
         (study(events=(loud(9, kind="evaluated"),)), None),
         (study(status="complete", state="COMPLETE", events=(loud(10),)), None)],
    ),
    "epsilon_near_budget": (
        [(north(privacy=privacy(0.8)), None)],
        [(north(privacy=privacy(0.79)), None), (north(privacy=None), None)],
    ),
    "certificate_expiring": (
        [(measured(certificate_expires=NOW + 6.9 * DAY), None), (measured(certificate_expires=NOW - 1), None),
         (north(certificate_expires=NOW + 6.9 * DAY), None), (north(certificate_expires=NOW - 1), None)],
        [(measured(certificate_expires=NOW + 7.1 * DAY), None), (measured(certificate_expires=None), None),
         (north(certificate_expires=NOW + 7.1 * DAY), None), (north(certificate_expires=None), None)],
    ),
    "disk_low": (
        [(study(), Machine(free_bytes=1_999_999_999))],
        [(study(), Machine(free_bytes=2_000_000_000)), (study(), None),
         (study(status="complete", state="COMPLETE"), Machine(free_bytes=1))],
    ),
    "clock_skew": (
        [(measured(clock_ahead_s=2.1), None), (north(clock_ahead_s=2.1), None), (north(clock_ahead_s=-61.0), None)],
        [(measured(clock_ahead_s=2.0), None),
         (north(clock_ahead_s=2.0), None), (north(clock_ahead_s=-60.0), None), (north(clock_ahead_s=None), None)],
    ),
}  # fmt: skip


def test_every_rule_has_a_case_that_fires_and_one_that_does_not() -> None:
    assert CASES.keys() == CHECKS.keys() == Rules.model_fields.keys()
    assert all(fires and quiet for fires, quiet in CASES.values())


@pytest.mark.parametrize(("rule", "view", "machine"), [(rule, *case) for rule, (fires, _) in CASES.items()
                                                       for case in fires])  # fmt: skip
def test_a_rule_fires(rule: str, view: StudyView, machine: Machine | None) -> None:
    assert fired(view, machine=machine) == [rule]
    assert fired(view, machine=machine, **{rule: {"enabled": False}}) == []


@pytest.mark.parametrize(("rule", "view", "machine"), [(rule, *case) for rule, (_, quiet) in CASES.items()
                                                       for case in quiet])  # fmt: skip
def test_a_rule_does_not_fire(rule: str, view: StudyView, machine: Machine | None) -> None:
    assert rule not in fired(view, machine=machine)


def test_a_study_that_is_well_raises_nothing() -> None:
    assert fired(study(), machine=Machine(free_bytes=10**12)) == []


def test_alarms_name_site_round_and_severity_and_stand_worst_first_in_the_view() -> None:
    view = replace(north(silent_s=75.0, heard=NOW - 75), rounds=curve(0.7, 0.5, model="image").rounds)
    first, second = with_alarms(MonitorFile.read().rules, view).alarms
    assert (first.rule, first.severity, first.round) == ("image_collapsed", "error", 2)
    assert (second.site, second.severity, second.since) == ("north", "warning", NOW - 75)
    assert second.text == "north is silent for 75 s"


def test_the_evaluator_is_named_as_what_it_is() -> None:
    (silent,) = with_alarms(changed({}), measured(silent_s=75.0, heard=NOW - 75)).alarms
    assert silent.text == "the evaluator (held-out) is silent for 75 s"
    assert (silent.site, silent.since) == ("held-out", NOW - 75)
    (expires,) = with_alarms(changed({}), measured(heard=NOW, certificate_expires=NOW - 1)).alarms
    assert expires.text == "the evaluator (held-out)'s certificate ran out: it needs a new invitation"


def test_on_one_machine_a_living_trainer_that_gives_no_answer_is_named_too() -> None:
    view = replace(outcomes("late", "failed"), sites=(site(present=True), site("south", present=True)))
    assert fired(replace(view, deployed=False)) == ["silent_site"]
    assert fired(replace(view, deployed=True)) == []  # its courier beats: it is no silence


def test_a_budget_that_reaches_to_the_end_is_no_warning_and_one_that_does_not_is() -> None:
    rules = MonitorFile.read().rules
    for last_round, severity in ((None, "info"), (17, "warning")):
        (alarm,) = evaluate(rules, north(privacy=privacy(0.9, last_round=last_round)))
        assert (alarm.rule, alarm.severity) == ("epsilon_near_budget", severity)


def test_what_befalls_many_sites_is_one_line_for_people_and_every_site_for_machines() -> None:
    sites = tuple(site(f"s{i:02d}", silent_s=70.0 + i, heard=NOW - 70 - i) for i in range(50))
    alarms = evaluate(MonitorFile.read().rules, study(sites=sites))
    assert len(alarms) == 50
    (one,) = gathered(alarms)
    assert one.site is None and one.since == NOW - 119
    assert one.text.startswith("50 sites: s00, s01, ") and "and 42 others; of the first: s00 is silent" in one.text
    assert gathered(alarms[:5]) == alarms[:5]


def test_thresholds_come_from_the_rules() -> None:
    assert fired(curve(0.7, 0.66, model="image"), image_collapsed={"below": 0.68}) == ["image_collapsed"]
    assert fired(north(privacy=privacy(0.6)), epsilon_near_budget={"share": 0.5, "severity": "info"})


def test_no_word_of_a_site_but_a_stable_code_is_in_an_alarm() -> None:
    view = study(events=(refused(8), refused(9, id_=2, text="norm: <b>call 555</b>")))
    (loop,) = evaluate(MonitorFile.read().rules, study(events=(loud(9),)))
    assert loop.text == "the round loop raised evaluator in round 9: see the events"
    (alarm,) = evaluate(MonitorFile.read().rules, view)
    assert alarm.text == "north's update was not taken 2 times, last in round 9 (norm)"
