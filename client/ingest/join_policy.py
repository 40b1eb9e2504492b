"""What a site decides about dates of exams, rows and diagnoses, and the reasons that follow; used by joining."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

REASONS: dict[str, str] = {
    "no_label": "the row has no label; set label to 0 or 1",
    "bad_label": "the label is neither 0 nor 1; correct it, or map its codes in site.yaml",
    "bad_date": "the exam date cannot be read; correct it, or add its format to dates in site.yaml",
    "undated_row": "the row says neither which exam it is of nor when it was written; add exam_date or recorded",
    "undated_exam": "the films have no StudyDate, so nothing can be known as of them; set "
                    "clinical_policy.undated to accept if each woman has one exam only",
    "row_after_exam": "the row is of a time after the exam that is used, so it tells what was not known then; "
                      "nothing to do",
    "older_row": "an exam before the one of this woman that is used; nothing to do",
    "stale_row": "the row is too old to tell of the exam; raise clinical_policy.max_age_of_row_days if that is wrong",
    "row_without_exam": "the row names an exam that has no films, while this woman has films of others; send its "
                        "films, or correct exam_date (clinical_policy.match_days allows for dates that differ by some "
                        "days)",
    "repeated_row": "the row stands twice, or an earlier version of it; the last one is used; remove the other",
    "conflicting_rows": "rows of one exam date have different labels; remove the wrong one",
    "conflicting_labels": "two sources, or a row and a diagnosis, disagree on the label of this exam; correct one",
    "prevalent_cancer": "the cancer was found before this exam, so the exam cannot find it; nothing to do",
    "late_cancer": "the cancer was found later than clinical_policy.follow_up_days after this exam, so it is not "
                   "known to be this exam's; nothing to do",
    "unclear_label_date": "the date of the diagnosis is not exact enough to say whether the exam came before; "
                          "give the day",
    "short_follow_up": "no cancer, but the woman was followed for less than clinical_policy.least_follow_up_days; "
                       "nothing to do, or wait",
    "damaged_row": "the row has another number of cells than the header line; correct quotes and separators",
    "no_patient_id": "the row has no patient_id; set it",
    "no_plain_file": "the file is a link or a device, which is not followed; put the file itself there",
    "not_fhir": "the file is no FHIR R4 JSON, is damaged, or holds a resource above 8 MB; export it again",
}  # fmt: skip
"""Reasons for rows, files and women of the clinical sources (those of client/ingest/quarantine.py included)."""


class JoinPolicy(BaseModel):
    """What the site decides about dates; `clinical_policy:` of site.yaml.

    max_age_of_row_days: how much older than the exam a row may be; 0: only rows of the exam itself. match_days: by how
    many days a row's exam_date may differ from the films' date. follow_up_days: a cancer found up to so many days after
    the exam is the exam's. after_follow_up: a cancer found later leaves the exam out or makes it a negative one.
    prevalent: an exam after the diagnosis is left out, or its label is taken as it stands. least_follow_up_days: of a
    negative exam whose label_date says how long the woman was followed. undated: whether exams, rows and labels without
    a date are refused or taken to belong together. earlier_exams: whether an earlier exam is used where the latest has
    no label. cap_age: ages above 89 become 89.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_age_of_row_days: Annotated[int, Field(ge=0, le=36525)] = 365
    match_days: Annotated[int, Field(ge=0, le=60)] = 0
    follow_up_days: Annotated[int, Field(ge=1, le=36525)] = 365
    after_follow_up: Literal["exclude", "negative"] = "exclude"
    prevalent: Literal["exclude", "accept"] = "exclude"
    least_follow_up_days: Annotated[int, Field(ge=0, le=36525)] = 0
    undated: Literal["refuse", "accept"] = "refuse"
    earlier_exams: bool = True
    cap_age: bool = True


SIMPLE = JoinPolicy(
    max_age_of_row_days=0, prevalent="accept", follow_up_days=36525, undated="accept", earlier_exams=False,
    cap_age=False,
)  # fmt: skip
"""A folder of one clinical.csv whose rows are said to be as of their exam; the latest row of a woman is hers."""
