"""What the monitors ask of a journal: one read transaction over a read-only handle, and plain values out of it.

The round loop writes in WAL mode, so that a reader never makes it wait; the transaction is short, so that the log can
be folded back into the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.monitor.sums import summed
from server.rounds.states import RoundState

Row = tuple[Any, ...]
BUSY_S = 0.5
PHASES = "wait, load, train, mask, send, round_trip"
MAX_HEADS = 64


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One look at a journal. `new_*`: above the cursor, or of the rounds that something new is about; others whole.

    meta: values of `meta`. newest: (round, attempt, state, opened, seconds) of the newest attempt. durations: seconds
    of the last closed rounds. totals: (site, outcome, closed, rows, bytes up, bytes down). spent: (site, round,
    epsilon, budget, delta, steps) of the last report of each site. heard: (site, kind, code, last time, its text).
    test: (AUC, low, high) by model. best: (round, AUC, women, positives) of the best checkpoint. latest: see
    `_latest_cells`. asked: sites that the newest attempt's request went to. waits: the loop's own words while it waits
    for lost parties. new_phases: by (round, attempt, site); latest_phases: of `latest`, by site; columns: `PHASES`.
    """

    last_event: int
    last_step: int
    whole: bool
    meta: Mapping[str, Any]
    started: float | None
    stepped: float | None
    closed: int
    newest: Row | None
    durations: Sequence[float]
    reports_bytes: tuple[int, int]
    totals: Sequence[Row]
    spent: Sequence[Row]
    heard: Sequence[Row]
    test: Mapping[str, Any]
    best: Row | None
    latest: Sequence[Row]
    asked: frozenset[str]
    waits: str
    last_finished: Row | None
    new_events: Sequence[Row] = ()
    new_rounds: Sequence[Row] = ()
    new_steps: Mapping[int, Sequence[Row]] = field(default_factory=dict)
    new_cells: Mapping[int, Sequence[Row]] = field(default_factory=dict)
    new_measured: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    new_phases: Mapping[tuple[int, int, str], Row] = field(default_factory=dict)
    latest_phases: Mapping[str, Row] = field(default_factory=dict)


_HEADS: dict[Path, tuple[tuple[Any, ...], dict[str, Any]]] = {}  # by journal: what it looked like, what it said


def read_rows(journal: Path, *, event: int | None, step: int | None, score: str, rule: str) -> Rows | None:
    """All of it, or None while there is no journal or it has no tables yet.

    Args:
        event, step: numbers up to which the caller knows everything; 0: nothing; None: all that there is.
        score, rule: whose AUC chooses the round, and how; of the protocol.

    Raises:
        sqlite3.Error: the file is damaged, or no journal. OSError: it cannot be reached.
    """
    if not journal.exists():
        return None
    with closing(_open(journal)) as db:
        db.execute("BEGIN")
        try:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'privacy'").fetchone():
                return None
            return _read(db, journal, event, step, score, rule)
        finally:
            db.execute("ROLLBACK")


def _open(journal: Path) -> sqlite3.Connection:
    uri = f"{journal.absolute().as_uri()}?mode=ro"
    db = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)
    try:
        db.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:  # a folder that this user may not write: SQLite cannot make its index there
        db.close()
        if journal.with_name(f"{journal.name}-wal").exists():
            raise
        db = sqlite3.connect(f"{uri}&immutable=1", uri=True, timeout=BUSY_S, isolation_level=None)
    return db


def _read(
    db: sqlite3.Connection, journal: Path, event: int | None, step: int | None, score: str, rule: str
) -> Rows:
    (last_event,), (last_step,) = (
        db.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone() for table in ("events", "steps")  # noqa: S608
    )
    event, step = last_event if event is None else event, last_step if step is None else step
    whole = event == 0 == step or event > last_event or step > last_step
    if whole:
        event = step = 0
    meta = {key: json.loads(value) for key, value in db.execute("SELECT key, value FROM meta")}
    mark = (meta.get("protocol_sha256"), score, rule, last_event, last_step, json.dumps(meta, sort_keys=True))
    known = _HEADS.get(journal)
    head = known[1] if known is not None and known[0] == mark else _head(db, journal, last_event, score, rule)
    if len(_HEADS) >= MAX_HEADS:
        _HEADS.clear()
    _HEADS[journal] = mark, head
    return Rows(last_event=last_event, last_step=last_step, whole=whole, meta=meta, **head,
                **_new(db, event, step, whole=whole))  # fmt: skip


def _head(db: sqlite3.Connection, journal: Path, last_event: int, score: str, rule: str) -> dict[str, Any]:
    """All that is told whole; it is reckoned again only when something was added."""
    closed = RoundState.CLOSED.value
    newest = db.execute(
        "SELECT round, attempt, state, opened, seconds FROM rounds ORDER BY round DESC, attempt DESC LIMIT 1"
    ).fetchone()
    documents = db.execute("SELECT document FROM reports WHERE scope = 'test' ORDER BY round DESC LIMIT 1").fetchone()
    return {
        "newest": newest,
        "started": _one(db, "SELECT min(started) FROM sessions"),
        "stepped": _one(db, "SELECT time FROM steps ORDER BY id DESC LIMIT 1"),
        "closed": int(_one(db, f"SELECT max(round) FROM rounds WHERE state = '{closed}'") or 0),  # noqa: S608
        "durations": [float(row[0]) for row in db.execute(
            "SELECT seconds FROM rounds WHERE state = ? ORDER BY round DESC LIMIT 10", (closed,))],
        "reports_bytes": db.execute(
            "SELECT coalesce(sum(bytes_up), 0), coalesce(sum(bytes_down), 0) FROM reports").fetchone(),
        **summed(db, journal, newest=int(newest[0]) if newest else 0, event=last_event),
        "test": _aucs_of(json.loads(documents[0])) if documents else {},
        "best": _best(db, score, rule), "latest": _latest_cells(db), "waits": _waits(db),
        "latest_phases": _latest_phases(db),
        "asked": _asked(db) if newest and newest[2] == RoundState.OPENED.value else frozenset(),
        "last_finished": db.execute(
            "SELECT text, code FROM events WHERE kind = 'finished' ORDER BY id DESC LIMIT 1").fetchone(),
    }  # fmt: skip


def _new(db: sqlite3.Connection, event: int, step: int, *, whole: bool) -> dict[str, Any]:
    """What is above the cursor: events, and whole rounds that a new event or step is about."""
    events = db.execute(
        "SELECT id, time, kind, severity, code, round, attempt, site, text, data FROM events WHERE id > ? ORDER BY id",
        (event,),
    ).fetchall()
    touched = {int(row[0]) for row in db.execute("SELECT DISTINCT round FROM steps WHERE id > ?", (step,))}
    touched |= {int(row[5] or 0) for row in events}
    numbers = sorted(touched)

    def among(query: str) -> Iterable[Row]:
        if whole:
            return db.execute(query.format(""))
        # Few rounds: one look by key each, never a list of values in SQL.
        return (row for number in numbers for row in db.execute(query.format("AND round = ?"), (number,)))

    steps: dict[int, list[Row]] = defaultdict(list)
    for number, *rest in among("SELECT round, attempt, step, time FROM steps WHERE round > 0 {} ORDER BY id"):
        steps[number].append(tuple(rest))
    cells: dict[int, list[Row]] = defaultdict(list)
    for number, *rest in among(
        "SELECT p.round, p.attempt, p.site, p.outcome, p.reason, p.seconds, p.bytes_up, p.bytes_down, "
        "(SELECT epsilon FROM privacy v WHERE v.round = p.round AND v.site = p.site AND v.release = 'training'), "
        "(SELECT value FROM metrics m WHERE m.round = p.round AND m.scope = 'training' AND m.site = p.site "
        "AND m.name = 'loss'), "
        "(SELECT value FROM metrics m WHERE m.round = p.round AND m.scope = 'influence' AND m.site = p.site "
        "AND m.name = 'norm'), "
        "(SELECT value FROM metrics m WHERE m.round = p.round AND m.scope = 'influence' AND m.site = p.site "
        "AND m.name = 'cosine') FROM (SELECT * FROM participation WHERE true {}) p ORDER BY p.round, p.attempt, p.site"
    ):
        cells[number].append(tuple(rest))
    phases: dict[tuple[int, int, str], Row] = {}
    if _has_phases(db):
        query = f"SELECT round, attempt, site, {PHASES} FROM phases WHERE true {{}}"  # noqa: S608
        for number, attempt, site, *rest in among(query):
            phases[number, attempt, site] = tuple(rest)
    measured: dict[int, dict[str, float]] = defaultdict(dict)
    for number, name, value in among(
        "SELECT round, name, value FROM metrics WHERE scope IN ('initial', 'selection') {}"
    ):
        measured[number][name] = float(value)
    return {
        "new_events": events, "new_steps": steps, "new_cells": cells, "new_measured": measured, "new_phases": phases,
        "new_rounds": list(among(
            "SELECT round, attempt, state, opened, seconds, weights_before, weights_after FROM rounds WHERE true {} "
            "ORDER BY round, attempt")),
    }  # fmt: skip


def _latest_cells(db: sqlite3.Connection) -> list[Row]:
    """Participation of the newest attempt that has any: (round, attempt, site, outcome, reason, seconds)."""
    last = db.execute("SELECT round, attempt FROM participation ORDER BY round DESC, attempt DESC LIMIT 1").fetchone()
    if last is None:
        return []
    return db.execute(
        "SELECT round, attempt, site, outcome, reason, seconds FROM participation WHERE round = ? AND attempt = ?", last
    ).fetchall()


def _latest_phases(db: sqlite3.Connection) -> dict[str, Row]:
    """Phases of the same attempt by site."""
    last = db.execute("SELECT round, attempt FROM participation ORDER BY round DESC, attempt DESC LIMIT 1").fetchone()
    if last is None or not _has_phases(db):
        return {}
    query = f"SELECT site, {PHASES} FROM phases WHERE round = ? AND attempt = ?"  # noqa: S608
    return {str(site): tuple(rest) for site, *rest in db.execute(query, last)}


def _has_phases(db: sqlite3.Connection) -> bool:
    """Whether the journal is of a release that notes them."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'phases'").fetchone() is not None


def _asked(db: sqlite3.Connection) -> frozenset[str]:
    """Sites that a request of the newest attempt went to."""
    found = set()
    for kind, site in db.execute("SELECT kind, site FROM events ORDER BY id DESC"):  # its events are the last ones
        if kind == "round_opened":
            break
        if kind == "site_started":
            found.add(str(site))
    return frozenset(found)


def _waits(db: sqlite3.Connection) -> str:
    """What the loop said when it began to wait; it is over with the next event that is no coming or going."""
    for kind, text in db.execute("SELECT kind, text FROM events ORDER BY id DESC"):
        if kind not in ("site_present", "site_absent"):
            return str(text) if kind == "waiting" else ""
    return ""


def _best(db: sqlite3.Connection, score: str, rule: str) -> Row | None:
    """(round, AUC, women, positives) of the chosen round, or of the one that the rule would choose now."""
    chosen = db.execute("SELECT value FROM meta WHERE key = 'chosen'").fetchone()
    number = json.loads(chosen[0])["round"] if chosen else None
    order = "round DESC" if rule == "last" else "value DESC, round"
    found = db.execute(
        f"SELECT round, value FROM metrics WHERE scope = 'selection' AND name = ? AND round = coalesce(?, round) "  # noqa: S608
        f"ORDER BY {order} LIMIT 1", (f"auc_{score}", number),
    ).fetchone()  # fmt: skip
    if found is None:
        return None
    counts = dict(db.execute(
        "SELECT name, value FROM metrics WHERE round = ? AND scope = 'selection' AND name IN ('n', 'positives')",
        found[:1],
    ))  # fmt: skip
    return (*found, counts.get("n"), counts.get("positives"))


def _one(db: sqlite3.Connection, query: str) -> float | None:
    row = db.execute(query).fetchone()
    return None if row is None or row[0] is None else float(row[0])


def _aucs_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """(value, low, high) by model, out of a `test` document."""
    models = document.get("models")
    found = models.items() if isinstance(models, Mapping) else ()
    return {name: (row.get("auc"), row.get("auc_low"), row.get("auc_high")) for name, row in found
            if isinstance(row, Mapping)}  # fmt: skip
