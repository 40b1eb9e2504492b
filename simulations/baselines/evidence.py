"""The evidence of a comparison, `evidence.json`: every arm against what hospitals have without it. Called by `study`.

Only a simulator can make it whole: it owns all parties' scores. Populations share no woman; what is said of several is
put together by random effects (`shared_model.evaluation.meta`), never by averaging p values. The document::

    {"evidence_version", "study", "cohort": kind, "confidence", "specificity", "sensitivity", "prevalence",
     "populations": [{"seed", "n", "positives"}],
     "arms": {arm: {"private", "epsilon", "delta", "models": {baseline: row}, "pairs": {"federated_vs_*": row},
        "whole": model_evidence of the federated model on all populations' women, "sites": {site: {...}},
        "between_sites": {...} | null, "matrix": {"trained_at": {"tested_at": AUC}}, "counts": {...},
         "recalibrated": {"fitted_at": {"judged_at": calibration error}}, "second_reader": {...} | null,
         "subgroups": [...], "maps": {...} | null, "subgroups_left_out"}},
     "price": {arm: difference between the first arm's federated model and this one's}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.reporting.evidence_page import VERSION
from shared_model.evaluation.auc import Difference, Interval, auc_interval, paired_delong
from shared_model.evaluation.evidence import PREVALENCE, SENSITIVITY, adjusted, model_evidence, pair_evidence, three
from shared_model.evaluation.gain import gain
from shared_model.evaluation.joint import joint_histogram, joint_result
from shared_model.evaluation.meta import Pooled, pooled_difference, pooled_share
from shared_model.evaluation.operating import operating_point
from simulations.baselines.comparison import CONFIDENCE
from simulations.baselines.jobs import FEDERATED
from simulations.baselines.maps import maps_of
from simulations.baselines.scores import HELD_OUT
from simulations.baselines.site_matrix import between_sites, recalibrated_matrix, second_reader_of, trained_matrix
from simulations.baselines.trained import Population, Trained, rival

REPLICATES = 500
PRIMARY = f"{FEDERATED}_vs_image_only"  # against a model of its own that never saw a table; the seeds' comparison
BINS = 32  # of the joint histograms: AUCs within 0.002 of the unbinned ones
Document = dict[str, Any]


def evidence(study: str, kind: str, populations: Sequence[Population], *, specificity: float) -> Document:
    """The document of all populations, at least one.

    Args:
        study: its name. kind: of the cohort, as the launch named it.
        specificity: for which thresholds were chosen on `selection`.
    """
    seeds = [next(iter(p.values())) for p in populations]
    arms = list(dict.fromkeys(t.job.arm for t in populations[0].values() if t.job.baseline == FEDERATED))
    arms.sort(key=lambda arm: [t.job.arm for t in populations[0].values()].index(arm))
    return {
        "evidence_version": VERSION, "study": study, "cohort": kind, "confidence": CONFIDENCE,
        "specificity": specificity, "sensitivity": SENSITIVITY, "prevalence": PREVALENCE, "replicates": REPLICATES,
        "populations": [
            {"seed": t.job.seed, "n": len(t.labels(HELD_OUT)), "positives": int(t.labels(HELD_OUT).sum())}
            for t in seeds
        ],
        "arms": {arm: _arm(arm, arms[0], populations, specificity) for arm in arms},
        "price": {arm: _price(arms[0], arm, populations) for arm in arms[1:]},
    }  # fmt: skip


def _arm(arm: str, plain: str, populations: Sequence[Population], specificity: float) -> Document:
    rivals = {name: [rival(arm, name, p) for p in populations] for name in
              ("image_only", "clinical_only", "logistic", "public_only", "pooled")}  # fmt: skip
    known = {name: [t for t in found if t is not None] for name, found in rivals.items()}
    own = [p[f"{arm}/{FEDERATED}"] for p in populations]
    federated = {name: found for name, found in known.items() if len(found) == len(populations)}
    pairs = {f"{FEDERATED}_vs_{name}": _pair(own, found) for name, found in federated.items()}
    p = adjusted(pairs, primary=PRIMARY)
    return {
        **_privacy(own), "primary": PRIMARY,
        "models": {name: _row(found) for name, found in {**federated, FEDERATED: own}.items()},
        "pairs": {name: row | {"p_adjusted": p[name]} for name, row in pairs.items()},
        "whole": _whole(own), "sites": _sites(arm, plain, populations, specificity),
        "between_sites": between_sites(own[0]), "matrix": trained_matrix(arm, populations),
        "recalibrated": recalibrated_matrix(own), "counts": _counts(arm, populations[0]),
        "second_reader": second_reader_of(own[0]),
        "subgroups": _subgroups(own), "maps": maps_of(own), "made": [_made(t) for t in own],
    }  # fmt: skip


def _made(trained: Trained) -> Document:
    """What names the model: hashes of protocol and weights, the chosen round, software."""
    found = trained.summary
    return {"seed": trained.job.seed, "protocol_sha256": found.get("protocol_sha256"), "model": found.get("model"),
            "versions": found.get("versions") or {}, "participation": found.get("participation") or {}}  # fmt: skip


def _privacy(own: Sequence[Trained]) -> Document:
    rows = [row for t in own for row in t.summary.get("privacy", {}).values()]
    spent = [row["epsilon"] for row in rows if row.get("epsilon") is not None]
    return {
        "private": bool(rows), "epsilon": max(spent, default=None), "delta": rows[0]["delta"] if rows else None,
        "budget": rows[0]["budget"] if rows else None,
    }  # fmt: skip


def put(name: str, found: Pooled | None) -> Document:
    """A pooled estimate as `name`, `name_low`, `name_high`."""
    return three(name, Interval(None, None, None) if found is None else found.mean)


def _row(trained: Sequence[Trained]) -> Document:
    """One model on the held-out women of all populations."""
    areas = [auc_interval(t.labels(HELD_OUT), t.logits(HELD_OUT), confidence=CONFIDENCE) for t in trained]
    points = [operating_point(t.labels(HELD_OUT), t.logits(HELD_OUT), threshold=t.threshold, confidence=CONFIDENCE)
              for t in trained if t.threshold is not None]  # fmt: skip
    return {
        "score": trained[0].job.score, "n": sum(len(t.labels(HELD_OUT)) for t in trained),
        "positives": int(sum(t.labels(HELD_OUT).sum() for t in trained)), "populations": len(trained),
        **put("auc", pooled_share(areas, confidence=CONFIDENCE)),
        **put("sensitivity", pooled_share([p.sensitivity for p in points], confidence=CONFIDENCE)),
        **put("specificity", pooled_share([p.specificity for p in points], confidence=CONFIDENCE)),
    }  # fmt: skip


def _pair(own: Sequence[Trained], others: Sequence[Trained]) -> Document:
    rows = [
        pair_evidence(a.labels(HELD_OUT), a.logits(HELD_OUT), b.logits(HELD_OUT), confidence=CONFIDENCE,
                      replicates=REPLICATES)
        for a, b in zip(own, others, strict=True)
    ]  # fmt: skip
    gap = pooled_difference([Interval(r["difference"], r["low"], r["high"]) for r in rows], confidence=CONFIDENCE)
    return {
        "n": sum(r["n"] for r in rows), "positives": sum(r["positives"] for r in rows), "populations": len(rows),
        **put("difference", gap), "p": None if gap is None else gap.p,
        "greatest_p": max((r["p"] for r in rows if r["p"] is not None), default=None),
        "sensitivity": SENSITIVITY, **put("fewer_recalls", _fewer(rows)),
    }  # fmt: skip


def _fewer(rows: Sequence[Mapping[str, Any]]) -> Pooled | None:
    """On the scale of the log ratio of false positive rates, and back."""
    known = [r for r in rows if r["fewer_recalls_high"] is not None and r["fewer_recalls_high"] < 1]
    ratios = [Interval(*(float(np.log(1 - r[f"fewer_recalls{end}"])) for end in ("", "_high", "_low"))) for r in known]
    found = pooled_difference(ratios, confidence=CONFIDENCE)
    if found is None or found.mean.value is None or found.mean.low is None or found.mean.high is None:
        return None
    value, low, high = (1 - float(np.exp(x)) for x in (found.mean.value, found.mean.high, found.mean.low))
    return Pooled(Interval(value, low, high), found.k, found.tau2, found.i2, None)


def _whole(own: Sequence[Trained]) -> Document:
    """The federated model on all populations' women at once: each population's own model, threshold and temperature, so
    scores are made comparable by subtracting the threshold for what needs one, and by the temperature for the rest."""
    labels = np.concatenate([t.labels(HELD_OUT) for t in own])
    tempered = np.concatenate([t.logits(HELD_OUT) / t.temperature for t in own])
    found = model_evidence(labels, tempered, threshold=None, confidence=CONFIDENCE)
    if all(t.threshold is not None for t in own):
        from_threshold = np.concatenate([t.logits(HELD_OUT) - (t.threshold or 0.0) for t in own])
        at = model_evidence(labels, from_threshold, threshold=0.0, confidence=CONFIDENCE, curves=False)
        found |= {key: at[key] for key in at if key.startswith(("accuracy", "sensitivity", "specificity", "at_prev"))}
    return found


def _sites(arm: str, plain: str, populations: Sequence[Population], specificity: float) -> Document:
    """By site: the `gain` documents of all populations put together."""
    own = [p[f"{arm}/{FEDERATED}"] for p in populations]
    result: Document = {}
    for site in sorted(set(own[0].scores) - {HELD_OUT}):
        rows = [site_gain(arm, site, p, plain=plain, specificity=specificity) for p in populations]
        names = rows[0]["models"]
        result[site] = {
            "n": sum(r["n"] for r in rows), "positives": sum(r["positives"] for r in rows), "populations": len(rows),
            "models": {name: put("auc", pooled_share([_interval(r["models"][name], "auc") for r in rows],
                                                     confidence=CONFIDENCE)) for name in names},
            "pairs": {name: put("difference", pooled_difference(
                [Interval(r["pairs"][name]["difference"], r["pairs"][name]["low"], r["pairs"][name]["high"])
                 for r in rows], confidence=CONFIDENCE)) for name in rows[0]["pairs"]},
            "transfer": {"wanted": specificity} | {
                key: value for what in ("sensitivity", "specificity") for key, value in put(what, pooled_share(
                    [_interval(r["transfer"], what) for r in rows], confidence=CONFIDENCE)).items()
            },
            "recalibration": {when: _mean([r["recalibration"][when] for r in rows]) for when in ("before", "after")},
        }  # fmt: skip
    return result


def site_gain(arm: str, site: str, population: Population, *, plain: str, specificity: float) -> Document:
    """What a site gained in one population; see `shared_model.evaluation.gain`.

    `local` is the model of the first arm, `plain`, that the site trained alone: where that arm has no privacy, nothing
    left the site, so there was nothing to protect with noise. `local_noised` is its own model under this arm's terms.
    """
    shared = population[f"{arm}/{FEDERATED}"]
    rivals = {"local": population.get(f"{plain}/local/{site}"), "public": rival(arm, "public_only", population),
              "local_noised": population.get(f"{arm}/local/{site}") if arm != plain else None}  # fmt: skip
    known = {"shared": shared} | {name: found for name, found in rivals.items() if found is not None}
    return gain(
        shared.labels(site), {name: found.logits(site) for name, found in known.items()},
        thresholds={name: found.threshold for name, found in known.items() if found.threshold is not None},
        temperature=shared.temperature, confidence=CONFIDENCE, wanted_specificity=specificity, replicates=REPLICATES,
    )  # fmt: skip


def _interval(row: Mapping[str, Any], name: str) -> Interval:
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _mean(rows: Sequence[Mapping[str, Any] | None]) -> Document | None:
    known = [row for row in rows if row is not None]
    if not known:
        return None
    values = {key: [row[key] for row in known if row[key] is not None] for key in known[0]}
    return {key: float(np.mean(v)) if v else None for key, v in values.items()}


def _counts(arm: str, population: Population) -> Document | None:
    """The federated against the public model on all sites' test women, once from pooled scores and once from the sites'
    joint histograms: what a federation would see without a score leaving a site."""
    shared, public = population[f"{arm}/{FEDERATED}"], rival(arm, "public_only", population)
    if public is None:
        return None
    sites = sorted(set(shared.scores) - {HELD_OUT})
    tables = [joint_histogram(shared.labels(s), shared.logits(s) / shared.temperature, public.logits(s), bins=BINS)
              for s in sites]  # fmt: skip
    joint = joint_result(tables, confidence=CONFIDENCE)
    gather: Callable[[Trained], NDArray[np.float64]] = lambda t: np.concatenate([t.logits(s) for s in sites])  # noqa: E731
    labels = np.concatenate([shared.labels(s) for s in sites])
    exact = paired_delong(labels, gather(shared), gather(public), confidence=CONFIDENCE)
    return {"bins": BINS, "n": len(labels), "positives": int(labels.sum()), "from_counts": _gap(joint.difference),
            "from_scores": _gap(exact)}  # fmt: skip


def _gap(gap: Difference) -> Document:
    return {"difference": gap.value, "difference_low": gap.low, "difference_high": gap.high, "p": gap.p}


def _subgroups(own: Sequence[Trained]) -> list[Document]:
    """AUC (and, where studies stated them, sensitivity and specificity) of the federated model by subgroup of the
    held-out women; a group that is suppressed in any population stays so."""
    tables = [t.summary.get("metrics", {}).get("held_out", {}).get("subgroups") or [] for t in own]
    groups = dict.fromkeys((row["name"], row["level"]) for table in tables for row in table)
    rows = []
    for name, level in groups:
        found = [row for table in tables for row in table if (row["name"], row["level"]) == (name, level)]
        if any(row.get("suppressed") for row in found):
            rows.append({"name": name, "level": level, "suppressed": True})
            continue
        values = {
            key: value for what in ("auc", "sensitivity", "specificity") if all(what in row for row in found)
            for key, value in put(what, pooled_share([_interval(row, what) for row in found],
                                                     confidence=CONFIDENCE)).items()
        }  # fmt: skip
        counts = {what: None if any(row[what] is None for row in found) else sum(row[what] for row in found)
                  for what in ("n", "positives")}  # fmt: skip
        rows.append({"name": name, "level": level, **counts, **values})
    return rows


def _price(plain: str, arm: str, populations: Sequence[Population]) -> Document:
    """What the arm loses against the first: difference of the two federated models on the same held-out women."""
    gaps = []
    for p in populations:
        one, two = p[f"{plain}/{FEDERATED}"], p[f"{arm}/{FEDERATED}"]
        gaps.append(paired_delong(one.labels(HELD_OUT), one.logits(HELD_OUT), two.logits(HELD_OUT),
                                  confidence=CONFIDENCE))  # fmt: skip
    found = pooled_difference([Interval(g.value, g.low, g.high) for g in gaps], confidence=CONFIDENCE)
    return {"against": plain, **put("difference", found), "populations": len(gaps)}
