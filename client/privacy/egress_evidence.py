"""The shape of a test report's `evidence` and of its rows of subgroups when they leave; part of `egress_reports`.

What the fields mean is `shared_model.evaluation.evidence` and `.subgroups`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_ROWS: Final = 1000

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Bounded = Annotated[float, Field(ge=-1e9, le=1e9)]
Score = Literal["fused", "image", "clinical"]
Pair = Literal["fused_vs_image", "fused_vs_clinical", "fused_vs_public"]
Word = Annotated[str, Field(max_length=100)]


class Shape(BaseModel):
    """Base of all shapes: every field is named, no number is infinite, no text stands for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class SubgroupRow(Shape):
    """One level of an attribute, shown; with a threshold also what it does there."""

    name: Word
    level: Word
    n: Count
    positives: Count
    auc: Share | None
    auc_low: Share | None
    auc_high: Share | None
    sensitivity: Share | None = None
    sensitivity_low: Share | None = None
    sensitivity_high: Share | None = None
    specificity: Share | None = None
    specificity_low: Share | None = None
    specificity_high: Share | None = None


class WithheldRow(Shape):
    """One level of an attribute, of too few women."""

    name: Word
    level: Word
    suppressed: Literal[True]


class AtPrevalence(Shape):
    """An operating point where cancer is as rare as stated; recalls, found, missed per 1,000 women."""

    prevalence: Share
    ppv: Share | None
    ppv_low: Share | None
    ppv_high: Share | None
    npv: Share | None
    npv_low: Share | None
    npv_high: Share | None
    recalls: Annotated[float, Field(ge=0, le=1000)]
    found: Annotated[float, Field(ge=0, le=1000)]
    missed: Annotated[float, Field(ge=0, le=1000)]


class Band(Shape):
    """Women whose stated risk lies in a band."""

    name: Word
    start: Share = Field(alias="from")
    to: Share
    n: Count
    positives: Count
    stated: Share | None
    rate: Share | None
    rate_low: Share | None
    rate_high: Share | None


class ModelEvidence(Shape):
    """One model."""

    n: Count
    positives: Count
    auc: Share | None
    auc_low: Share | None
    auc_high: Share | None
    average_precision: Share | None
    max_fpr: Share
    partial_auc: Share | None
    threshold: Bounded | None
    accuracy: Share | None
    sensitivity: Share | None
    sensitivity_low: Share | None
    sensitivity_high: Share | None
    specificity: Share | None
    specificity_low: Share | None
    specificity_high: Share | None
    at_prevalence: AtPrevalence | None
    brier: Share | None
    ece: Share | None
    adaptive_ece: Share | None
    calibration_slope: Bounded | None
    calibration_slope_low: Bounded | None
    calibration_slope_high: Bounded | None
    calibration_intercept: Bounded | None
    calibration_intercept_low: Bounded | None
    calibration_intercept_high: Bounded | None
    decision: Annotated[list[tuple[Share, Bounded, Bounded]], Field(max_length=MOST_ROWS)]
    bands: Annotated[list[Band], Field(max_length=MOST_ROWS)]


class PairEvidence(Shape):
    """Two models on the same women."""

    n: Count
    positives: Count
    difference: Annotated[float, Field(ge=-1, le=1)] | None
    low: Bounded | None
    high: Bounded | None
    p: Share | None
    p_adjusted: Share | None
    sensitivity: Share
    fewer_recalls: Bounded | None
    fewer_recalls_low: Bounded | None
    fewer_recalls_high: Bounded | None
    fewer_recalls_p: Share | None
    false_positive_rates: tuple[Share | None, Share | None]


class RuleOut(Shape):
    """Women whom a threshold sets aside, simulated; missed: cancers among them per 1,000 women screened."""

    wanted: Share
    threshold: Bounded
    sensitivity: Share | None
    sensitivity_low: Share | None
    sensitivity_high: Share | None
    set_aside: Share
    missed: Annotated[float, Field(ge=0, le=1000)]


Gain = Annotated[float, Field(ge=-2, le=2)]


class ReaderRule(Shape):
    """What one rule of reading does; recalls, found, arbitrations and reads per 1,000 women screened."""

    rule: Literal["reader", "model", "either", "both", "arbitrated", "two_readers"]
    sensitivity: Share
    sensitivity_low: Share
    sensitivity_high: Share
    specificity: Share
    specificity_low: Share
    specificity_high: Share
    sensitivity_gain: Gain
    sensitivity_gain_low: Gain
    sensitivity_gain_high: Gain
    specificity_gain: Gain
    specificity_gain_low: Gain
    specificity_gain_high: Gain
    recalls: Annotated[float, Field(ge=0, le=1000)]
    found: Annotated[float, Field(ge=0, le=1000)]
    arbitrations: Annotated[float, Field(ge=0, le=1000)] | None
    reads: Annotated[float, Field(ge=0, le=3000)]


class SecondReaderPart(Shape):
    """The model beside radiologists' decisions on the same women."""

    n: Count
    positives: Count
    left_out: Count
    threshold: Bounded
    prevalence: Share
    rules: Annotated[list[ReaderRule], Field(max_length=6)]


class EvidencePart(Shape):
    """All of it."""

    rule_out: RuleOut | None
    second_reader: SecondReaderPart | None = None
    prevalence: Share
    sensitivity: Share
    primary: Pair | None
    replicates: Count
    models: dict[Score, ModelEvidence]
    pairs: dict[Pair, PairEvidence]
