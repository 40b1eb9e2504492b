"""Writes `summary.json`, what a study came to, from its journal and protocol. Called by the loop and by the CLI.

The document is described, field by field, in `summary.schema.json` beside this file and checked against it before it is
written. Writing it again from the same journal gives the same document.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from server.rounds.checkpoint import write_bytes
from server.rounds.joint import JOINT
from server.rounds.journal import Journal
from server.rounds.measure import auc_of
from server.rounds.states import RoundState, StudyState
from shared_model.errors import MammoFedError, StorageError
from shared_model.passport import PASSPORT, SignedPassport
from shared_model.protocol import Protocol

SUMMARY_VERSION = 1
ENDED = (StudyState.COMPLETE, StudyState.INCOMPLETE, StudyState.STOPPED)


def write_summary(run_dir: Path) -> dict[str, Any]:
    """Write `summary.json` of a run directory and return its content. That of a COMPLETE study whose passport names it
    stays as it was signed: a later release may say more, and would make the passport void.

    Raises:
        StorageError: no journal, or the file cannot be written.
        ProtocolError: `protocol.json` is absent or was changed.
    """
    protocol = Protocol.read(run_dir / "protocol.json")
    path = run_dir / "journal.sqlite"
    if not path.is_file():
        raise StorageError("the run directory has no journal", found=path, expected="journal.sqlite of a study")
    if (signed := _signed(run_dir)) is not None:
        return signed
    with Journal(path, lambda _: None) as journal:
        document = summarise(journal, protocol)
    errors = validator().iter_errors(document)
    faults = [f"{'/'.join(map(str, error.path)) or 'summary'}: {error.message[:200]}" for error in errors]
    if faults:
        raise StorageError(f"the summary breaks its own schema: {'; '.join(faults[:5])}", remedy="report this")
    write_bytes(run_dir / "summary.json", (json.dumps(document, indent=2) + "\n").encode())
    return document


def _signed(run_dir: Path) -> dict[str, Any] | None:
    """The summary that lies there, if it is of a COMPLETE study and its passport vouches for it."""
    try:
        data = (run_dir / "summary.json").read_bytes()
        named = {part.name: part.sha256 for part in SignedPassport.read(run_dir / PASSPORT).passport.files}
    except (OSError, MammoFedError):
        return None
    if named.get("summary.json") != hashlib.sha256(data).hexdigest():
        return None
    document: dict[str, Any] = json.loads(data)
    return document if document["status"] == StudyState.COMPLETE.value else None


@cache
def validator() -> Draft202012Validator:
    """Validator of `summary.schema.json`."""
    text = files("server.rounds").joinpath("summary.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text))


def summarise(journal: Journal, protocol: Protocol) -> dict[str, Any]:
    """The content of `summary.json`. A study that is running or was killed counts as INCOMPLETE."""
    state, chosen = journal.study_state(), journal.get("chosen")
    bytes_up, bytes_down = _traffic(journal)
    return {
        "summary_version": SUMMARY_VERSION,
        "status": state.value if state in ENDED else StudyState.INCOMPLETE.value,
        "study": protocol.study,
        "protocol_sha256": protocol.sha256,
        "rounds_planned": protocol.rounds,
        "rounds_completed": journal.last_closed(),
        "participation": _participation(journal, protocol),
        "metrics": {
            "held_out": _held_out(journal, chosen),
            "selection": _selection(journal),
            "sites": _sites(journal),
            "joint": _joint(journal),
        },
        "privacy_mode": protocol.privacy.mode,
        "privacy": _privacy(journal, protocol),
        "seconds": round(sum(row[0] for row in journal.rows("SELECT seconds FROM sessions")), 3),
        "bytes": {"up": bytes_up, "down": bytes_down},
        "versions": {"release": protocol.release, **_versions(journal)},
        "model": chosen,
        "alarms": _alarms(journal),
    }


def _participation(journal: Journal, protocol: Protocol) -> dict[str, dict[str, int]]:
    """Closed rounds by outcome for each site: the attempt that closed the round counts."""
    counts: dict[str, Counter[str]] = {site.name: Counter() for site in protocol.federation.sites}
    rows = journal.rows(
        "SELECT site, outcome FROM participation JOIN rounds USING (round, attempt) WHERE state = ?",
        RoundState.CLOSED.value,
    )
    for site, outcome in rows:
        counts[site][outcome] += 1
    return {site: dict(sorted(counter.items())) for site, counter in sorted(counts.items())}


def _held_out(journal: Journal, chosen: dict[str, Any] | None) -> dict[str, Any] | None:
    """The `test` document of the chosen model, with the initial model's row; None until `test` was opened."""
    document = None if chosen is None else journal.document(int(chosen["round"]), "test")
    if document is None:
        return None
    models = (journal.document(0, "test_initial") or {}).get("models") or {}
    # Before any training the table's part says nothing, and the fused logit is the image logit.
    return {**document, "public_weights": models.get("image") or models.get("fused")}


def _selection(journal: Journal) -> list[dict[str, Any]]:
    """AUC on `selection` by round, the initial weights as round 0."""
    rows = journal.rows("SELECT round, document FROM reports WHERE scope IN ('initial', 'selection') ORDER BY round")
    return [{"round": number, "auc": auc_of(json.loads(text))} for number, text in rows]


def _sites(journal: Journal) -> dict[str, Any]:
    """The document that each site released about its own test women."""
    rows = journal.rows("SELECT site, document FROM reports WHERE scope = 'site' ORDER BY site")
    # Noised counts stay in the journal: here is what they say.
    return {site: {k: v for k, v in json.loads(text).items() if k != "counts"} for site, text in rows}


def _joint(journal: Journal) -> dict[str, Any] | None:
    """What the women of all sites together say, from joint histograms; None where there were none."""
    rows = journal.rows("SELECT document FROM reports WHERE scope = ?", JOINT)
    return json.loads(rows[0][0]) if rows else None


def _alarms(journal: Journal) -> list[dict[str, Any]]:
    names = ("time", "severity", "code", "round", "site", "text")
    rows = journal.rows("SELECT time, severity, code, round, site, text FROM events WHERE kind = 'alarm' ORDER BY id")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _privacy(journal: Journal, protocol: Protocol) -> dict[str, dict[str, Any]]:
    """State of each site's accountant for its training patients after its last answer; `metrics_epsilon` is what the
    histogram cost its own test women. No woman is in both groups, so for any one the greater of the two holds."""
    spent: dict[str, dict[str, Any]] = {}
    rows = journal.rows(
        "SELECT site, release, unit, epsilon, delta, adjacency, accountant, noise_multiplier, sample_rate, budget, "
        "steps FROM privacy ORDER BY site, release DESC, steps"
    )
    names = (
        "unit", "epsilon", "delta", "adjacency", "accountant", "noise_multiplier", "sampling_rate", "budget", "steps",
    )  # fmt: skip
    for site, release, *values in rows:
        row = dict(zip(names, values, strict=True))
        if release == "training":
            spent[site] = row
        else:  # of a site that never answered in training, nothing is known there; its own ledger knows
            unknown = {
                **row, "epsilon": None, "steps": None, "noise_multiplier": protocol.privacy.noise_multiplier,
                "sampling_rate": protocol.training.sample_rate,
            }  # fmt: skip
            spent.setdefault(site, unknown)["metrics_epsilon"] = row["epsilon"]
    return spent


def _traffic(journal: Journal) -> tuple[int, int]:
    """Bytes of tensors and fields, from all parties and to them; retries count."""
    query = "SELECT coalesce(sum(bytes_up), 0), coalesce(sum(bytes_down), 0) FROM "
    (training,), (reports,) = journal.rows(query + "participation"), journal.rows(query + "reports")
    return training[0] + reports[0], training[1] + reports[1]


def _versions(journal: Journal) -> dict[str, str]:
    rows = journal.rows("SELECT versions FROM sessions ORDER BY id DESC LIMIT 1")
    return dict(json.loads(rows[0][0])) if rows else {}
