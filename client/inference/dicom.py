"""Results as DICOM: a Secondary Capture of each film with its heat map, and a structured report; made by highdicom.

Secondary Capture Image (PS3.3 A.8.1), one series a woman; Comprehensive SR (PS3.3 A.35.3) of template TID 1500
(PS3.16), with the probability of cancer (DCM 111047), who observed (a device, with model and protocol hash as
algorithm) and which films were looked at. Both carry the woman's real identity, from her own films or from the PACS
that has them (`originals`): they are for her record. UIDs follow from the content, so that the same result sent twice
is one object at the PACS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from highdicom.sc import SCImage
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from client.inference.overlay import enlarge, with_words
from client.inference.pictures import ExplainedFilm
from client.inference.predict import DISCLAIMER, Prediction
from client.inference.scorer import Scorer
from shared_model.imaging.header import quiet_pydicom

MANUFACTURER, MODEL_NAME = "MammoFed", "MammoFed case results"
SERIES = {"sc": 9101, "sr": 9102}
_PROBABILITY = Code("111047", "DCM", "Probability of cancer")
_BREAST = Code("76752008", "SCT", "Breast")
_MAMMOGRAPHY = Code("43204002", "SCT", "Bilateral mammography")
_PERCENT = Code("%", "UCUM", "Percent")
_ONE = Code("1", "UCUM", "no units")
_SCHEME = "99MAMMOFED"
_LOGIT = Code("fused-logit", _SCHEME, "Log odds of cancer before calibration")
_PERCENTILE = Code("site-percentile", _SCHEME, "Share of the site's cohort with a lower score")
_RISK_BAND = Code("risk-band", _SCHEME, "Band of risk of the study's population")
_ABOVE = Code("above-threshold", _SCHEME, "Score above the study's threshold")
_USUAL = Code("in-distribution", _SCHEME, "Case is like the site's cohort")
_MODALITIES = Code("modalities-used", _SCHEME, "Modalities that the score rests on")
_YES, _NO = Code("373066001", "SCT", "Yes"), Code("373067005", "SCT", "No")


def secondary_captures(
    prediction: Prediction, films: Mapping[str, ExplainedFilm], headers: Mapping[str, Dataset], scorer: Scorer
) -> list[Dataset]:
    """One for each film."""
    series = _uid("sc-series", scorer, prediction, *(str(headers[view].SOPInstanceUID) for view in films))
    return [
        _capture(prediction, film, headers[view], scorer, series=series, number=number)
        for number, (view, film) in enumerate(films.items(), start=1)
    ]


def _capture(
    prediction: Prediction, film: ExplainedFilm, header: Dataset, scorer: Scorer, *, series: str, number: int
) -> Dataset:
    rgb, factor = enlarge(film.overlaid())
    pixels = with_words(rgb, words(prediction, scorer, film.view))
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    with quiet_pydicom():
        made = SCImage(
            pixel_array=pixels, photometric_interpretation="RGB", bits_allocated=8, coordinate_system="PATIENT",
            patient_orientation=("L", "F"), series_instance_uid=series, series_number=SERIES["sc"],
            sop_instance_uid=_uid("sc", scorer, prediction, str(header.SOPInstanceUID), digest), instance_number=number,
            manufacturer=MANUFACTURER, pixel_spacing=(film.spacing_mm[0] / factor, film.spacing_mm[1] / factor),
            laterality=film.view[0], transfer_syntax_uid=ExplicitVRLittleEndian, **_patient(header),
        )  # fmt: skip
        # As the film itself hangs; highdicom knows no oblique directions such as FR of an MLO.
        made.PatientOrientation = _hung(header.get("PatientOrientation"))
        made.ImageType = ["DERIVED", "SECONDARY"]
        made.ConversionType = "WSD"
        made.BurnedInAnnotation = "NO"  # words, but none that say who she is (PS3.3 C.7.6.1)
        made.BodyPartExamined = "BREAST"
        made.SeriesDescription = "MammoFed heat map (research)"
        made.ImageComments = DISCLAIMER
        made.DerivationDescription = f"Heat map of {film.view.replace('_', ' ')} by model {_short(scorer)}"
        made.SourceImageSequence = [_reference(header)]
        made.ContentQualification = "RESEARCH"
        _equipment(made, scorer)
    return made


def _hung(stated: object) -> list[str]:
    """Directions of rows and columns, or none where the header has something else there: scanned films name their view
    in it (CBIS-DDSM: `MLO`), and only A, F, H, L, P and R may stand there (PS3.3 C.7.6.1.1.1)."""
    values = [] if stated is None or isinstance(stated, str) else [str(value) for value in stated]  # type: ignore[attr-defined]
    return values if len(values) == 2 and all(v and set(v) <= set("AFHLPR") for v in values) else []


def structured_report(
    prediction: Prediction, headers: Sequence[Dataset], scorer: Scorer
) -> Dataset:
    """One TID 1500 report of a woman's exam; headers: of all films that were looked at."""
    score, release, vouched = prediction.score, scorer.released.release, scorer.released.vouched
    algorithm = AlgorithmIdentification(
        name="MammoFed fusion model", version=f"{scorer.released.protocol.release} {_short(scorer)}",
        parameters=[f"model sha256 {release.model_sha256}", f"protocol sha256 {release.protocol_sha256}",
                    f"study {release.study}, round {release.round}", DISCLAIMER, f"passport: {vouched.words}",
                    *scorer.without, *(f"limit of use: {limit}" for limit in vouched.limits)],
    )  # fmt: skip
    measurements = [
        Measurement(name=_PROBABILITY, value=round(100.0 * score.probability, 2), unit=_PERCENT),
        Measurement(name=_LOGIT, value=round(score.logit, 4), unit=_ONE),
    ]
    if prediction.percentile is not None:
        measurements.append(Measurement(name=_PERCENTILE, value=round(100.0 * prediction.percentile, 1), unit=_PERCENT))
    evaluations = [
        QualitativeEvaluation(_RISK_BAND, Code(f"band-{score.band}", _SCHEME, f"{score.band} risk")),
        QualitativeEvaluation(_ABOVE, _YES if score.positive else _NO),
        QualitativeEvaluation(_MODALITIES, Code(f"used-{prediction.case.modalities}", _SCHEME,
                                                {"both": "Films and clinical table", "image": "Films only",
                                                 "table": "Clinical table only"}[prediction.case.modalities])),
    ]  # fmt: skip
    if prediction.unusual is not None:
        evaluations.append(QualitativeEvaluation(_USUAL, _NO if prediction.unusual else _YES))
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=_uid("track", scorer, prediction), identifier="exam"),
        algorithm_id=algorithm, finding_sites=[FindingSite(anatomic_location=_BREAST)], measurements=measurements,
        qualitative_evaluations=evaluations,
        source_images=[SourceImageForMeasurementGroup(str(h.SOPClassUID), str(h.SOPInstanceUID)) for h in headers],
    )  # fmt: skip
    observer = ObserverContext(
        observer_type=CodedConcept("121007", "DCM", "Device"),
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=_uid("device", scorer), name=MODEL_NAME, manufacturer_name=MANUFACTURER, model_name=MODEL_NAME,
            serial_number=release.model_sha256[:16],
        ),
    )  # fmt: skip
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer), procedure_reported=_MAMMOGRAPHY,
        imaging_measurements=[group], title=Code("126000", "DCM", "Imaging Measurement Report"),
    )  # fmt: skip
    films = [str(header.SOPInstanceUID) for header in headers]
    with quiet_pydicom():
        made = ComprehensiveSR(
            evidence=[_minimal(header) for header in headers], content=content[0],
            series_instance_uid=_uid("sr-series", scorer, prediction, *films), series_number=SERIES["sr"],
            sop_instance_uid=_uid("sr", scorer, prediction, *films, repr(score), vouched.words), instance_number=1,
            manufacturer=MANUFACTURER, is_complete=True, is_final=False, is_verified=False,
        )  # fmt: skip
        made.SeriesDescription = "MammoFed score (research)"
        _equipment(made, scorer)
    return made


def words(prediction: Prediction, scorer: Scorer, view: str) -> list[str]:
    """What stands below a heat map."""
    score, release = prediction.score, scorer.released.release
    used = {"both": "films and clinical table", "image": "films only", "table": "clinical table only"}
    passport = scorer.released.vouched.sha256
    lines = [
        f"{DISCLAIMER}",
        f"{view.replace('_', ' ')}. Probability of cancer {score.probability:.1%} in a population like the study's "
        f"(prevalence {release.prevalence:.0%}); band: {score.band}; "
        f"{'above' if score.positive else 'not above'} the threshold for {release.specificity:.0%} specificity. "
        f"Rests on: {used[prediction.case.modalities]}.",
        f"Colours: where the film speaks for cancer to the model. {scorer.map_words()}",
        f"Model {release.model_sha256[:16]}, protocol {release.protocol_sha256[:16]}, study {release.study}, "
        + (f"passport {passport[:16]}." if passport else "no passport: nobody vouches for it."),
    ]
    if prediction.why:
        lines.insert(2, f"Unlike the cases that the model was measured on: {'; '.join(prediction.why)}.")
    if not score.positive:
        lines.insert(2, "The score is not above the threshold: colours do not mean that a cancer is there.")
    return lines


def _patient(header: Dataset) -> dict[str, Any]:
    """What a new object of the same study has to repeat (PS3.3 C.7.1.1, C.7.2.1)."""
    sex = str(header.get("PatientSex", "") or "")
    return {
        "study_instance_uid": str(header.StudyInstanceUID), "patient_id": str(header.PatientID),
        "patient_name": str(header.get("PatientName", "") or "") or None,
        "patient_birth_date": str(header.get("PatientBirthDate", "") or "") or None,
        "patient_sex": sex if sex in ("F", "M", "O") else None,
        "accession_number": str(header.get("AccessionNumber", "") or "") or None,
        "study_id": str(header.get("StudyID", "") or "") or None,
        "study_date": str(header.get("StudyDate", "") or "") or None,
        "study_time": str(header.get("StudyTime", "") or "") or None,
        "referring_physician_name": str(header.get("ReferringPhysicianName", "") or "") or None,
    }  # fmt: skip


def _minimal(header: Dataset) -> Dataset:
    """What highdicom reads of a referenced film; elements that it needs and a film may lack are there, empty."""
    made = Dataset()
    for keyword in (
        "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "PatientName",
        "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
        "ReferringPhysicianName", "Modality", "Rows", "Columns",
    ):  # fmt: skip
        if keyword in header:
            made[keyword] = header[keyword]
        else:
            setattr(made, keyword, None)
    return made


def _equipment(made: Dataset, scorer: Scorer) -> None:
    made.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: highdicom states none, and names have letters beyond ASCII
    made.ManufacturerModelName = MODEL_NAME
    made.DeviceSerialNumber = scorer.released.release.model_sha256[:16]
    made.SoftwareVersions = scorer.released.protocol.release


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item


def _short(scorer: Scorer) -> str:
    return scorer.released.release.model_sha256[:16]


def _uid(kind: str, scorer: Scorer, prediction: Prediction | None = None, *parts: str) -> str:
    """2.25.<number> of what the object is of and says (PS3.5 B.2 in form; the number is a hash)."""
    text = "\0".join(["mammofed", kind, scorer.released.release.model_sha256,
                      prediction.case.patient_id if prediction else "", *parts])  # fmt: skip
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:15], 'big')}"
