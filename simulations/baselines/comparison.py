"""What came of the jobs of one population: AUC of each, and the differences that answer a question. Needs no torch.

All comparisons are paired on the same women (DeLong). The document is plain numbers, `comparison.json` beside the jobs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from shared_model.evaluation.auc import auc_interval, paired_delong, roc_auc
from shared_model.protocol import Protocol
from simulations.baselines.jobs import FEDERATED, Job
from simulations.baselines.scores import FILE, HELD_OUT, PartyScores, read_scores

CONFIDENCE = 0.95
Document = dict[str, Any]
Table = Mapping[str, tuple[Job, Mapping[str, PartyScores]]]


def binormal(image: float, clinical: float) -> float:
    """AUC of the best combination of two conditionally independent binormal scores: z_f^2 = z_i^2 + z_c^2 with
    z = sqrt(2) probit(AUC) (Su and Liu 1993, https://doi.org/10.1080/01621459.1993.10476417).

    >>> round(binormal(0.80, 0.75), 3)
    0.86
    """
    z = [ndtri(min(max(auc, 0.5), 0.999)) for auc in (image, clinical)]
    return float(ndtr(math.hypot(*z)))


def compare(jobs: Sequence[Job], folder: Path) -> Document:
    """The document of one population from the scores in its folder.

    Raises:
        StorageError: a job's scores are absent or damaged.
    """
    table = {job.name: (job, read_scores(folder / job.name / FILE)) for job in jobs}
    arms = list(dict.fromkeys(job.arm for job, _ in table.values() if job.baseline == FEDERATED))
    arms.sort(key=lambda arm: [job.arm for job in jobs].index(arm))
    test = next(iter(table.values()))[1][HELD_OUT]
    return {
        "seed": jobs[0].seed,
        "women": {"n": len(test.labels), "positives": int(test.labels.sum())},
        "jobs": {name: _row(job, scores, _initial(folder / name)) for name, (job, scores) in sorted(table.items())},
        "arms": {arm: _arm(arm, table) for arm in arms},
    }


def _initial(home: Path) -> str:
    """Hash of the weights that a job began with; empty for one that has none."""
    path = home / "protocol.json"
    return Protocol.read(path).initial_weights.sha256 if path.exists() else ""


def _row(job: Job, scores: Mapping[str, PartyScores], initial: str) -> Document:
    """AUC of one job on the held-out test women, and of its site for a local one."""
    held_out = scores[HELD_OUT]
    interval = auc_interval(held_out.labels, getattr(held_out, job.score), confidence=CONFIDENCE)
    parts = {part: roc_auc(held_out.labels, getattr(held_out, part)) for part in ("fused", "image", "clinical")}
    return {
        "score": job.score, "initial": initial, "auc": interval.value, "auc_low": interval.low,
        "auc_high": interval.high, "parts": parts,
        "sites": {site: _site_auc(job, found) for site, found in scores.items() if site != HELD_OUT},
    }  # fmt: skip


def _site_auc(job: Job, scores: PartyScores) -> float | None:
    return roc_auc(scores.labels, getattr(scores, job.score))


def _arm(arm: str, table: Table) -> Document:
    """What one arm's federated model is compared with: its own baselines, else the first arm's that nothing changes."""
    found: Document = {}
    for name in ("pooled", "image_only", "clinical_only", "logistic", "public_only"):
        if (gap := _gap(arm, name, table)) is not None:
            found[f"federated_minus_{name}"] = gap
    image, clinical = (_auc(f"{arm}/{name}", table) for name in ("image_only", "clinical_only"))
    if image is not None and clinical is not None:
        found["binormal"] = binormal(image, clinical)
    local = _local(arm, table)
    if local:
        found["federated_minus_local"] = local
    return found


def _auc(name: str, table: Table) -> float | None:
    if name not in table:
        return None
    job, scores = table[name]
    return roc_auc(scores[HELD_OUT].labels, getattr(scores[HELD_OUT], job.score))


def _gap(arm: str, baseline: str, table: Table, *, other: str | None = None) -> Document | None:
    first = table.get(f"{arm}/{FEDERATED}")
    second = table.get(f"{other or arm}/{baseline}") or next(
        (entry for name, entry in table.items() if entry[0].baseline == baseline and baseline in
         ("logistic", "public_only")), None,
    )  # fmt: skip
    return None if first is None or second is None else _paired(first, second, HELD_OUT)


def _paired(
    first: tuple[Job, Mapping[str, PartyScores]], second: tuple[Job, Mapping[str, PartyScores]], party: str
) -> Document:
    one, two = first[1][party], second[1][party]
    gap = paired_delong(one.labels, getattr(one, first[0].score), getattr(two, second[0].score), confidence=CONFIDENCE)
    return {"difference": gap.value, "low": gap.low, "high": gap.high, "p": gap.p}


def _local(arm: str, table: Table) -> Document:
    """By site: what the federated model has over the site's own, on the site's own test women."""
    federated = table[f"{arm}/{FEDERATED}"]
    sites = sorted(job.site for job, _ in table.values() if job.arm == arm and job.site)
    return {site: _paired(federated, table[f"{arm}/local/{site}"], site) for site in sites}


def together(gaps: Sequence[Mapping[str, Any]]) -> tuple[float, float, float] | None:
    """Difference and interval of all populations together: each weighs as the inverse of its variance (fixed effect;
    populations share no woman). None where no gap has an interval.

    >>> gaps = [{"difference": 0.02, "low": 0.0, "high": 0.04}, {"difference": 0.04, "low": 0.02, "high": 0.06}]
    >>> [round(value, 3) for value in together(gaps)]
    [0.03, 0.016, 0.044]
    """
    known = [gap for gap in gaps if gap["low"] is not None and gap["high"] > gap["low"]]
    if not known:
        return None
    reach = float(ndtri((1 + CONFIDENCE) / 2))
    weights = np.array([(2 * reach / (gap["high"] - gap["low"])) ** 2 for gap in known])
    value = float(weights @ [gap["difference"] for gap in known] / weights.sum())
    error = float(1 / np.sqrt(weights.sum()))
    return value, value - reach * error, value + reach * error


def kept_share(private: float, plain: float, public: float) -> float | None:
    """Which share of what hospitals added over public weights is left with privacy; None where they added nothing.

    >>> round(kept_share(0.80, 0.85, 0.75), 3)
    0.5
    """
    return (private - public) / (plain - public) if plain > public else None


def mean_and_spread(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Mean and standard deviation (n - 1) over populations; None without a value."""
    known = [v for v in values if v is not None]
    return (float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0) if known else None
