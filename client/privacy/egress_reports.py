"""The only shapes that an evaluation's report may have when it leaves a site; asked by the egress rules.

Each names every field with its range. A report with one more, or with a number outside, stays. What the fields mean is
`shared_model.evaluation.report` and `.histogram`.
"""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from client.privacy.egress_evidence import (
    MOST_ROWS,
    Bounded,
    Count,
    EvidencePart,
    Pair,
    Score,
    Shape,
    Share,
    SubgroupRow,
    WithheldRow,
)
from shared_model.errors import EgressError

MOST_POINTS: Final = 1 << 20  # of a ROC curve: one a woman at most

Difference = Annotated[float, Field(ge=-1, le=1)]


class NoisedMetrics(Shape):
    """From one noised histogram: what a hospital says of its own women under privacy. Sums of counts are noised."""

    n: Annotated[float, Field(ge=0, le=1e12)]
    positives: Annotated[float, Field(ge=0, le=1e12)]
    auc: Share | None
    auc_low: Share | None
    auc_high: Share | None
    brier: Share | None


class JointCounts(Shape):
    """A site's own women by two models' scores, each count with noise: negatives, then positives, by bin and bin."""

    bins: Annotated[int, Field(ge=4, le=256)]
    noise_std: Annotated[float, Field(gt=0, le=1e9)]
    counts: Annotated[list[Bounded], Field(max_length=2 * 256 * 256)]


class SelectionReport(Shape):
    """By which the evaluator's women choose a round."""

    n: Count
    positives: Count
    auc: dict[Score, Share | None]
    thresholds: dict[Score | Literal["rule_out"], Bounded | None]
    temperature: Annotated[float, Field(gt=0, le=1e9)]
    brier: Share | None


class ModelRow(Shape):
    """One score on the split `test`."""

    auc: Share | None
    auc_low: Share | None
    auc_high: Share | None
    average_precision: Share | None
    threshold: Bounded | None
    sensitivity: Share | None
    sensitivity_low: Share | None
    sensitivity_high: Share | None
    specificity: Share | None
    specificity_low: Share | None
    specificity_high: Share | None
    brier: Share | None
    calibration_slope: Bounded | None
    calibration_intercept: Bounded | None
    ece: Share | None
    roc: Annotated[list[tuple[Share, Share]], Field(max_length=MOST_POINTS)]
    calibration: Annotated[list[tuple[Share, Share, Bounded]], Field(max_length=MOST_ROWS)]


class ComparisonRow(Shape):
    """Paired DeLong."""

    difference: Difference | None
    low: Bounded | None
    high: Bounded | None
    p: Share | None


class GateRow(Shape):
    """How much of the fused score comes from the films."""

    image_mean: Share | None
    image_sd: Share | None


class BootstrapInterval(Shape):
    """Of a model."""

    auc_low: Share | None
    auc_high: Share | None
    sensitivity_low: Share | None
    sensitivity_high: Share | None


class DifferenceInterval(Shape):
    """Of a comparison."""

    low: Difference | None
    high: Difference | None


class BootstrapPart(Shape):
    """Percentile intervals."""

    replicates: Count
    models: dict[Score, BootstrapInterval]
    comparisons: dict[Pair, DifferenceInterval]


class TestReport(Shape):
    """Of the split `test`."""

    __test__ = False  # no test of pytest's

    n: Count
    positives: Count
    models: dict[Score, ModelRow]
    comparisons: dict[Pair, ComparisonRow]
    gate: GateRow
    subgroups: Annotated[list[SubgroupRow | WithheldRow], Field(max_length=MOST_ROWS)]
    evidence: EvidencePart | None = None  # of the evaluator's women; a hospital's own stays there
    bootstrap: BootstrapPart | None = None


SHAPES: Final[dict[str, type[Shape]]] = {
    "noised": NoisedMetrics, "joint": JointCounts, "selection": SelectionReport, "test": TestReport,
}  # fmt: skip


def check_report(text: str, shape: Literal["noised", "joint", "selection", "test"]) -> dict[str, object]:
    """The document in `text`, when it has the shape and nothing beside it.

    Raises:
        EgressError: naming the first fields that are not allowed, never with their values.
    """
    try:
        document = json.loads(text)
        if json.dumps(document) != text:  # a name twice, say: what a reader sees must be all that is there
            raise EgressError(f"a `{shape}` report is not written as it reads", expected="each field once")
        SHAPES[shape].model_validate_json(text)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))[:80]}: {e['type']}" for e in error.errors(
            include_url=False, include_context=False, include_input=False)[:3])  # fmt: skip
        raise EgressError(f"a `{shape}` report holds what may not leave: {faults}") from None
    except (ValueError, RecursionError):
        raise EgressError(f"a `{shape}` report is no JSON") from None
    return dict(document)
