"""`comparison.json`: what several studies came to, a row a job; its schema lies beside this file. Called by the CLI."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from server.reporting.answer import difference_interval, unheard_sites
from server.rounds.checkpoint import write_bytes
from shared_model.errors import MammoFedError, StorageError
from simulations.comparison.jobs import Job, common_overrides
from simulations.comparison.scores import paired_difference, vendor_groups
from simulations.comparison.studies import StudyResult, read_study

COMPARISON_VERSION = 1
MODELS = ("fused", "image", "clinical", "public_weights")
Document = dict[str, Any]
NOTHING: Document = {  # the row of a study of which nothing is known
    "status": "FAILED", "study": None, "protocol_sha256": None, "rounds_planned": None, "rounds_completed": None,
    "n": None, "positives": None, "auc": dict.fromkeys(MODELS), "difference": None, "sites": None, "contributed": None,
    "worst_site": None, "epsilon": None, "epsilon_is_known": True, "seconds": None, "bytes": None, "vendors": None,
}  # fmt: skip


def compare(jobs: Sequence[Job]) -> Document:
    """The content of `comparison.json`; differences are to the first job.

    A job whose directory cannot be read is a row that says why, so that one broken study does not hide the others.
    """
    shared = common_overrides(jobs)
    rows: list[Document] = []
    first: StudyResult | None = None
    for job in jobs:
        result, error, row = None, job.error, NOTHING
        try:
            result = read_study(job.run_dir)
            row = _row(result, first)
            error = error or result.note
        except MammoFedError as problem:
            error = error or str(problem)
        if not rows:
            first = result
        rows.append({
            "run_dir": str(job.run_dir), "overrides": list(job.overrides),
            "differs": [override for override in job.overrides if override not in shared],
            "exit_code": job.exit_code, "error": error[:500], **row,
        })  # fmt: skip
    return {"comparison_version": COMPARISON_VERSION, "common": list(shared), "jobs": rows}


def write_comparison(document: Document, path: Path) -> None:
    """Check the document against its schema and write it.

    Raises:
        StorageError: it cannot be written.
    """
    faults = [f"{'/'.join(map(str, e.path))}: {e.message[:200]}" for e in validator().iter_errors(document)]
    if faults:
        raise StorageError(f"the comparison breaks its own schema: {'; '.join(faults[:5])}", remedy="report this")
    write_bytes(path, (json.dumps(document, indent=2) + "\n").encode())


@cache
def validator() -> Draft202012Validator:
    """Validator of `comparison.schema.json`."""
    text = files("simulations.comparison").joinpath("comparison.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text))


def _row(result: StudyResult, first: StudyResult | None) -> Document:
    """A study's part of the comparison; `first` is None for the first study itself, or when that one failed."""
    summary, participation = result.summary, result.summary["participation"]
    spent = [row["epsilon"] for row in summary["privacy"].values() if row["epsilon"] is not None]
    return {
        **{key: summary[key] for key in ("status", "study", "protocol_sha256", "rounds_planned", "rounds_completed")},
        "n": result.held_out.get("n"),
        "positives": result.held_out.get("positives"),
        "auc": {name: result.model(name) for name in MODELS},
        "difference": None if first is None else _difference(result, first),
        "sites": len(result.protocol.federation.sites),
        "contributed": sum(bool(counts.get("contributed")) for counts in participation.values()),
        "worst_site": _worst_site(result),
        "epsilon": max(spent, default=None),
        "epsilon_is_known": not (result.protocol.private and unheard_sites(summary)),
        "seconds": summary["seconds"],
        "bytes": sum(summary["bytes"].values()),
        "vendors": _vendors(result, first),
    }  # fmt: skip


def _difference(result: StudyResult, first: StudyResult) -> Document | None:
    """Fused AUC minus the first study's: paired on the same women, else as if on different ones."""
    if result.scores is not None and first.scores is not None:
        paired = paired_difference(result.scores, first.scores, confidence=result.confidence)
        if paired is not None:
            return paired
    mine, other = result.model("fused"), first.model("fused")
    if mine is None or other is None:
        return None
    row: Document = {"value": mine["auc"] - other["auc"], "low": None, "high": None, "p": None, "method": "unpaired"}
    if None not in (*mine.values(), *other.values()):
        row["low"], row["high"] = difference_interval(mine, other)
    return row


def _worst_site(result: StudyResult) -> Document | None:
    """The site whose own test women the model serves worst, among those that released an AUC."""
    sites = result.summary["metrics"]["sites"]
    found = [(row["auc"], site) for site, row in sites.items() if isinstance(row.get("auc"), int | float)]
    if not found:
        return None
    site = min(found)[1]
    return {"site": site, **{key: sites[site].get(key) for key in ("auc", "auc_low", "auc_high")}}


def _vendors(result: StudyResult, first: StudyResult | None) -> Document | None:
    if result.scores is None or result.hospitals is None:
        return None
    return vendor_groups(result.hospitals, result.left_out, result.scores, None if first is None else first.scores,
                         confidence=result.confidence)  # fmt: skip
