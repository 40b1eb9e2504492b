"""The case report: why the model says what it says of one woman, as one self-contained page; called by `site explain`.

Written for a reader who has the films before her: the score and what it rests on first, then where it looked and how
far that can be trusted, what each clinical factor and each modality brought, what was missing, how she compares with
the site's own cohort. Nothing is loaded from elsewhere; the file is named by the pseudonym.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from client.inference.cases import Case
from client.inference.overlay import Rgb, enlarge
from client.inference.pictures import ExplainedFilm
from client.inference.predict import DISCLAIMER, Prediction
from client.inference.reference import SiteReference
from client.inference.scorer import Scorer
from shared_model.contract import Contract
from shared_model.contract.schema import ClinicalField
from shared_model.explanation import DEFAULT_METHOD, Ablation, FactorShares, factor_shares, leave_out
from shared_model.imaging import PipelineConfig

LEAST_SHARE = 0.005  # logits; smaller shares are summed up in one line
BINS = 30
SCREENING = 0.006  # of cancer among screened women (BCSC: 5 to 6 in 1,000), where the protocol states none


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What the page shows of one woman. shares: None without a clinical row."""

    prediction: Prediction
    films: Mapping[str, ExplainedFilm]
    ablation: Ablation
    shares: FactorShares | None
    method: str


def explain(
    scorer: Scorer, prediction: Prediction, films: Mapping[str, ExplainedFilm], *, pipeline: PipelineConfig,
    method: str = DEFAULT_METHOD,
) -> Explanation:  # fmt: skip
    """Work out all of it for one woman."""
    contract = scorer.contract
    woman = prediction.case.batch(pipeline, contract.n_features).to(scorer.device)
    shares = factor_shares(scorer.model, woman, groups=contract.groups, reference_F=contract.reference())
    return Explanation(prediction=prediction, films=films, ablation=leave_out(scorer.model, woman), shares=shares,
                       method=method)  # fmt: skip


def page(explanation: Explanation, scorer: Scorer, reference: SiteReference | None) -> str:
    """The page as HTML text."""
    one, release = explanation.prediction, scorer.released.release
    screening = scorer.released.protocol.evaluation.prevalence or SCREENING
    text: str = _template().render(
        disclaimer=DISCLAIMER, without=scorer.without, case=one.case, score=one.score, prediction=one, release=release,
        vouched=scorer.released.vouched, protocol=scorer.released.protocol,
        bands=scorer.bands(), map_words=scorer.map_words(explanation.method),
        films=[_film(film) for film in explanation.films.values()], factors=_factors(explanation, scorer.contract),
        shares=explanation.shares, ablation=explanation.ablation, parts=_parts(explanation),
        missing=missing_of(one.case, scorer.contract), histogram=_histogram(one, reference), method=explanation.method,
        screening=screening, at_screening=scorer.probability(one.score.logit, prevalence=screening),
        women=len(reference.scores) if reference else 0,
    )  # fmt: skip
    return text


def missing_of(case: Case, contract: Contract) -> dict[str, list[str]]:
    """What the model did not have: views and clinical fields."""
    fields = [
        field.name.replace("_", " ") for field in contract.fields
        if case.features is None or case.features[contract.groups[field.name][-1]] != 0.0
    ]  # fmt: skip
    return {"films": [view.replace("_", " ") for view in case.missing_views], "clinical": fields}


def value_of(case: Case, field: ClinicalField, contract: Contract) -> str:
    """A clinical value as a person writes it."""
    columns = contract.groups[field.name]
    if case.features is None or case.features[columns[-1]] != 0.0:
        return "not known"
    part = case.features[list(columns[:-1])]
    if field.kind == "flag":
        return "yes" if part[0] else "no"
    levels = part if field.kind == "category" else part[1:]
    if levels.any():
        return field.levels[int(levels.argmax())]
    return f"{float(part[0]) * field.scale + field.center:.4g} {field.unit or ''}".strip()


def reference_of(field: ClinicalField) -> str:
    """The same of the contract's reference patient."""
    if field.kind == "flag":
        return "no"
    return f"{field.reference_value:.4g} {field.unit or ''}".strip() if field.kind == "number" else str(field.reference)


def _factors(explanation: Explanation, contract: Contract) -> list[dict[str, Any]]:
    if explanation.shares is None:
        return []
    case, ranked = explanation.prediction.case, explanation.shares.ranked()
    greatest = max((abs(share) for _, share in ranked), default=0.0) or 1.0
    shown = [
        {"name": name.replace("_", " "), "value": value_of(case, contract.field(name), contract),
         "reference": reference_of(contract.field(name)), "share": share, "width": 50.0 * abs(share) / greatest}
        for name, share in ranked if abs(share) >= LEAST_SHARE
    ]  # fmt: skip
    rest = [share for _, share in ranked if abs(share) < LEAST_SHARE]
    if rest:
        shown.append({"name": f"{len(rest)} other fields", "value": "", "reference": "", "share": sum(rest),
                      "width": 50.0 * abs(sum(rest)) / greatest})  # fmt: skip
    return shown


def _parts(explanation: Explanation) -> list[dict[str, Any]]:
    """Gate beside the effect of leaving out, by modality and by film."""
    found = explanation.ablation
    names = {"image": "Films", "clinical": "Clinical table"}
    rows = [{"name": names[name], "gate": found.gate[name], "effect": found.effect(name)} for name in names
            if found.gate[name] > 0]  # fmt: skip
    return rows + [{"name": f"Only the film {view.replace('_', ' ')}", "gate": None, "effect": found.effect(view)}
                   for view in found.views]  # fmt: skip


def _film(film: ExplainedFilm) -> dict[str, str]:
    plain = np.repeat(film.shown[:, :, None], 3, axis=2)
    return {"view": film.view.replace("_", " "), "plain": _png(plain), "map": _png(film.overlaid()),
            "size": f"{film.shown.shape[0]} x {film.shown.shape[1]} pixels as stored"}  # fmt: skip


def _png(rgb: Rgb) -> str:
    """A data URI; large films are made smaller by a whole number, which the page's width would do anyhow."""
    step = max(1, rgb.shape[0] // 1600)
    small, _ = enlarge(rgb[::step, ::step], least_columns=256)
    stream = io.BytesIO()
    Image.fromarray(small).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _histogram(prediction: Prediction, reference: SiteReference | None) -> dict[str, Any] | None:
    """Bars of the site's scores and where she is, in percent of the width."""
    if reference is None or len(reference.scores) == 0:
        return None
    own = prediction.score.logit
    low, high = min(reference.scores[0], own), max(reference.scores[-1], own)
    counts, _ = np.histogram(reference.scores, bins=BINS, range=(low, high))
    span = (high - low) or 1.0
    threshold = prediction.score.threshold
    return {"bars": [100.0 * count / counts.max() for count in counts.tolist()], "own": 100.0 * (own - low) / span,
            "threshold": 100.0 * (threshold - low) / span if low <= threshold <= high else None}  # fmt: skip


def board(explanations: Sequence[Explanation], scorer: Scorer) -> str:
    """A list for several cases, the highest score first, with a link to each report."""
    ordered = sorted(explanations, key=lambda e: -e.prediction.score.logit)
    rows = [
        {"one": e.prediction, "top": [f"{name.replace('_', ' ')} {share:+.2f}" for name, share in e.shares.ranked()[:3]]
         if e.shares is not None else [], "missing": missing_of(e.prediction.case, scorer.contract),
         "image": _film(max(e.films.values(), key=lambda f: float(f.heat.max())))["map"] if e.films else ""}
        for e in ordered
    ]  # fmt: skip
    text: str = _template("board.html.j2").render(
        disclaimer=DISCLAIMER, without=scorer.without, rows=rows, release=scorer.released.release,
        map_words=scorer.map_words(),
    )  # fmt: skip
    return text


@cache
def _template(name: str = "case_report.html.j2") -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["logit"] = lambda value: "not measurable" if value is None else f"{value:+.2f}"
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f} %"
    text = files("client.inference").joinpath(name).read_text(encoding="utf-8")
    style = files("client.inference").joinpath("style.css").read_text(encoding="utf-8")
    return environment.from_string(text.replace("/*STYLE*/", style))
