"""What Prometheus scrapes: every study that is shown, as metrics named `mammofed_*`; served at `/metrics`.

Made anew at each scrape from the same views as the page, so that both say the same. A number that is not known is left
out: no series is better than a zero. Labels hold names of studies, sites, rules and stable codes; no words of a site.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from server.monitor.alarms import Machine
from server.monitor.view import Auc, PartyView, SiteView, Status, StudyView
from shared_model.phases import PHASES

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4  # every Prometheus reads it
STUDY: Final = ("study", "run")
SITE: Final = ("study", "run", "site")
MODEL: Final = ("study", "run", "model")
ON_THE_WIRE: Final = ("study", "run", "direction")

Family = GaugeMetricFamily | CounterMetricFamily

_GAUGES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "study_status": ("1 for the word that the study's status is now, 0 for the others.", (*STUDY, "status")),
    "rounds_planned": ("Rounds of the protocol.", STUDY),
    "rounds_closed": ("Rounds that are done.", STUDY),
    "round": ("The newest round.", STUDY),
    "round_attempt": ("Attempt of the newest round.", STUDY),
    "round_duration_seconds": ("What a round takes, the median of the last ten.", STUDY),
    "round_deadline_timestamp_seconds": ("When the open round's deadline is.", STUDY),
    "study_started_timestamp_seconds": ("When the study began.", STUDY),
    "study_last_step_timestamp_seconds": ("When the round loop did something last.", STUDY),
    "study_ends_timestamp_seconds": ("When the study will end, as far as that can be told.", STUDY),
    "quorum_sites": ("Sites that a round needs.", STUDY),
    "round_contributed_sites": ("Sites that contributed to the newest round.", STUDY),
    "round_due_sites": ("Sites that the open round waits for.", STUDY),
    "selection_auc": ("AUC on the evaluator's selection women, of the last round that was measured.", MODEL),
    "selection_auc_low": ("Lower end of its 95 % interval.", MODEL),
    "selection_auc_high": ("Upper end of its 95 % interval.", MODEL),
    "selection_auc_round": ("The round that it is of.", STUDY),
    "best_auc": ("AUC of the best checkpoint.", STUDY),
    "best_round": ("Round of the best checkpoint.", STUDY),
    "test_auc": ("AUC on the held-out test, once it is opened.", MODEL),
    "disk_free_bytes": ("Free on the disk that the study is on.", STUDY),
    "alarm": ("1 while an alarm stands.", (*STUDY, "rule", "severity", "site")),
    "site_up": ("1 while the site's courier beats.", SITE),
    "site_trainer_up": ("1 while the site's trainer answers its courier.", SITE),
    "site_last_heard_timestamp_seconds": ("The site's last sign of life.", SITE),
    "site_train_seconds": ("What its last training took, as it says.", SITE),
    "site_phase_seconds": ("Its last round by phase: wait, load, train, mask, send.", (*SITE, "phase")),
    "site_round_trip_seconds": ("From its last request to the reply's arrival; the phases make it up.", SITE),
    "site_clock_ahead_seconds": ("Its clock less the coordinator's.", SITE),
    "site_certificate_expiry_timestamp_seconds": ("When its certificate runs out.", SITE),
    "evaluator_up": ("1 while the evaluator's courier beats.", SITE),
    "evaluator_trainer_up": ("1 while its trainer answers its courier.", SITE),
    "evaluator_last_heard_timestamp_seconds": ("Its last sign of life.", SITE),
    "evaluator_clock_ahead_seconds": ("Its clock less the coordinator's.", SITE),
    "evaluator_certificate_expiry_timestamp_seconds": ("When its certificate runs out.", SITE),
    "site_epsilon": ("Epsilon that its training patients have spent, at the protocol's delta.", SITE),
    "site_epsilon_budget": ("Epsilon that they may spend in this study.", SITE),
    "site_epsilon_projected": ("Epsilon at the study's end, if it takes part in all that is left.", SITE),
}
_COUNTERS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "network_bytes": ("Bytes of tensors and fields, both ways.", ON_THE_WIRE),
    "events": ("Events of the journal.", (*STUDY, "severity")),
    "site_rounds": ("Closed rounds of a site by outcome.", (*SITE, "outcome")),
    "site_network_bytes": ("Bytes of one site.", (*SITE, "direction")),
}


def render(views: Sequence[StudyView], *, machine: Machine | None = None) -> bytes:
    """The whole answer to a scrape. views: whole ones, with their alarms; no two of one run."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Views(views, machine or Machine()))
    return generate_latest(registry)


class _Views(Collector):
    """Hands the families to the library, which knows how to write them."""

    def __init__(self, views: Sequence[StudyView], machine: Machine) -> None:
        self._views, self._machine = views, machine

    def collect(self) -> Iterator[Metric]:
        """All families that have a number."""
        families = _Families()
        for view in self._views:
            _study(families, view)
            if self._machine.free_bytes is not None:
                families.set("disk_free_bytes", (view.name, view.run), self._machine.free_bytes)
            for site in view.sites:
                _site(families, view, site)
            for evaluator in view.evaluators:
                _party(families, view, evaluator, "evaluator")
        yield InfoMetricFamily("mammofed_build", "The release that this monitor is of.", {"release": _release()})
        yield from families.filled()


class _Families:
    """The tables above as families of the library."""

    def __init__(self) -> None:
        self._all: dict[str, Family] = {
            name: GaugeMetricFamily(f"mammofed_{name}", text, labels=labels)
            for name, (text, labels) in _GAUGES.items()
        } | {
            name: CounterMetricFamily(f"mammofed_{name}", text, labels=labels)
            for name, (text, labels) in _COUNTERS.items()
        }

    def set(self, name: str, labels: Sequence[str], value: float | int | bool | None) -> None:
        """Add a number; None is left out."""
        if value is not None:
            self._all[name].add_metric(list(labels), float(value))

    def filled(self) -> Iterator[Family]:
        """Those that have a number."""
        return (family for family in self._all.values() if family.samples)


def _study(families: _Families, view: StudyView) -> None:
    labels = (view.name, view.run)
    for status in get_args(Status):
        families.set("study_status", (*labels, status), status == view.status)
    for name, value in (
        ("rounds_planned", view.planned), ("rounds_closed", view.closed), ("round", view.round),
        ("round_attempt", view.attempt), ("round_duration_seconds", view.round_s), ("quorum_sites", view.quorum),
        ("round_deadline_timestamp_seconds", view.deadline), ("study_started_timestamp_seconds", view.started),
        ("study_last_step_timestamp_seconds", view.last_step), ("study_ends_timestamp_seconds", view.ends),
        ("round_contributed_sites", view.contributed), ("round_due_sites", len(view.due)),
    ):  # fmt: skip
        families.set(name, labels, value)
    measured = [round_ for round_ in view.rounds if round_.auc]
    if measured:
        families.set("selection_auc_round", labels, measured[-1].number)
        for model, auc in measured[-1].auc.items():
            _auc(families, "selection_auc", (*labels, model), auc)
    if view.best is not None:
        families.set("best_auc", labels, view.best.auc.value)
        families.set("best_round", labels, view.best.round)
    for model, auc in view.test.items():
        families.set("test_auc", (*labels, model), auc.value)
    for direction, count in (("up", view.bytes_up), ("down", view.bytes_down)):
        families.set("network_bytes", (*labels, direction), count)
    for severity, count in Counter(event.severity for event in view.events).items():
        families.set("events", (*labels, severity), count)
    for key in dict.fromkeys((alarm.rule, alarm.severity, alarm.site or "") for alarm in view.alarms):
        families.set("alarm", (*labels, *key), 1)


def _auc(families: _Families, name: str, labels: Sequence[str], auc: Auc) -> None:
    for suffix, value in (("", auc.value), ("_low", auc.low), ("_high", auc.high)):
        families.set(f"{name}{suffix}", labels, value)


def _site(families: _Families, view: StudyView, site: SiteView) -> None:
    labels = (view.name, view.run, site.name)
    _party(families, view, site, "site")
    families.set("site_train_seconds", labels, site.seconds)
    if site.phases is not None:
        families.set("site_round_trip_seconds", labels, site.phases.round_trip)
        for phase in PHASES:
            families.set("site_phase_seconds", (*labels, phase), getattr(site.phases, phase))
    if site.privacy is not None:
        families.set("site_epsilon", labels, site.privacy.epsilon)
        families.set("site_epsilon_budget", labels, site.privacy.budget)
        families.set("site_epsilon_projected", labels, site.privacy.projected)
    for outcome, count in site.rounds.items():
        families.set("site_rounds", (*labels, outcome), count)
    for direction, size in (("up", site.bytes_up), ("down", site.bytes_down)):
        families.set("site_network_bytes", (*labels, direction), size)


def _party(families: _Families, view: StudyView, party: PartyView, kind: str) -> None:
    for name, value in (
        ("up", party.present), ("trainer_up", party.trainer_up), ("last_heard_timestamp_seconds", party.heard),
        ("clock_ahead_seconds", party.clock_ahead_s),
        ("certificate_expiry_timestamp_seconds", party.certificate_expires),
    ):  # fmt: skip
        families.set(f"{kind}_{name}", (view.name, view.run, party.name), value)


def _release() -> str:
    try:
        return version("mammofed")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
