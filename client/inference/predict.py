"""Scores of a site's women: cases -> predictions -> files, and to the PACS on request; called by `site predict`.

One folder, its owner's alone, because it carries identities: `predictions.csv` and `.json`; with `--fhir`, `--dicom`
one FHIR RiskAssessment, one Secondary Capture a film and one structured report a woman, under names that say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from client.inference.cases import Case
from client.inference.reference import SiteReference, image_token
from client.inference.scorer import Score, Scorer
from shared_model.contract import Contract
from shared_model.imaging import PipelineConfig

DISCLAIMER = "Research use only. Not a medical device; not for diagnosis."


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One woman's result.

    unusual: out of distribution: True, False, or None where it cannot be judged; why: reasons in words.
    percentile: share of the site's cohort with a lower score, None without a cohort. made: UTC, ISO 8601.
    """

    case: Case
    score: Score
    unusual: bool | None
    why: tuple[str, ...]
    percentile: float | None
    made: str


def predict(
    scorer: Scorer, cases: Sequence[Case], *, pipeline: PipelineConfig, reference: SiteReference | None
) -> list[Prediction]:
    """Score each woman by herself: whom she is scored with changes nothing.

    Raises:
        CohortError: films were prepared by another pipeline than the model's.
    """
    scorer.check_pipeline(pipeline)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return [_one(scorer, case, pipeline, reference, made) for case in cases]


def _one(
    scorer: Scorer, case: Case, pipeline: PipelineConfig, reference: SiteReference | None, made: str
) -> Prediction:
    batch = case.batch(pipeline, scorer.contract.n_features)
    score = scorer.score(batch)
    token = image_token(scorer, batch.to(scorer.device))[0] if case.films and reference is not None else None
    unusual_films = reference.unusual(token) if reference is not None else None
    why = tuple(_why(case, scorer, unusual_films))
    judged = unusual_films is not None or not case.films
    return Prediction(
        case=case, score=score, unusual=True if why else False if judged else None, why=why,
        percentile=reference.percentile(score.logit) if reference is not None else None, made=made,
    )  # fmt: skip


def _why(case: Case, scorer: Scorer, unusual_films: bool | None) -> list[str]:
    """Reasons why the model should not be trusted as it was measured."""
    found = ["her films are unlike those of this site's cohort"] if unusual_films else []
    if case.films and {view[0] for view in case.films} != {"L", "R"}:
        found.append("films of one breast only")
    if edge := _at_the_limits(case, scorer.contract):
        found.append(f"at or beyond the contract's limits: {', '.join(edge)}")
    return found


def _at_the_limits(case: Case, contract: Contract) -> list[str]:
    """Numbers that lie at the public limit that extreme ones are moved to. A lower limit of 0 is a count's usual
    value and no limit here."""
    found = []
    for field in contract.fields:
        columns = contract.groups[field.name]
        if case.features is None or field.winsor is None or case.features[columns[-1]] != 0.0:
            continue
        if case.features[list(columns[1:-1])].any():  # a level that is no number, such as `nulliparous`
            continue
        value, (low, high) = float(case.features[columns[0]]) * field.scale + field.center, field.winsor
        margin = 1e-4 * field.scale
        if value >= high - margin or (low != 0 and value <= low + margin):
            found.append(field.name.replace("_", " "))
    return found
