"""Runs a model over patients of a cohort and collects their scores; used by the trainer and the evaluator.

torch is imported when a model is run, so that readers of reports need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shared_model.errors import WeightsError

FAR: Final = 1e6  # log odds; beyond any that a histogram tells apart

if TYPE_CHECKING:
    import torch

    from shared_model.cohort.batch import PatientBatch
    from shared_model.fusion.model import FusionModel

Indices = Sequence[int] | NDArray[np.integer]


class BatchSource(Protocol):
    """What an evaluation needs of a cohort."""

    def batch(self, indices: Indices) -> PatientBatch:
        """The patients at these positions."""


@dataclass(frozen=True)
class Scores:
    """Logits of N patients from one model, natural log odds.

    labels: uint8 [N]. fused, image, clinical: float64 [N]; image or clinical of a patient without that modality is the
    public prior, so that all three are judged on the same women. gate: float64 [N, 2].
    """

    labels: NDArray[np.uint8]
    fused: NDArray[np.float64]
    image: NDArray[np.float64]
    clinical: NDArray[np.float64]
    gate: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def models(self) -> dict[str, NDArray[np.float64]]:
        """The three predictions by name."""
        return {"fused": self.fused, "image": self.image, "clinical": self.clinical}


def evaluate_cohort(
    model: FusionModel, cohort: BatchSource, indices: Indices, *, batch_size: int, device: torch.device,
    settle: bool = False,
) -> Scores:  # fmt: skip
    """Score the patients at `indices`, in that order; the model is left as it was.

    Args:
        model: on `device`.
        cohort: hands out batches.
        indices: positions of the patients; may be empty.
        batch_size: patients at a time; bounds memory.
        device: where the batches go.
        settle: take what is no number as 0 and cut all at `FAR`. Weights can be made so that single women's scores
            overflow; where women are protected, a refusal would tell of them what no noise covers.

    Raises:
        WeightsError: a score is not finite, and `settle` is off.
    """
    import torch

    wanted = np.asarray(indices, dtype=np.int64)
    training, folded = model.training, model.fold_views
    model.eval()
    model.fold_views = True
    labels, rows = [np.zeros(0)], [np.zeros((0, 5))]
    try:
        with torch.inference_mode():
            for start in range(0, len(wanted), batch_size):
                batch = cohort.batch(wanted[start : start + batch_size]).to(device)
                output = model(batch)
                columns = [output.logit_B, output.image_logit_B, output.clinical_logit_B]
                rows.append(torch.cat([torch.stack(columns, dim=1), output.gate_B2], dim=1).double().cpu().numpy())
                labels.append(batch.labels_B.cpu().numpy())
    finally:
        model.train(training)
        model.fold_views = folded
    table = np.concatenate(rows)
    if settle:
        table = np.clip(np.nan_to_num(table, nan=0.0), -FAR, FAR)
    elif not np.isfinite(table).all():  # of how many is not said: whoever chose the weights would learn a count
        raise WeightsError(
            "the model gives scores that are not finite", found="some patients",
            remedy="look at the rounds before: the learning rate may be too high",
        )  # fmt: skip
    return Scores(np.concatenate(labels).astype(np.uint8), table[:, 0], table[:, 1], table[:, 2], table[:, 3:])
