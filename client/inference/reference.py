"""What is usual at this site: the scores and film descriptors of its own cohort; says when a case is unlike them.

Made from the site's prepared cohort with the released model and kept in the importer's folder, by hash of both; it is
patient data and leaves nowhere. Out of distribution means: the films' descriptor is farther from the cohort's centre
than 99 in 100 of the cohort's own (Mahalanobis distance with Ledoit-Wolf covariance; Lee et al. 2018, arXiv
1807.03888), or a clinical number lay beyond the contract's public limits.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from client.inference.scorer import Scorer
from shared_model.cohort import Cohort
from shared_model.cohort.batch import PatientBatch
from shared_model.errors import StorageError
from shared_model.private_files import make_private_folder, read_private, write_private

LEAST_WOMEN = 50  # fewer tell nothing of a hundredth
MOST_WOMEN = 600
QUANTILE = 0.99
AT_A_TIME = 32
MAX_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class SiteReference:
    """scores: fused logits of the cohort, ascending. centre [D], precision [D, D] of the image tokens, limit: distance
    that 99 in 100 keep; None where too few women have films."""

    scores: NDArray[np.float64]
    centre: NDArray[np.float64] | None
    precision: NDArray[np.float64] | None
    limit: float

    def percentile(self, logit: float) -> float:
        """Share of the cohort's women with a lower score, in [0, 1]."""
        return float(np.searchsorted(self.scores, logit) / max(1, len(self.scores)))

    def distance(self, token_D: NDArray[np.float64]) -> float | None:
        """Of a woman's image token from the cohort's centre; None where it is not known."""
        if self.centre is None or self.precision is None:
            return None
        gap = token_D - self.centre
        return math.sqrt(max(0.0, float(gap @ self.precision @ gap)))

    def unusual(self, token_D: NDArray[np.float64] | None) -> bool | None:
        """Whether her films are unlike the cohort's; None where that is not known."""
        found = None if token_D is None else self.distance(token_D)
        return None if found is None else found > self.limit


@torch.no_grad()
def image_token(scorer: Scorer, batch: PatientBatch) -> NDArray[np.float64]:
    """float64 [B, D]: the model's image token, with its own attention over the views."""
    model = scorer.model
    mask = batch.view_mask_BV
    tokens, _ = model.bag(model.describe_views(batch.pixels_BVCHW, mask), mask)
    found: NDArray[np.float64] = tokens.double().cpu().numpy()
    return found


def site_reference(scorer: Scorer, cohort_folder: Path, keep: Path) -> SiteReference | None:
    """The reference of a site, remembered in `keep`; None where there is no cohort of this model's pipeline yet."""
    if not (cohort_folder / "cohort.json").exists():
        return None
    cohort = Cohort.open(cohort_folder)
    if cohort.pipeline_sha256 != scorer.released.protocol.pipeline.sha256 or len(cohort) < LEAST_WOMEN:
        return None
    alone = "-films-and-table" if scorer.without else ""  # one of before was made with what cases come without
    path = keep / f"reference{alone}-{scorer.released.release.model_sha256[:16]}-{cohort.content_sha256[:16]}.npz"
    if path.exists():
        return _read(path)
    found = _measured(scorer, cohort)
    arrays = {"scores": found.scores, "limit": np.array(found.limit)}
    if found.centre is not None and found.precision is not None:
        arrays |= {"centre": found.centre, "precision": found.precision}
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    make_private_folder(keep)
    write_private(path, stream.getvalue())
    return found


def _measured(scorer: Scorer, cohort: Cohort) -> SiteReference:
    chosen = np.linspace(0, len(cohort) - 1, min(len(cohort), MOST_WOMEN)).round().astype(int)
    scores, tokens = [], []
    for start in range(0, len(chosen), AT_A_TIME):
        # Cases are scored without further modalities, so those that they are compared with are, too.
        batch = replace(cohort.batch(chosen[start : start + AT_A_TIME]), others={})
        with torch.no_grad():
            scores.append(scorer.model(batch.to(scorer.device)).logit_B.double().cpu().numpy())
        with_films = batch.view_mask_BV.any(dim=1).numpy()
        tokens.append(image_token(scorer, batch.to(scorer.device))[with_films])
    all_tokens = np.concatenate(tokens)
    ordered = np.sort(np.concatenate(scores))
    if len(all_tokens) < LEAST_WOMEN:
        return SiteReference(scores=ordered, centre=None, precision=None, limit=float("inf"))
    centre = all_tokens.mean(axis=0)
    precision = np.linalg.pinv(ledoit_wolf(all_tokens)[0])
    gaps = all_tokens - centre
    distances = np.sqrt(np.maximum(0.0, np.einsum("nd,de,ne->n", gaps, precision, gaps)))
    return SiteReference(scores=ordered, centre=centre, precision=precision,
                         limit=float(np.quantile(distances, QUANTILE)))  # fmt: skip


def _read(path: Path) -> SiteReference:
    try:
        with np.load(io.BytesIO(read_private(path, limit=MAX_BYTES)), allow_pickle=False) as arrays:
            known = "centre" in arrays.files
            return SiteReference(
                scores=arrays["scores"], centre=arrays["centre"] if known else None,
                precision=arrays["precision"] if known else None, limit=float(arrays["limit"]),
            )  # fmt: skip
    except (ValueError, KeyError, OSError):
        raise StorageError(f"{path} is damaged", remedy="remove it; it is made again") from None
