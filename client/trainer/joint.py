"""A site's own women by this model's score and the initial weights', counted for all sites together; by `evaluate`.

Two requests of a study's end belong together. The first brings the initial weights: their scores of the site's own test
women stay here, and nothing leaves. The second brings the chosen model: women are counted by both scores
(:mod:`shared_model.evaluation.joint`), and the counts leave in one of two ways, which the protocol names: exact in a
secure sum, of which nobody sees this site's part, or with noise on each count that the ledger was charged for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.trainer.reference import keep_reference, read_reference
from client.trainer.release import noised_counts
from client.trainer.secure import check_can_sum, sum_files
from client.trainer.site import Site, study_folder
from shared_model.errors import ProtocolError
from shared_model.evaluation.joint import IMAGE, PUBLIC, joint_histogram, rivals_of
from shared_model.evaluation.scores import Scores
from shared_model.messages import EvaluateRequest, PrivacySpent
from shared_model.protocol import Protocol
from shared_model.secagg.terms import SCORES

SUFFIX: Final = "-site.npy"
Answer = tuple[dict[str, Any], PrivacySpent | None]


def answer_joint(site: Site, protocol: Protocol, request: EvaluateRequest, score: Callable[[], Scores]) -> Answer:
    """The report that leaves (empty, or noised counts), and what it cost.

    Args:
        score: scores this site's own test women by the request's weights; called after anything was charged.

    Raises:
        ProtocolError: the first request brings other weights than the initial ones, or the second comes before it.
        BudgetExhaustedError: the ledger has too little left for the noised counts.
        StorageError: disk or ledger refuse; nothing must be sent then.
    """
    path = site.config.state / "reference" / f"{study_folder(protocol)}{SUFFIX}"
    if request.image_only:
        if request.weights_sha256 != protocol.initial_weights.sha256:
            raise ProtocolError("own women are compared with the study's initial weights only",
                                found=request.weights_sha256[:12],
                                expected=protocol.initial_weights.sha256[:12])  # fmt: skip
        keep_reference(path, score().image / request.temperature)
        return {}, None
    if not path.exists():
        raise ProtocolError("the initial weights have not scored this site's women yet",
                            expected="a request with the initial weights first",
                            remedy="the coordinator asks again from the beginning of the evaluation")  # fmt: skip
    public = read_reference(path, women=len(site.indices("test")))
    if protocol.summed:
        check_can_sum(site, protocol)
        counts = [table.ravel() for table in _tables(protocol, request, score(), public)]
        sum_files(site, protocol).keep(SCORES, request.round, 0, np.concatenate(counts).astype(np.float32))
        return {}, None
    # One table, so that one woman is in one count.
    table, std, spent = noised_counts(site, protocol, request.round,
                                      lambda: _tables(protocol, request, score(), public)[0])  # fmt: skip
    return {"bins": table.shape[-1], "noise_std": std, "counts": [float(x) for x in table.ravel()]}, spent


def _tables(
    protocol: Protocol, request: EvaluateRequest, scores: Scores, public: NDArray[np.float64]
) -> list[NDArray[np.int64]]:
    """One table a rival, in the order that the protocol gives them."""
    own, other = scores.fused / request.temperature, {PUBLIC: public, IMAGE: scores.image}
    return [joint_histogram(scores.labels, own, other[name], bins=protocol.privacy.metrics_bins)
            for name in rivals_of(protocol)]  # fmt: skip
