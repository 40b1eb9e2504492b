"""What goes from one hospital to another: models trained at one, lines fitted at one; for the evidence of a comparison.

Only a simulator can make it whole: it owns all hospitals' scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared_model.evaluation.auc import auc_interval, roc_auc
from shared_model.evaluation.calibration import calibration
from shared_model.evaluation.evidence import three
from shared_model.evaluation.gain import FOLDS
from shared_model.evaluation.meta import pooled_share
from shared_model.evaluation.recalibration import cross_fitted, fit_platt
from simulations.baselines.comparison import CONFIDENCE
from simulations.baselines.jobs import FEDERATED
from simulations.baselines.scores import HELD_OUT
from simulations.baselines.trained import Population, Trained

Document = dict[str, Any]
AS_IT_IS = "as it is"


def sites_of(trained: Trained) -> list[str]:
    """The hospitals whose women it has scored."""
    return sorted(set(trained.scores) - {HELD_OUT})


def between_sites(shared: Trained) -> Document | None:
    """One federated model's AUCs at its sites, by random effects; `rows`: each site's own."""
    areas = {site: auc_interval(shared.labels(site), shared.logits(site), confidence=CONFIDENCE)
             for site in sites_of(shared)}  # fmt: skip
    found = pooled_share(list(areas.values()), confidence=CONFIDENCE)
    if found is None:
        return None
    rows = {site: {"n": len(shared.labels(site)), **three("auc", area)} for site, area in areas.items()}
    return {**three("auc", found.mean), "k": found.k, "tau2": found.tau2, "i2": found.i2, "new_site": found.new_site,
            "rows": rows}  # fmt: skip


def trained_matrix(arm: str, populations: Sequence[Population]) -> Document:
    """Mean AUC over populations of the model trained at one site on another site's test women; the last row is the
    federated model's. Empty where no site trained one alone."""
    trained = {t.job.site: t.job.name for t in populations[0].values() if t.job.arm == arm and t.job.site}
    rows = {**{site: trained[site] for site in sorted(trained)}, FEDERATED: f"{arm}/{FEDERATED}"}
    sites = sites_of(populations[0][f"{arm}/{FEDERATED}"])

    def cell(name: str, site: str) -> float | None:
        return _mean([roc_auc(p[name].labels(site), p[name].logits(site)) for p in populations])

    return {row: {site: cell(name, site) for site in sites} for row, name in rows.items()} if trained else {}


def recalibrated_matrix(shared: Sequence[Trained]) -> Document:
    """Mean adaptive calibration error over populations of the federated model at each site: as it is, and after a line
    (Platt) fitted at one site. At the site itself each woman is judged by a line that she did not fit."""
    sites = sites_of(shared[0])

    def cell(fitted: str, judged: str) -> float | None:
        found = []
        for model in shared:
            logits = _moved(model, fitted, judged)
            found.append(None if logits is None else
                         calibration(model.labels(judged), logits, confidence=CONFIDENCE).adaptive_ece)  # fmt: skip
        return _mean(found)

    return {row: {site: cell(row, site) for site in sites} for row in (AS_IT_IS, *sites)}


def _moved(model: Trained, fitted: str, judged: str) -> NDArray[np.float64] | None:
    """Logits of one site's women by a line fitted at another; None where those women determine none."""
    own = model.logits(judged) / model.temperature
    if fitted == AS_IT_IS:
        return own
    if fitted == judged:
        return cross_fitted(model.labels(judged), own, folds=FOLDS)
    line = fit_platt(model.labels(fitted), model.logits(fitted) / model.temperature)
    return None if line is None else line(own)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def second_reader_of(shared: Trained) -> Mapping[str, Any] | None:
    """The second-reader part of one study's report; None where nobody's readings of its women are known."""
    held_out = (shared.summary.get("metrics") or {}).get("held_out") or {}
    found: Mapping[str, Any] | None = (held_out.get("evidence") or {}).get("second_reader")
    return found
