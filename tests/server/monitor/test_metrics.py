"""The scrape, read by Prometheus' own parser; dashboard and alert rules, which name nothing that is not there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.monitor.alarms import Machine, with_alarms
from server.monitor.metrics import _COUNTERS, _GAUGES, CONTENT_TYPE, render
from server.monitor.reading import read
from server.monitor.rules import MonitorFile
from server.monitor.view import Auc, Best, PartyView, StudyView
from simulations.benchmarks.staged_run import StagedRun, staged_protocol
from tests.server.monitor.views import NOW, privacy, refused, site, study

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "monitor"
HOSTILE = 'evil"} 1\nmammofed_site_up{site="x\\'


def full() -> StudyView:
    """A study of which everything is known."""
    view = study(
        deadline=NOW + 60, ends=NOW + 600, test={"fused": Auc(value=0.83)}, due=("south",), events=(refused(9),),
        best=Best(round=7, auc=Auc(value=0.82), model="fused", rule="best_selection_auc"),
        sites=(site(silent_s=90.0, privacy=privacy(0.9)), site("south")),
        evaluators=(PartyView(name="held-out", present=False, trainer_up=True, heard=NOW - 70, clock_ahead_s=0.1,
                              certificate_expires=NOW + 1),),
    )  # fmt: skip
    rounds = (*view.rounds[:-1], replace(view.rounds[-1], auc={"fused": Auc(value=0.81, low=0.75, high=0.86)}))
    return with_alarms(MonitorFile.read().rules, replace(view, rounds=rounds))


def scrape(*views: StudyView, machine: Machine | None = None) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name, as a Prometheus has them."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(render(views, machine=machine).decode()):
        assert family.documentation and family.name.startswith("mammofed_")
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def only(found: dict[str, list[tuple[dict[str, str], float]]], name: str, **labels: str) -> float:
    (value,) = [value for there, value in found[name] if labels.items() <= there.items()]
    return value


@cache
def names() -> frozenset[str]:
    return frozenset(scrape(full(), machine=Machine(free_bytes=10**12)))


def test_a_scrape_says_what_the_view_says() -> None:
    found = scrape(full(), machine=Machine(free_bytes=10**12))
    assert only(found, "mammofed_study_status", status="running") == 1
    assert sum(value for _, value in found["mammofed_study_status"]) == 1
    assert only(found, "mammofed_selection_auc", model="fused", study="quick", run="quick-1") == 0.81
    assert only(found, "mammofed_site_epsilon", site="north") == 7.2
    assert only(found, "mammofed_site_rounds_total", site="south", outcome="contributed") == 9
    assert only(found, "mammofed_network_bytes_total", direction="up") == 18_000
    assert only(found, "mammofed_alarm", rule="silent_site", site="north", severity="warning") == 1
    assert only(found, "mammofed_evaluator_up", site="held-out") == 0
    assert only(found, "mammofed_evaluator_certificate_expiry_timestamp_seconds") == NOW + 1
    assert only(found, "mammofed_site_phase_seconds", site="north", phase="train") == 2.0
    assert only(found, "mammofed_site_round_trip_seconds", site="north") == 3.5
    assert only(found, "mammofed_round_due_sites") == 1 and only(found, "mammofed_disk_free_bytes") == 10**12


def test_every_metric_of_the_tables_can_be_scraped() -> None:
    assert names() == {*(f"mammofed_{name}" for name in _GAUGES), *(f"mammofed_{name}_total" for name in _COUNTERS),
                       "mammofed_build_info"}  # fmt: skip


def test_what_is_not_known_is_left_out() -> None:
    bare = StudyView(run="r", name="n", now=NOW, status="preparing", sentence="", sites=(
        site(present=None, trainer_up=None, heard=None, seconds=None, clock_ahead_s=None, certificate_expires=None,
             privacy=None, phases=None, rounds={}),))  # fmt: skip
    found = scrape(bare)
    assert not {name for name in found if name.startswith("mammofed_site_")} - {"mammofed_site_network_bytes_total"}
    assert "mammofed_selection_auc" not in found and "mammofed_disk_free_bytes" not in found


def test_runs_of_one_study_are_kept_apart_and_no_series_comes_twice() -> None:
    found = scrape(full(), replace(full(), run="quick-2"))
    for name, samples in found.items():
        keys = [tuple(sorted(labels.items())) for labels, _ in samples]
        assert len(keys) == len(set(keys)), name
    assert len(found["mammofed_round"]) == 2


def test_a_hostile_name_is_one_label_and_no_series_of_its_own() -> None:
    found = scrape(study(name=HOSTILE, sites=(site(HOSTILE),)))
    assert [labels["site"] for labels, _ in found["mammofed_site_up"]] == [HOSTILE]


def test_nothing_to_show_is_a_valid_answer_too() -> None:
    assert scrape().keys() == {"mammofed_build_info"}
    assert CONTENT_TYPE.startswith("text/plain; version=")


def test_a_run_on_the_disk_can_be_scraped(tmp_path: Path) -> None:
    with StagedRun(tmp_path / "run", staged_protocol(sites=["east", "west"], rounds=3), started=NOW) as run:
        run.begin()
        run.round(1)
        run.round(2, outcomes={"west": ("late", "late: no reply within 600 s")})
        found = scrape(read(tmp_path / "run", now=run.now))
    assert only(found, "mammofed_rounds_closed") == 2 and only(found, "mammofed_rounds_planned") == 3
    assert only(found, "mammofed_site_rounds_total", site="west", outcome="late") == 1
    assert only(found, "mammofed_events_total", severity="warning") == 1
    phases = {labels["site"]: value for labels, value in found["mammofed_site_phase_seconds"]
              if labels["phase"] == "send"}  # fmt: skip
    assert phases.keys() == {"east"}, "of a site that did not answer nothing is known, which is no zero"


# --- what is made for Prometheus and Grafana ---


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\bmammofed_[a-z_]+", text))


def dashboard() -> dict[str, Any]:
    return dict(json.loads((CONFIGS / "grafana.json").read_text()))


def alert_rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((CONFIGS / "prometheus.rules.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def test_every_metric_that_the_dashboard_names_exists() -> None:
    found = {name for panel in dashboard()["panels"] for target in panel["targets"]
             for name in metrics_in(target["expr"])}  # fmt: skip
    found |= metrics_in(json.dumps(dashboard()["templating"]))
    assert len(found) > 15 and found <= names()


def test_every_metric_that_an_alert_rule_names_exists() -> None:
    found = {name for rule in alert_rules() for name in metrics_in(rule["expr"])}
    assert len(found) > 5 and found <= names()


def test_alert_rules_are_whole_and_the_dashboard_s_panels_do_not_overlap() -> None:
    assert len({rule["alert"] for rule in alert_rules()}) == len(alert_rules())
    assert all({"alert", "expr", "labels", "annotations"} <= rule.keys() for rule in alert_rules())
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells)) and all(x < 24 for x, _ in cells)
    assert all(panel["title"] and panel["datasource"]["uid"] == "${datasource}" for panel in dashboard()["panels"])


@pytest.mark.parametrize("label", ["study", "run"])
def test_every_panel_follows_the_dashboard_s_choice(label: str) -> None:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            assert f'{label}=~"${label}"' in target["expr"], panel["title"]
