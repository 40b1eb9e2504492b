"""`mammofed status`: how studies stand, for people and for scripts; the exit code says it in a number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from server.monitor.alarms import for_people, with_alarms
from server.monitor.draw import headline
from server.monitor.keeper import machine_of
from server.monitor.places import rules_of, runs_in
from server.monitor.reading import read
from server.monitor.view import StudyView
from shared_model.control import plain
from shared_model.errors import ConfigError

CODES: Final[dict[str, int]] = {
    "complete": 0, "running": 100, "preparing": 101, "stalled": 102, "incomplete": 103, "failed": 104,
    "unknown": 105,
}  # fmt: skip
"""Exit codes; in `shared_model/EXIT_CODES.md`. A code below 100 is of the command itself."""
WORST: Final = ("failed", "unknown", "stalled", "incomplete", "running", "preparing", "complete")


def views_of(target: Path, *, study: str | None = None, now: float | None = None) -> list[StudyView]:
    """The studies that `target` stands for, with their alarms.

    Raises:
        ConfigError: none is there, or none of that name.
    """
    file = rules_of(target)
    views = [with_alarms(file.rules, read(folder, now=now), machine_of(folder)) for folder in runs_in(target)]
    chosen = [view for view in views if study in (None, view.name, view.run)]
    if not chosen:
        raise ConfigError(f"no study {study} is in {target}", found=", ".join(view.run for view in views)[:300])
    return chosen


def exit_code(views: Sequence[StudyView]) -> int:
    """Of one study its code; of several that of the worst."""
    return CODES[min((view.status for view in views), key=WORST.index)]


def document(views: Sequence[StudyView]) -> dict[str, Any]:
    """What `--json` prints: a stable, small part of the views."""
    return {"schema_version": 1, "studies": [_study(view) for view in views]}


def show(views: Sequence[StudyView], *, as_json: bool) -> None:
    """Print it."""
    console = Console()
    if as_json:
        print_json = json.dumps(document(views), indent=1)
        console.print(print_json, markup=False, highlight=False, soft_wrap=True)
        return
    for view in views:
        line = headline(view)
        if len(views) > 1 or view.name != view.run:
            line.append(f"  ({plain(view.run)})", style="dim")
        console.print(line, soft_wrap=True)
        for alarm in for_people(view):
            console.print(f"  {alarm.severity}: {plain(alarm.text)}", markup=False, highlight=False, soft_wrap=True)


def _study(view: StudyView) -> dict[str, Any]:
    measured = [round_ for round_ in view.rounds if round_.auc]
    return {
        "run": view.run, "study": view.name, "status": view.status, "exit_code": CODES[view.status],
        "sentence": view.sentence, "state": view.state, "reason": view.reason, "round": view.round,
        "attempt": view.attempt, "closed": view.closed, "planned": view.planned, "quorum": view.quorum,
        "last_step": view.last_step, "deadline": view.deadline, "ends": view.ends,
        "protocol_sha256": view.protocol_sha256,
        "auc": {model: auc.value for model, auc in measured[-1].auc.items()} if measured else {},
        "best": {"round": view.best.round, "auc": view.best.auc.value, "chosen": view.best.chosen}
        if view.best is not None else None,
        "sites": [{"site": site.name, "now": site.now, "silent_s": site.silent_s, "heard": site.heard,
                   "rounds": dict(site.rounds),
                   "epsilon": site.privacy.epsilon if site.privacy else None,
                   "budget": site.privacy.budget if site.privacy else None} for site in view.sites],
        "evaluators": [{"evaluator": party.name, "silent_s": party.silent_s, "heard": party.heard}
                       for party in view.evaluators],
        "alarms": [{"rule": alarm.rule, "severity": alarm.severity, "site": alarm.site, "round": alarm.round,
                    "text": alarm.text} for alarm in view.alarms],
    }  # fmt: skip
