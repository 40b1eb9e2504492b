"""Protocol: how the model is chosen and judged, and when it may replace an earlier one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from shared_model.protocol.terms import Fraction, Name, NonNegative, Sha256, Terms


class EvaluationTerms(Terms):
    """How the model is chosen and judged; stated before anything was trained.

    selection_rule: `best_selection_auc` (the round of the greatest AUC on `selection`, ties to the earlier) or `last`.
    score: which prediction the study is about, so that its AUC chooses the round: `fused`, or that of one branch in a
        study that trains nothing else.
    every: evaluate on `selection` after every n-th round (the last one always).
    specificity: level at which sensitivity is reported, threshold taken from `selection`.
    collapse_auc: alarm when the image branch's selection AUC falls below it after having been above.
    primary: the one comparison whose test is the study's; all others are adjusted for being many. prevalence: of cancer
        among the women to be screened, at which recalls and predictive values are stated. sensitivity: level at which
        two models' recalls are compared. None, as in protocols of earlier checkouts: not declared, and not in the hash.
    """

    selection_rule: Literal["best_selection_auc", "last"]
    score: Literal["fused", "image", "clinical"] = "fused"
    every: int = Field(ge=1)
    specificity: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    bootstrap: int = Field(ge=0, le=100_000)
    collapse_auc: Fraction
    primary: Literal["fused_vs_image", "fused_vs_clinical", "fused_vs_public"] | None = None
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    sensitivity: float | None = Field(default=None, gt=0, lt=1)

    @model_serializer(mode="wrap")
    def _without_undeclared(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was not declared is not written, so that earlier protocols keep their hash."""
        values: dict[str, Any] = handler(self)
        undeclared = {name for name in ("primary", "prevalence", "sensitivity") if values.get(name) is None}
        return {name: value for name, value in values.items() if name not in undeclared}


class ReplacementTerms(Terms):
    """When this study's model may replace the one that it began from; stated before anything is trained.

    study, passport_sha256, model_sha256: of the released model. margin: of AUC, dimensionless; the new model is not
    inferior where the interval of its AUC minus the old one's, on the same women, lies above -margin. group_margin: the
    same at each site and in each subgroup. least_positives: a site or subgroup with fewer women with cancer is named
    and not judged. epsilon_before: of the patient who was exposed most by then; it is part of `privacy.epsilon`.
    """

    study: Name
    passport_sha256: Sha256
    model_sha256: Sha256
    margin: float = Field(gt=0, lt=0.5)
    group_margin: float = Field(gt=0, lt=0.5)
    least_positives: int = Field(ge=2)
    epsilon_before: NonNegative
