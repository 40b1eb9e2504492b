"""Answers an evaluation request for one site or for the evaluator; called by the service.

`selection` (every round) and `test` (opened once a study) belong to the evaluator. `site` asks a hospital about its own
test women: with privacy as one noised histogram of scores, once a study and charged to the ledger; without, exactly;
with `joint` metrics counts by two models' scores, in a secure sum or noised (`joint`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from client.privacy.disclosure import disclosed
from client.trainer.explore import refuse_exploration
from client.trainer.joint import answer_joint
from client.trainer.personal import PersonalCopies
from client.trainer.reference import keep_reference, read_reference
from client.trainer.release import noised_counts
from client.trainer.site import Site, study_folder
from client.training.features import FeatureCache
from shared_model.cohort.batch import PatientBatch
from shared_model.errors import BudgetExhaustedError, ProtocolError
from shared_model.evaluation import (
    BatchSource,
    Scores,
    evaluate_cohort,
    metrics_from_histogram,
    score_histogram,
    selection_report,
    test_report,
)
from shared_model.evaluation.kept import keep_scores, kept_path
from shared_model.fusion import FusionModel
from shared_model.messages import Arrays, EvaluateReply, EvaluateRequest, Frame, PrivacySpent, encode
from shared_model.phases import told
from shared_model.protocol import Protocol

PATIENTS_AT_A_TIME = 4096  # as descriptors and rows; films are encoded in smaller parts

OWNERS = {"selection": "evaluator", "test": "evaluator", "site": "site"}


class ImageOnly:
    """A cohort seen without its clinical table: how public weights, which know no table, are judged."""

    def __init__(self, cohort: BatchSource) -> None:
        self._cohort = cohort

    def batch(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> PatientBatch:
        """The patients' films, with every clinical row masked out."""
        full = self._cohort.batch(indices)
        return replace(full, clinical_BF=torch.zeros_like(full.clinical_BF),
                       clinical_mask_B=torch.zeros_like(full.clinical_mask_B))  # fmt: skip


def answer_evaluate(site: Site, request: EvaluateRequest, arrays: Arrays) -> bytes:
    """One evaluation. What is opened once (`test`; `site` with privacy) is kept, and a repetition returns those bytes.

    Raises:
        ProtocolError, CohortError, WeightsError, MessageError: the request does not fit this site.
        PrivacyError: the split was already opened for another request of this study.
        StorageError: the ledger or the reply could not be written; nothing is sent.
    """
    protocol = site.protocol(request.protocol_sha256, study=request.study)
    refuse_exploration(protocol)
    if OWNERS[request.scope] != site.config.role:
        raise ProtocolError(f"scope `{request.scope}` is not this party's", found=site.config.role,
                            expected=OWNERS[request.scope])  # fmt: skip
    model = site.model(protocol, arrays, request.weights_sha256)
    folder, slot, identity = study_folder(protocol), _slot(protocol, request), _identity(request)
    stored = site.replies.find(folder, slot, identity) if slot else None
    if stored is not None:
        return stored
    if request.scope == "site" and not request.image_only:
        # A hospital is judged on the model that it would use: with its own personal tensors.
        PersonalCopies(site.config.state / "personal" / folder, protocol, model).put_on(model, up_to=request.round)
    data = encode(Frame(_evaluate(site, protocol, request, model)))
    if slot:
        site.replies.store(folder, slot, identity, data)
    return data


def _slot(protocol: Protocol, request: EvaluateRequest) -> str | None:
    """What may be answered once in a study, or None; `test` once for the chosen model, once for public weights."""
    if request.scope == "test":
        return "test-image-only" if request.image_only else "test"
    joint = protocol.privacy.metrics == "joint"
    if request.scope == "site" and (protocol.private or joint):
        # The initial weights' scores stay here where counts are joint; anywhere else one answer is all that there is.
        # Also of exact counts: two sums, over almost the same sites, would differ by one site's.
        return "site-initial" if request.image_only and joint else "site"
    return None


def _identity(request: EvaluateRequest) -> str:
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()


def _evaluate(site: Site, protocol: Protocol, request: EvaluateRequest, model: FusionModel) -> EvaluateReply:
    started = time.monotonic()
    reason, privacy = "", None
    report: dict[str, Any] | None = None
    if request.scope == "site" and site.config.metrics == "none":
        reason = "this site's policy lets no metrics of its own women leave"
    elif request.scope == "site" and protocol.privacy.metrics == "joint":
        indices = site.indices("test")
        try:
            report, privacy = answer_joint(
                site, protocol, request,
                lambda: score_patients(site, model, indices, image_only=request.image_only, settle=True),
            )  # fmt: skip
        except BudgetExhaustedError as error:
            reason = str(error)[:300]
    elif request.scope == "site" and protocol.private:
        try:
            report, privacy = _private_report(site, protocol, request, model)
        except BudgetExhaustedError as error:
            reason = str(error)[:300]
    else:
        least = site.config.suppress_below
        report = disclosed(_exact_report(site, protocol, request, model), below=least, totals=request.scope == "site")
        if not report:
            report, reason = None, f"fewer than {least} women of a kind: disclosure control withholds it"
    return EvaluateReply(
        site=site.config.site, study=protocol.study, round=request.round, weights_sha256=request.weights_sha256,
        scope=request.scope, outcome="abstained" if report is None else "evaluated", reason=reason,
        seconds=told(time.monotonic() - started, coarse=request.scope == "site" and protocol.coarse_times),
        report=json.dumps(report or {}, allow_nan=False), privacy=privacy,
    )  # fmt: skip


def _exact_report(site: Site, protocol: Protocol, request: EvaluateRequest, model: FusionModel) -> dict[str, Any]:
    indices = site.indices("selection" if request.scope == "selection" else "test")
    scores = score_patients(site, model, indices, image_only=request.image_only)
    if request.scope == "selection":
        return selection_report(scores, protocol.evaluation)
    attributes = site.cohort.attributes.iloc[indices]
    reference = None
    if request.scope == "test":
        path = site.config.state / "reference" / f"{study_folder(protocol)}.npy"
        if request.image_only:
            keep_reference(path, scores.image)
        else:
            # For comparisons between studies on the evaluator's own disk; what is sent is the report below.
            keep_scores(kept_path(site.config.state, protocol), scores, vendors=_vendors(attributes),
                        pseudonyms=[site.cohort.pseudonyms[i] for i in indices])  # fmt: skip
            reference = read_reference(path, women=len(indices)) if path.exists() else None
    return test_report(scores, request.thresholds, request.temperature, protocol.evaluation, attributes, reference)


def _vendors(attributes: pd.DataFrame) -> list[object]:
    """Each patient's vendor; None where the cohort does not say."""
    return list(attributes["vendor"]) if "vendor" in attributes else [None] * len(attributes)


def _private_report(
    site: Site, protocol: Protocol, request: EvaluateRequest, model: FusionModel
) -> tuple[dict[str, Any], PrivacySpent]:
    """AUC and the like from one noised histogram."""
    terms, indices = protocol.privacy, site.indices("test")
    if terms.metrics != "final":
        raise BudgetExhaustedError("the protocol gives the sites' own metrics no share of the privacy budget")

    def count() -> NDArray[np.int64]:
        scores = score_patients(site, model, indices, image_only=request.image_only, settle=True)
        return score_histogram(scores.labels, scores.fused / request.temperature, terms.metrics_bins)

    histogram, std, spent = noised_counts(site, protocol, request.round, count)
    return metrics_from_histogram(histogram, noise_std=std, confidence=protocol.evaluation.confidence), spent


def score_patients(
    site: Site, model: FusionModel, indices: NDArray[np.int64], *, image_only: bool = False,
    features: FeatureCache | None = None, settle: bool = False,
) -> Scores:  # fmt: skip
    """Scores of the patients at `indices` of the site's cohort, or of the one that `features` belongs to.

    Films are encoded once for each view encoder that comes: while a phase leaves it alone, rounds cost nothing.
    """
    encoded = (features or site.features).encoded(model, indices, device=site.device)
    model.encoded = True
    try:
        return evaluate_cohort(model, ImageOnly(encoded) if image_only else encoded, indices,
                               batch_size=PATIENTS_AT_A_TIME, device=site.device, settle=settle)  # fmt: skip
    finally:
        model.encoded = False
