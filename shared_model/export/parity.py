"""Runs the exported graph beside the model on real women, with and without parts of what they have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from shared_model.cohort.batch import VIEWS, PatientBatch
from shared_model.cohort.cohort import Cohort
from shared_model.errors import ExportError
from shared_model.export.graph import INPUTS, OUTPUTS, ExportedModel, require, tensors_of

TOLERANCE: Final = 1e-4  # greatest difference of any output, logits included; measured: some 3e-6
BATCHES: Final = (1, 3, 16)  # one after another: the number of patients is free


@dataclass(frozen=True)
class Parity:
    """women: real cases. answers: of each, complete and with parts left out. greatest: difference by output."""

    women: int
    answers: int
    greatest: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The greatest of all."""
        return max(self.greatest.values())


def check_parity(exported: ExportedModel, path: Path, cohort: Cohort, *, women: int) -> Parity:
    """Compare the graph in `path` with the model it was made from.

    Args:
        cohort: prepared as the model needs it. women: how many of it, evenly spread.

    Raises:
        ExportError: an output differs by more than :data:`TOLERANCE`, or onnxruntime does not take the graph.
        ConfigError: onnxruntime is not installed.
    """
    require("onnxruntime")
    import onnxruntime

    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes are not public
        raise ExportError("onnxruntime does not take the graph", found=str(error)[:300], remedy="report this") from None
    greatest, answers = dict.fromkeys(OUTPUTS, 0.0), 0
    rows = np.unique(np.linspace(0, len(cohort) - 1, num=min(women, len(cohort))).round().astype(np.int64))
    for part in _parts(rows):
        for batch in _variants(cohort.batch(part)):
            tensors = tensors_of(batch)
            with torch.inference_mode():
                expected = exported(*tensors)
            feeds = {name: tensor.numpy() for name, tensor in zip(INPUTS, tensors, strict=True)}
            found = session.run(list(OUTPUTS), feeds)
            for name, ours, theirs in zip(OUTPUTS, expected, found, strict=True):
                gap = float(np.abs(ours.numpy().astype(np.float64) - theirs).max())
                greatest[name] = max(greatest[name], gap if np.isfinite(gap) else float("inf"))
            answers += len(batch)
    parity = Parity(women=len(rows), answers=answers, greatest=greatest)
    if parity.worst > TOLERANCE:
        name = max(greatest, key=greatest.__getitem__)
        raise ExportError(f"the exported graph gives another {name} than the model", found=f"{greatest[name]:.2e}",
                          expected=f"at most {TOLERANCE:g}", remedy="report this; nothing was written")  # fmt: skip
    return parity


def _parts(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    at = 0
    for number in range(len(rows)):
        size = BATCHES[min(number, len(BATCHES) - 1)]
        if at >= len(rows):
            return
        yield rows[at : at + size]
        at += size


def _variants(batch: PatientBatch) -> Iterator[PatientBatch]:
    """The women as they are, without their table, without their films, and with one view alone."""
    yield batch
    yield replace(batch, clinical_BF=torch.zeros_like(batch.clinical_BF),
                  clinical_mask_B=torch.zeros_like(batch.clinical_mask_B))  # fmt: skip
    yield _views(batch, torch.zeros(len(VIEWS), dtype=torch.bool))
    for view in range(len(VIEWS)):
        yield _views(batch, torch.arange(len(VIEWS)) == view)


def _views(batch: PatientBatch, keep_V: torch.Tensor) -> PatientBatch:
    pixels = batch.pixels_BVCHW * keep_V.view(1, -1, 1, 1, 1)
    return replace(batch, pixels_BVCHW=pixels, view_mask_BV=batch.view_mask_BV & keep_V)
