"""Predictions as CSV, JSON and FHIR; pure functions from values to text."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from client.inference.predict import DISCLAIMER, Prediction
from client.inference.scorer import Scorer

COLUMNS = (
    "patient_id", "pseudonym", "probability", "positive", "band", "logit", "image_logit", "clinical_logit",
    "modalities", "missing_views", "out_of_distribution", "why", "site_percentile", "notes", "study", "model_sha256",
    "protocol_sha256", "passport_sha256", "made",
)  # fmt: skip
USED = {"both": "films and clinical table", "image": "films only", "table": "clinical table only"}
SPREADSHEET = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is a formula to a spreadsheet


def record(prediction: Prediction, scorer: Scorer) -> dict[str, Any]:
    """One woman's result as plain values."""
    case, score = prediction.case, prediction.score
    return {
        "patient_id": case.patient_id, "pseudonym": case.pseudonym, "probability": round(score.probability, 6),
        "positive": score.positive, "threshold": score.threshold, "band": score.band, "logit": round(score.logit, 6),
        "image_logit": _rounded(score.image_logit), "clinical_logit": _rounded(score.clinical_logit),
        "gate": {"image": round(score.gate[0], 4), "clinical": round(score.gate[1], 4)},
        "modalities": case.modalities, "missing_views": list(case.missing_views),
        "out_of_distribution": prediction.unusual, "why": list(prediction.why),
        "site_percentile": _rounded(prediction.percentile), "notes": list(case.notes), **scorer.identity,
        "made": prediction.made,
    }  # fmt: skip


def to_json(
    predictions: Sequence[Prediction], scorer: Scorer, refused: dict[str, str], *,
    not_placed: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """All of them with what they rest on. refused, not_placed: by pseudonym, who has no score or no DICOM objects."""
    release = scorer.released.release
    document = {
        "schema_version": 1, "disclaimer": DISCLAIMER, "model": scorer.identity,
        "passport": scorer.released.vouched.plain(), "vouched": scorer.released.vouched.words,
        "without": list(scorer.without),
        "population": {"prevalence": round(release.prevalence, 4), "specificity": release.specificity,
                       "test": release.test.model_dump() if release.test else None},
        "bands": [asdict(band) for band in scorer.bands()],
        "predictions": [record(prediction, scorer) for prediction in predictions], "not_scored": refused,
        "not_placed": dict(not_placed or {}),
    }  # fmt: skip
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def to_csv(predictions: Sequence[Prediction], scorer: Scorer) -> str:
    """A line a woman."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for prediction in predictions:
        values = record(prediction, scorer)
        writer.writerow([_cell(values[name], text=name in ("patient_id", "pseudonym")) for name in COLUMNS])
    return stream.getvalue()


def to_fhir(prediction: Prediction, scorer: Scorer) -> dict[str, Any]:
    """A FHIR R4 RiskAssessment (hl7.org/fhir/R4/riskassessment.html): status preliminary, never final.

    The subject is named by the hospital's own id, because no server was asked for her resource.
    """
    case, score, release = prediction.case, prediction.score, scorer.released.release
    vouched = scorer.released.vouched
    name = hashlib.sha256(f"{release.model_sha256}\0{case.pseudonym}".encode()).hexdigest()[:32]
    notes = [DISCLAIMER, f"Rests on {USED[case.modalities]}.", *scorer.without,
             f"Probability in a population with {release.prevalence:.0%} prevalence, as the study's.",
             *(f"Unlike the cases that the model was measured on: {why}." for why in prediction.why),
             *(f"Limit of use: {limit}" for limit in vouched.limits)]  # fmt: skip
    return {
        "resourceType": "RiskAssessment", "id": name, "status": "preliminary",
        "identifier": [{"system": "urn:mammofed:result", "value": name}],
        "method": {"text": f"MammoFed study {release.study}, model sha256 {release.model_sha256}, "
                           f"protocol sha256 {release.protocol_sha256}, "
                           + (f"passport sha256 {vouched.sha256}" if vouched.sha256 else "no passport")},
        "code": {"text": "Probability of breast cancer from mammograms and clinical factors (research)"},
        "subject": {"identifier": {"value": case.patient_id}},
        "occurrenceDateTime": prediction.made,
        "performer": {"display": f"MammoFed {scorer.released.protocol.release}"},
        "basis": [{"display": f"mammogram {view}"} for view in case.films]
                 + ([{"display": "clinical factors of the data contract"}] if case.features is not None else []),
        "prediction": [{
            "outcome": {"coding": [{"system": "http://snomed.info/sct", "code": "254837009",
                                    "display": "Malignant neoplasm of breast"}]},
            "probabilityDecimal": round(score.probability, 6),
            "qualitativeRisk": {"text": f"{score.band} (study's band)"},
        }],
        "note": [{"text": text} for text in notes],
    }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _cell(value: object, *, text: bool) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    shown = "; ".join(map(str, value)) if isinstance(value, list) else value
    return f"'{shown}" if text and isinstance(shown, str) and shown.startswith(SPREADSHEET) else shown
