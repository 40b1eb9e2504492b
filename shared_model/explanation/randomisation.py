"""Do maps depend on what was learnt? The view encoder's weights are drawn anew, and the maps compared; used by checks.

Adebayo et al. 2018, Sanity Checks for Saliency Maps (arXiv 1810.03292): a map that stays as it is when the weights are
random shows edges and not reasons.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from shared_model.fusion import FusionModel, build_model

SEED = 20_261_126  # public: who repeats the check gets the same weights


def with_random_encoder(model: FusionModel, *, seed: int = SEED) -> FusionModel:
    """A copy whose view encoder is freshly initialised, all behind it as it was."""
    other = copy.deepcopy(model)
    drawn = build_model(model.config, seed=seed, prevalence=0.5)
    other.encoder.load_state_dict(drawn.encoder.state_dict())
    return other


def rank_correlation(
    first: Sequence[NDArray[np.float32]], second: Sequence[NDArray[np.float32]],
    breasts: Sequence[NDArray[np.bool_]],
) -> float:  # fmt: skip
    """Mean over films of Spearman's correlation of two maps [H, W] within the breast; a film whose map is the same
    everywhere counts as 0, for it orders nothing.

    Raises:
        ValueError: no film.
    """
    if not first:
        raise ValueError("no film to compare")
    found = [_spearman(a[inside], b[inside]) for a, b, inside in zip(first, second, breasts, strict=True)]
    return float(np.mean(found))


def _spearman(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    ranks = rankdata(a), rankdata(b)
    if len(a) < 2 or np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])
