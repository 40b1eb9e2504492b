"""Reads what a run directory says about its study into plain values for the report; nothing here decides or draws.

Sources: `summary.json` (schema in `server/rounds/summary.schema.json`), `protocol.json`, and `journal.sqlite` for what
only the journal has: participation round by round, events. The journal is opened read-only, so that a report can be
written of a running study.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.reporting.data_words import data_kind
from shared_model.bounded import json_object, read_at_most
from shared_model.errors import StorageError
from shared_model.protocol import Protocol

MAX_JSON_BYTES = 64 << 20
MAX_EVENTS = 500  # the report shows the latest; the journal keeps them all
DELTAS_NAME = "privacy-deltas.json"  # {site: {delta as written: epsilon}}, written by the launcher
MODELS = ("fused", "image", "clinical")


@dataclass(frozen=True)
class Curve:
    """AUC on `selection` of one model: rounds R and values in [0, 1], equally long."""

    model: str
    rounds: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class JournalEvent:
    """One line of the journal's events. time: UTC, in words."""

    time: str
    severity: str
    code: str
    site: str
    round: int | None
    text: str


@dataclass(frozen=True)
class Facts:
    """All that the report is made of.

    data: what the women are (`data_words.data_kind` of the launch: `synthetic`, `mini_mias_composite`), or empty when
        nobody said.
    other_deltas: epsilon by site at further deltas, as written; empty when nobody computed them (it takes a torch).
    participation: outcome by (site, round) of the last attempt; reasons: words beside it where there are any.
    events: those above `info`, oldest first; events_left_out: how many older ones are not among them.
    selection: women of the selection split and those of them with cancer; None where it was never evaluated.
    """

    run_dir: Path
    summary: Mapping[str, Any]
    protocol: Protocol
    data: str
    curves: tuple[Curve, ...]
    other_deltas: Mapping[str, Mapping[str, float]]
    participation: Mapping[tuple[str, int], str]
    reasons: Mapping[tuple[str, int], str]
    events: tuple[JournalEvent, ...]
    events_left_out: int
    selection: tuple[int, int] | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the study's sites in name order."""
        return tuple(sorted(site.name for site in self.protocol.federation.sites))

    @property
    def held_out(self) -> Mapping[str, Any]:
        """The held-out result on `test`, or empty when the study never got that far."""
        return mapping(mapping(self.summary.get("metrics")).get("held_out"))

    @property
    def privacy(self) -> Mapping[str, Mapping[str, Any]]:
        """Privacy spent by site; empty without privacy."""
        return mapping(self.summary.get("privacy"))


def mapping(value: object) -> Mapping[str, Any]:
    """`value` when it is a JSON object, an empty one otherwise (JSON null: not measured)."""
    return value if isinstance(value, dict) else {}


def read_facts(run_dir: Path) -> Facts:
    """Read a run directory.

    Raises:
        StorageError: summary or journal are absent or damaged.
        ProtocolError: `protocol.json` is absent, damaged or was changed after it was frozen.
    """
    protocol = Protocol.read(run_dir / "protocol.json")
    summary = read_object(run_dir / "summary.json")
    journal = run_dir / "journal.sqlite"
    if not journal.is_file():
        raise StorageError("the run directory has no journal", found=journal, expected="journal.sqlite of a study",
                           remedy="give the directory that `mammofed simulate` printed")  # fmt: skip
    try:
        connection = sqlite3.connect(f"{journal.resolve().as_uri()}?mode=ro", uri=True)
        try:
            return _from_journal(connection, run_dir=run_dir, summary=summary, protocol=protocol)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StorageError(f"cannot read {journal}: {error}", remedy="restore the file from the run's backup") from None


def data_of(run_dir: Path) -> str:
    """What the women of a run are (`data_words.data_kind`), or empty when nobody said.

    Raises:
        StorageError: `launch.json` is damaged.
    """
    launched = run_dir / "launch.json"  # only studies launched on one machine have it
    return data_kind(mapping(read_object(launched).get("cohort"))) if launched.is_file() else ""


def read_object(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file of bounded size.

    Raises:
        StorageError: absent, too large, or no JSON object.
    """
    data = read_at_most(path, MAX_JSON_BYTES, error=StorageError, remedy="let the study end first")
    return json_object(data, error=StorageError, source=str(path))


def _from_journal(
    connection: sqlite3.Connection, *, run_dir: Path, summary: Mapping[str, Any], protocol: Protocol
) -> Facts:
    outcomes: dict[tuple[str, int], str] = {}
    reasons: dict[tuple[str, int], str] = {}
    rows = connection.execute("SELECT site, round, outcome, reason FROM participation ORDER BY round, attempt")
    for site, number, outcome, reason in rows:
        outcomes[site, number] = outcome
        reasons[site, number] = reason or ""
    (loud,) = connection.execute("SELECT count(*) FROM events WHERE severity <> 'info'").fetchone()
    latest = connection.execute(
        "SELECT time, severity, code, site, round, text FROM events WHERE severity <> 'info' ORDER BY id DESC LIMIT ?",
        (MAX_EVENTS,),
    ).fetchall()
    events = tuple(
        JournalEvent(_utc(time), severity, code or "", site or "", number, text)
        for time, severity, code, site, number, text in reversed(latest)
    )
    return Facts(
        run_dir=run_dir, summary=summary, protocol=protocol, data=data_of(run_dir), curves=_curves(summary),
        other_deltas=read_other_deltas(run_dir), participation=outcomes, reasons=reasons, events=events,
        events_left_out=loud - len(events), selection=_selection(connection),
    )  # fmt: skip


def _selection(connection: sqlite3.Connection) -> tuple[int, int] | None:
    rows = connection.execute("SELECT document FROM reports WHERE scope = 'selection' ORDER BY round DESC LIMIT 1")
    for (text,) in rows:
        document = mapping(json.loads(text))
        if isinstance(document.get("n"), int) and isinstance(document.get("positives"), int):
            return document["n"], document["positives"]
    return None


def _utc(seconds: float) -> str:
    """Seconds since 1970 as a date and time of day, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _curves(summary: Mapping[str, Any]) -> tuple[Curve, ...]:
    rows = mapping(summary.get("metrics")).get("selection") or []
    curves = []
    for model in MODELS:
        points = [(row["round"], row["auc"][model]) for row in rows if row["auc"].get(model) is not None]
        if points:
            curves.append(Curve(model, tuple(p[0] for p in points), tuple(p[1] for p in points)))
    return tuple(curves)


def read_other_deltas(run_dir: Path) -> Mapping[str, Mapping[str, float]]:
    """Epsilon by site and delta out of `privacy-deltas.json`, empty when there is none."""
    path = run_dir / DELTAS_NAME
    return {site: mapping(row) for site, row in read_object(path).items()} if path.is_file() else {}
