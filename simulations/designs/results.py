"""What came of a design, `design.json`: every run on its own test women, then the design's own question. For `study`.

The document (a name with * stands for three, `name`, `name_low`, `name_high`)::

    {"design_version", "design", "study", "seed", "cohort": kind, "confidence", "specificity": wanted, "prevalence",
     "settings": the group `design`, "women": {"tested", "positives", "selection", "selection_positives"},
     "runs": [row of `run_row`], "pooled": row of `women_together` | null, "privacy": {...} | null,
     "folds": {...} | null, "sites": [...] | null, "across": {...} | null, "periods": {...} | null}

`folds` and `sites` are a cross-validation's, `sites` and `across` leave-one-site-out's, `periods` a temporal one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.reporting.design_page import VERSION
from shared_model.evaluation.auc import Interval, auc_interval, paired_delong
from shared_model.evaluation.crossval import (
    Fold,
    cross_validated_auc,
    cross_validated_difference,
    unpaired_difference,
)
from shared_model.evaluation.evidence import model_evidence, three
from shared_model.evaluation.meta import pooled_share
from shared_model.evaluation.multiple import holm
from simulations.baselines.scores import HELD_OUT, PartyScores
from simulations.designs.plans import ALL_SITES
from simulations.designs.roll import NamedRun, Roll
from simulations.designs.settings import CROSS_VALIDATION, LEAVE_ONE_SITE_OUT
from simulations.plan import Config

Document = dict[str, Any]
OF_RANKS = ("auc", "auc_low", "auc_high", "average_precision", "partial_auc", "max_fpr", "roc", "threshold")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One finished run. scores: by site of its test, in the plan's order of women, and the evaluator's own.

    threshold: on logits of the fused model; temperature: logits are divided by it; both, and `chosen`, the round, are
    from the evaluator's `selection`. summary: of the study.
    """

    run: NamedRun
    scores: Mapping[str, PartyScores]
    threshold: float | None
    temperature: float
    chosen: int | None
    summary: Mapping[str, Any]

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites of which women are tested."""
        return tuple(site for site in sorted(self.scores) if site != HELD_OUT)

    def labels(self, *sites: str) -> NDArray[np.uint8]:
        """Of the test women of these sites, all without."""
        return np.concatenate([self.scores[site].labels for site in sites or self.sites])

    def logits(self, *sites: str, model: str = "fused") -> NDArray[np.float64]:
        """Of the same women: of `fused`, `image` or `clinical`."""
        found: NDArray[np.float64] = np.concatenate([getattr(self.scores[s], model) for s in sites or self.sites])
        return found

    def women(self, *sites: str) -> list[str]:
        """Their pseudonyms."""
        return [name for site in sites or self.sites for name in self.run.test[site]]

    def fold(self, *sites: str, model: str = "fused") -> Fold:
        """As a fold."""
        return Fold(self.labels(*sites), self.logits(*sites, model=model))


def results(
    config: Config, roll: Roll, judged: Sequence[Judged], *, spent: Mapping[str, float], selection: tuple[int, int]
) -> Document:
    """The document.

    Args:
        judged: all runs of the plan, in its order.
        spent: by site, epsilon of its ledger after the last run; empty without privacy.
        selection: women of the evaluator's `selection`, and with cancer among them.
    """
    terms = config["evaluation"]
    own = [one for one in judged if one.run.name != ALL_SITES]
    labels = np.concatenate([one.labels() for one in own])
    level, kind = float(terms["confidence"]), roll.kind
    document: Document = {
        "design_version": VERSION, "design": kind, "study": config["name"], "seed": config["seed"],
        "cohort": config["cohort"]["kind"], "confidence": level, "specificity": float(terms["specificity"]),
        "prevalence": float(terms["prevalence"]), "settings": dict(config["design"]),
        "women": {"tested": len(labels), "positives": int(labels.sum()), "selection": selection[0],
                  "selection_positives": selection[1]},
        "runs": [run_row(one, terms) for one in judged], "pooled": women_together(own, terms),
        "privacy": _privacy(roll, spent), "folds": None, "sites": None, "across": None, "periods": None,
    }  # fmt: skip
    if kind == CROSS_VALIDATION:
        document["folds"] = _folds(own, level)
        document["sites"] = _fold_sites(own, level)
    elif kind == LEAVE_ONE_SITE_OUT:
        document["sites"] = _left_out(judged, terms)
        document["across"] = _across(document["sites"], level)
    else:
        document["periods"] = _periods(own[0], roll, config)
    return document


def run_row(one: Judged, terms: Mapping[str, Any], *sites: str) -> Document:
    """One run on its test women, or on those of some sites: `shared_model.evaluation.evidence` without curves, and how
    it was made."""
    row = model_evidence(
        one.labels(*sites), one.logits(*sites), threshold=one.threshold, temperature=one.temperature,
        confidence=float(terms["confidence"]), prevalence=float(terms["prevalence"]), curves=False,
    )  # fmt: skip
    held_out = one.scores[HELD_OUT]
    contributed = {site: int(found.get("contributed", 0))
                   for site, found in (one.summary.get("participation") or {}).items()}  # fmt: skip
    level = float(terms["confidence"])
    before = _calibration_before(one, sites, level)
    return {
        **{key: row[key] for key in row if key not in ("decision", "bands")}, "name": one.run.name,
        "trained": {site: len(names) for site, names in one.run.train.items()}, "chosen_round": one.chosen,
        "temperature": one.temperature, "before": before, "rounds": one.summary.get("rounds_planned"),
        "contributed": contributed, "protocol_sha256": one.summary.get("protocol_sha256"),
        **three("image", auc_interval(one.labels(*sites), one.logits(*sites, model="image"), confidence=level)),
        **three("clinical", auc_interval(one.labels(*sites), one.logits(*sites, model="clinical"), confidence=level)),
        "held_out": {"n": len(held_out.labels), "positives": int(held_out.labels.sum()),
                     **three("auc", auc_interval(held_out.labels, held_out.fused, confidence=level))},
    }  # fmt: skip


def _calibration_before(one: Judged, sites: Sequence[str], level: float) -> Document:
    found = model_evidence(one.labels(*sites), one.logits(*sites), threshold=None, confidence=level, curves=False)
    return {key: found[key] for key in found if key.startswith("calibration_") or key in ("adaptive_ece", "brier")}


def women_together(own: Sequence[Judged], terms: Mapping[str, Any]) -> Document | None:
    """What can be said of all tested women at once: decisions at each run's own threshold, and probabilities at each
    run's own temperature. No area under a curve: that would rank scores of different models against each other. None
    where a run has no threshold."""
    if any(one.threshold is None for one in own):
        return None
    level, prevalence = float(terms["confidence"]), float(terms["prevalence"])
    labels = np.concatenate([one.labels() for one in own])
    stated = np.concatenate([one.logits() / one.temperature for one in own])
    above = np.concatenate([one.logits() - (one.threshold or 0.0) for one in own])
    raw = np.concatenate([one.logits() for one in own])
    calibrated = model_evidence(labels, stated, threshold=None, confidence=level, prevalence=prevalence)
    decided = model_evidence(labels, above, threshold=0.0, confidence=level, prevalence=prevalence, curves=False)
    before = model_evidence(labels, raw, threshold=None, confidence=level, curves=False)
    row = {key: value for key, value in calibrated.items() if key not in OF_RANKS}
    keys = ("accuracy", "sensitivity", "specificity", "at_prevalence")
    row |= {key: value for key, value in decided.items() if key.startswith(keys)}
    return {**row, "before": {key: before[key] for key in before
                              if key.startswith("calibration_") or key in ("adaptive_ece", "brier")}}  # fmt: skip


def _privacy(roll: Roll, spent: Mapping[str, float]) -> Document | None:
    price = roll.price
    if price.granted is None or price.together is None:
        return None
    return {
        "unit": "patient", "adjacency": "add or remove one", "accountant": "PRV", "delta": price.delta,
        "granted": price.granted, "one": price.one, "together": dict(price.together), "releases": dict(price.releases),
        "spent": dict(spent), "noise_multipliers": list(price.sigmas),
    }  # fmt: skip


def _folds(own: Sequence[Judged], level: float) -> Document:
    """The folds' AUCs put together, of the fused model and of each part alone, and the difference between them."""
    document: Document = {"k": len(own)}
    fused = [one.fold() for one in own]
    for model in ("fused", "image", "clinical"):
        folds = [one.fold(model=model) for one in own]
        found = cross_validated_auc(folds, confidence=level)
        assert found is not None  # the plan has both outcomes in each fold
        document[model] = {**three("mean", found.mean), **three("pooled", found.pooled), "sd": found.sd}
        if model != "fused":
            gap = cross_validated_difference(fused, folds, confidence=level)
            assert gap is not None
            document[model] |= {"difference": gap.value, "difference_low": gap.low, "difference_high": gap.high,
                                "p": gap.p}  # fmt: skip
    held = np.array([_held_out_auc(one) for one in own])
    document["held_out"] = {"n": len(own[0].scores[HELD_OUT].labels), "mean": float(held.mean()),
                            "sd": float(held.std(ddof=1))}  # fmt: skip
    return document


def _held_out_auc(one: Judged) -> float:
    found = one.scores[HELD_OUT]
    value = auc_interval(found.labels, found.fused, confidence=0.95).value
    return float("nan") if value is None else value


def _fold_sites(own: Sequence[Judged], level: float) -> list[Document]:
    """Each site's women over all folds: pairs within folds."""
    rows = []
    for site in sorted({site for one in own for site in one.sites}):
        there = [one for one in own if site in one.sites]
        labels = np.concatenate([one.labels(site) for one in there])
        found = cross_validated_auc([one.fold(site) for one in there], confidence=level)
        area = three("auc", found.pooled) if found else dict.fromkeys(("auc", "auc_low", "auc_high"))
        rows.append({"site": site, "n": len(labels), "positives": int(labels.sum()), **area})
    return rows


def _left_out(judged: Sequence[Judged], terms: Mapping[str, Any]) -> list[Document]:
    """A row a left-out site: the model without it on all its women; and, where there is one, the model with it beside
    that one on the women whom neither trained on."""
    level = float(terms["confidence"])
    reference = next((one for one in judged if one.run.name == ALL_SITES), None)
    rows: list[Document] = []
    for one in judged:
        if one is reference:
            continue
        (site,) = one.sites
        row = {**run_row(one, terms), "site": site, "shared": None}
        if reference is not None and site in reference.sites:
            place = {name: at for at, name in enumerate(one.women(site))}
            common = [place[name] for name in reference.run.test[site]]
            labels, there = reference.labels(site), reference.logits(site)
            here = one.logits(site)[common]
            gap = paired_delong(labels, here, there, confidence=level)
            row["shared"] = {
                "n": len(labels), "positives": int(labels.sum()), "p": gap.p, "difference": gap.value,
                "difference_low": gap.low, "difference_high": gap.high,
                **three("without", auc_interval(labels, here, confidence=level)),
                **three("with", auc_interval(labels, there, confidence=level)),
            }  # fmt: skip
        rows.append(row)
    adjusted = holm({row["site"]: row["shared"]["p"] for row in rows if row["shared"]})
    for row in rows:
        if row["shared"]:
            row["shared"]["p_adjusted"] = adjusted[row["site"]]
    return rows


def _across(rows: Sequence[Document], level: float) -> Document | None:
    """Left-out sites by random effects: the mean, and where a further hospital's AUC is expected."""
    found = pooled_share([Interval(r["auc"], r["auc_low"], r["auc_high"]) for r in rows], confidence=level)
    if found is None:
        return None
    return {**three("auc", found.mean), "k": found.k, "tau2": found.tau2, "i2": found.i2,
            "new_site": None if found.new_site is None else list(found.new_site)}  # fmt: skip


def _periods(one: Judged, roll: Roll, config: Config) -> Document:
    """Later women beside earlier ones whom the same model did not train on, and each year."""
    terms, until = config["evaluation"], float(config["design"]["until"])
    level = float(terms["confidence"])
    when = np.array([roll.years[name] for name in one.women()])
    labels, logits = one.labels(), one.logits()

    def row(members: NDArray[np.bool_]) -> Document:
        found = model_evidence(labels[members], logits[members], threshold=one.threshold, temperature=one.temperature,
                               confidence=level, prevalence=float(terms["prevalence"]), curves=False)  # fmt: skip
        return {key: found[key] for key in found if key not in ("decision", "bands")}

    later = when >= until
    periods: Document = {"until": until, "unknown": dict(roll.unknown), "later": row(later), "earlier": None,
                         "difference": None, "years": []}  # fmt: skip
    if (~later).any():
        periods["earlier"] = row(~later)
        gap = unpaired_difference(Fold(labels[later], logits[later]), Fold(labels[~later], logits[~later]),
                                  confidence=level)  # fmt: skip
        periods["difference"] = {"difference": gap.value, "difference_low": gap.low, "difference_high": gap.high,
                                 "p": gap.p}  # fmt: skip
    for year in np.unique(np.floor(when)):
        members = np.floor(when) == year
        for part, name in ((members & ~later, "earlier"), (members & later, "later")):
            if part.any():
                area = three("auc", auc_interval(labels[part], logits[part], confidence=level))
                periods["years"].append({"year": int(year), "period": name, "n": int(part.sum()),
                                         "positives": int(labels[part].sum()), **area})  # fmt: skip
    return periods
